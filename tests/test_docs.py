"""The documentation holds: its programs run, and the functions, flags and logged quantities that it names exist."""

import csv
import functools
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import ray
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common import evaluation
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_per_dqn
from sb3_per_dqn import atari, make_atari_vec_env
from sb3_per_dqn.__main__ import COMMANDS, main
from sb3_per_dqn.checkpoint import RunCheckpoints
from sb3_per_dqn.speedups import Speedups

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
STEPS = 200  # that a program trains at most


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def programs() -> Iterator[Any]:
    """Each block of a page is a program of its own; those of the README go on where the last one ended."""
    of_readme = blocks(README, "python")
    yield pytest.param("".join(of_readme), id="README")
    for page in PAGES:
        for number, block in enumerate(blocks(page, "python"), 1):
            if block not in of_readme:
                yield pytest.param(block, id=f"{page.stem}-{number}")


def block_with(page: str, text: str) -> str:
    (found,) = (block for block in blocks(ROOT / "docs" / page, "python") if text in block)
    return found


def at_most(function: Callable[..., Any], **limits: int) -> Callable[..., Any]:
    """The same function, whose keyword arguments are cut to these limits where they are given."""

    def limited(*args: Any, **kwargs: Any) -> Any:
        return function(
            *args, **{**kwargs, **{name: min(kwargs[name], limits[name]) for name in limits & kwargs.keys()}}
        )

    return limited


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[DQN]]:
    """
    Programs are cut short: few steps, small memory, two games in this process, no compiler, the CPU where there is no
    CUDA. The models that were trained come into this list.
    """
    models: list[DQN] = []
    make = at_most(DQN.__init__, learning_starts=100, gradient_steps=1)
    learn = OffPolicyAlgorithm.learn

    @functools.wraps(DQN.__init__)
    def make_small(self: DQN, *args: Any, buffer_size: int = 10**6, device: Any = "auto", **kwargs: Any) -> None:
        device = "cpu" if device == "cuda" and not th.cuda.is_available() else device
        make(self, *args, buffer_size=min(buffer_size, 10_000), device=device, **kwargs)

    def learn_a_little(self: DQN, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        models.append(self)
        return learn(self, min(total_timesteps, STEPS), *args, **kwargs)

    def few_games(env_id: str, n_envs: int, emulators: str = "processes", **kwargs: Any) -> Any:
        in_process = {"vec_env_cls": DummyVecEnv} if emulators == "processes" else {}
        return make_atari_vec_env(env_id, min(n_envs, 2), emulators=emulators, **in_process, **kwargs)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "local")  # not the cluster of another test, which may end
    monkeypatch.setattr(DQN, "__init__", make_small)
    monkeypatch.setattr(OffPolicyAlgorithm, "learn", learn_a_little)
    monkeypatch.setattr(sb3_per_dqn, "make_atari_vec_env", few_games)
    monkeypatch.setattr(atari, "EVALUATION_MAX_FRAMES", 200)
    monkeypatch.setattr(evaluation, "evaluate_policy", at_most(evaluation.evaluate_policy, n_eval_episodes=2))
    monkeypatch.setattr(RunCheckpoints, "__init__", at_most(RunCheckpoints.__init__, every=100))
    monkeypatch.setattr(Speedups, "compiled", lambda _, method: method)
    monkeypatch.setattr(optuna.Study, "optimize", at_most(optuna.Study.optimize, n_trials=2))
    yield models
    ray.shutdown()


def run(program: str) -> None:
    exec(compile(program, "a program of the documentation", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("program", list(programs()))
def test_programs_run(program: str, trained: list[DQN]) -> None:
    run(program)
    assert trained
    assert all(model._n_updates > 0 for model in trained)


def test_the_resume_recipe_resumes(trained: list[DQN], monkeypatch: pytest.MonkeyPatch) -> None:
    program = block_with("recipes.md", "RunCheckpoints(")
    run(program)
    resumed = []
    resume = RunCheckpoints.resume
    monkeypatch.setattr(RunCheckpoints, "resume", lambda *args: resumed.append(resume(*args)) or resumed[-1])
    run(program)
    assert len(resumed) == 1
    assert 0 < resumed[0] < STEPS
    first, second = (model.policy.state_dict() for model in trained)
    assert all(th.equal(first[name], second[name]) for name in first)


class Goal(gym.Env[Any, int]):
    """One step, which succeeds or not."""

    observation_space: Any = spaces.Box(0, 1, (1,))
    action_space: Any = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), float(action), True, False, {"is_success": action == 1}


def test_the_page_lists_what_a_run_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "Goal-v0", gym.envs.registration.EnvSpec("Goal-v0", Goal))
    flags = ["--env", "Goal-v0", "-n", "400", "--eval-freq", "200", "--device", "cpu", "-f", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sb3-per-dqn", "train", *flags])
    assert main() == 0
    with (tmp_path / "per_ddqn" / "Goal-v0_1" / "progress.csv").open(newline="") as file:
        logged = next(csv.reader(file))
    rows = re.findall(r"^\| (`\w+/\w+`(?:, `\w+/\w+`)*) \|", (ROOT / "docs" / "logged.md").read_text(), re.MULTILINE)
    listed = [name for name in re.findall(r"\w+/\w+", " ".join(rows)) if not name.startswith("actors/")]
    assert sorted(listed) == sorted(logged)


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in (README, *PAGES):
        for command, arguments in re.findall(
            r"(?:sb3-per-dqn|python -m sb3_per_dqn) ([a-z_]+)([^\n`#]*)", page.read_text()
        ):
            yield command, [word for word in arguments.split() if word.startswith("-")]


def test_commands_and_their_flags_exist(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = list(commands())
    assert len(wanted) > 10
    for name in {command for command, _ in wanted}:
        assert name in COMMANDS
        monkeypatch.setattr(sys, "argv", ["sb3-per-dqn", name, "--help"])
        with pytest.raises(SystemExit):
            main()
        known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", capsys.readouterr().out))
        assert {flag for command, flags in wanted if command == name for flag in flags} <= known


def hook(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestSourceCode:
    hook = hook("source_code")
    RETURN = "sb3_per_dqn.schedules._within_run"

    def test_every_page_names_what_is_there(self) -> None:
        names = sum(len(blocks(page, "source")) for page in PAGES)
        assert names > 10
        shown = "".join(self.hook.on_page_markdown(page.read_text()) for page in PAGES)
        assert shown.count("``` { .python title=") == names
        assert "```source" not in shown

    def test_the_function_is_shown_without_its_docstring(self) -> None:
        assert self.hook.included(self.RETURN, "return min") == (
            f'``` {{ .python title="{self.RETURN}" hl_lines="2" }}\n'
            "def _within_run(progress_remaining: float) -> float:\n"
            "    return min(max(progress_remaining, 0.0), 1.0)\n"
            "```"
        )

    @pytest.mark.parametrize(
        "name", ["sb3_per_dqn.schedules.gone", "sb3_per_dqn.gone.f", "sb3_per_dqn.schedules.math.pi"]
    )
    def test_what_is_no_function_ends_the_build(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} is no function"):
            self.hook.included(name)

    @pytest.mark.parametrize("part", ["no such line", "progress_remaining"])
    def test_what_is_not_one_line_ends_the_build(self, part: str) -> None:
        with pytest.raises(ValueError, match="lines with"):
            self.hook.included(self.RETURN, part)
