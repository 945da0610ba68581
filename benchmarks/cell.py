"""One run of a grid, in a process of its own: training, which may be interrupted and go on, and an evaluation."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import closing, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import get_class_by_name, get_wrapper_class
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.grid import ALGORITHMS, FOR_ALL, FOR_THE_ENVIRONMENT, ROOT, Cell
from benchmarks.rows import Row, of_games, write_whole
from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.atari import make_atari_vec_env
from sb3_per_dqn.callbacks import InterruptGuard, RunRecorder
from sb3_per_dqn.checkpoint import RunCheckpoints
from sb3_per_dqn.checkpoint.environments import why_not
from sb3_per_dqn.export import wrappers_of
from sb3_per_dqn.minatar import MinAtarCNN, MinAtarPolicy, register_minatar
from sb3_per_dqn.plots import draw_learning_curves, read_columns
from sb3_per_dqn.schedules import PiecewiseSchedule
from sb3_per_dqn.score import Score
from sb3_per_dqn.sharing import EnvironmentSettings, export_model
from sb3_per_dqn.sharing.small import round_weights
from sb3_per_dqn.zoo import GAME_WRAPPER
from sb3_per_dqn.zoo.evaluation import limited
from sb3_per_dqn.zoo.remote import actors_arguments, attributes_for_actors

LOG = "log.txt"  # in a run's folder: warnings, and what went wrong
ROW = "row.json"  # the result
INTERRUPTED = 128 + signal.SIGTERM
SECONDS_A_LINE = 60
PACKAGES = ("sb3-per-dqn", "stable-baselines3", "sb3-contrib", "torch", "numpy", "gymnasium", "ale-py", "minatar")


def run_cell(cell: Cell, folder: Path, every: int, agent: Path | None = None) -> None:
    """
    Leave the run's row in its folder, or a checkpoint if it is interrupted, with exit status 143.

    :param cell: what to run
    :param folder: the run's own
    :param every: environment steps from one checkpoint to the next
    :param agent: where to keep the trained agent as a small model folder; what was there is removed
    """
    os.setsid()  # Ctrl-C is for the parent, which hands it on once
    folder.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    if (folder / ROW).exists():  # it ended when nobody was there to take it
        return
    th.set_num_threads(1)
    commit = _commit()
    env = make_env(cell, cell.seed, n_envs=cell.settings["hyperparameters"].get("n_envs", 1))
    with closing(env):
        model = make_model(cell, env)
        seconds = _train(model, cell, folder, every)
    row = {
        **{"grid": cell.grid, "game": cell.game, "variant": cell.variant, "seed": cell.seed},
        "steps": cell.settings["n_timesteps"],
        **_of_games(cell, folder),
        "evaluation": evaluation(cell, model),
        "seconds": round(seconds, 1),
        **{"commit": commit, "date": datetime.now(timezone.utc).date().isoformat(), **_machine()},
        "settings": cell.settings,
    }
    try:
        if agent is not None and isinstance(model, PerDoubleDQN):
            _keep(model, cell, folder, agent)
    finally:  # the result of hours, also if the agent cannot be written
        write_whole(folder / ROW, json.dumps(row).encode())


def _keep(model: PerDoubleDQN, cell: Cell, folder: Path, agent: Path) -> None:
    given = cell.settings["hyperparameters"]
    environment = EnvironmentSettings(
        wrappers=wrappers_of(given.get("env_wrapper")), frame_stack=given.get("frame_stack")
    )
    round_weights(model.policy)  # after the row's evaluation: what is shared is scored by itself
    score = Score.of(evaluation(cell, model), deterministic=True, steps=model.num_timesteps)
    curve = draw_learning_curves(folder)
    shutil.rmtree(agent, ignore_errors=True)
    export_model(model, agent, env_id=cell.game, environment=environment, score=score, curve=curve, small=True)


def try_out(cell: Cell) -> None:
    """
    :param cell: to build environment and model of, once, without a worker process
    :raises ValueError: in one line, if that fails
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of too little memory, say: the run itself will tell
            with closing(make_env(cell, cell.seed, n_envs=1, vec_env_cls=DummyVecEnv)) as env:
                make_model(cell, env)
    except Exception as error:
        raise ValueError(f"{cell.game}, {cell.variant}: {' '.join(str(error).split())}") from error


def make_env(cell: Cell, seed: int, n_envs: int, evaluation: bool = False, **kwargs: Any) -> VecEnv:
    """
    :param cell: a run
    :param seed: of the first environment
    :param n_envs: how many
    :param evaluation: whole Atari games for their own score, with no-op starts; other environments are the same, but
        none lasts for ever
    :param kwargs: of SB3's ``make_vec_env`` and of ``make_atari_vec_env``
    :return: the environments
    """
    if cell.game.startswith("MinAtar/"):
        register_minatar()
    given = cell.settings["hyperparameters"]
    if given.get("env_wrapper") == GAME_WRAPPER:
        if "ray_actors" in given:
            raise ValueError(f"ray_actors={given['ray_actors']!r} is for other games than Atari's: leave it out.")
        stack = given.get("frame_stack", 1)
        return make_atari_vec_env(cell.game, n_envs, seed, frame_stack=stack, evaluation=evaluation, **kwargs)
    if "frame_stack" in given:
        raise ValueError(f"frame_stack={given['frame_stack']!r} is for env_wrapper: {GAME_WRAPPER}: leave it out.")
    if evaluation:
        kwargs["env_kwargs"] = limited(cell.game, {})
    elif "ray_actors" in given:
        attributes = attributes_for_actors(actors_arguments(given["ray_actors"], given.get("n_envs", 1)))
        kwargs = {"vec_env_cls": attributes["vec_env_class"], **kwargs}
    return make_vec_env(cell.game, n_envs, seed, wrapper_class=get_wrapper_class(given), **kwargs)


def make_model(cell: Cell, env: VecEnv) -> OffPolicyAlgorithm:
    """
    SB3's algorithms get what they know, the same schedule of epsilon, and the same network without dueling streams.

    :param cell: a run
    :param env: its environments
    :return: its model
    """
    given = cell.settings["hyperparameters"]
    arguments = {key: value for key, value in given.items() if key not in FOR_THE_ENVIRONMENT}
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        value = arguments.get(name, {})
        arguments[name] = eval(value) if isinstance(value, str) else dict(value)  # as the zoo reads them
    arguments = ExperimentManager._preprocess_schedules(arguments)
    if "." in arguments["policy"]:
        arguments["policy"] = get_class_by_name(arguments["policy"])
    algo = cell.settings["algo"]
    if algo == "per_ddqn":
        return ALGORITHMS[algo](env=env, seed=cell.seed, **arguments)
    _without_dueling(arguments, algo)
    model = ALGORITHMS[algo](
        env=env, seed=cell.seed, **{key: value for key, value in arguments.items() if key not in FOR_ALL}
    )
    if "exploration" in arguments:
        vars(model)["exploration_schedule"] = PiecewiseSchedule(arguments["exploration"])
    return model


def _without_dueling(arguments: dict[str, Any], algo: str) -> None:
    policy, kwargs = arguments["policy"], arguments["policy_kwargs"]
    kwargs.pop("dueling", None)
    if policy is MinAtarPolicy:  # SB3's policy with this body is the same network
        arguments["policy"] = "MlpPolicy"
        arguments["policy_kwargs"] = {"features_extractor_class": MinAtarCNN, "net_arch": [], **kwargs}
    elif policy not in ALGORITHMS[algo].policy_aliases:
        raise ValueError(f"policy={policy!r} is not known to {algo}; there are MinAtarPolicy and SB3's names.")


class _Progress(BaseCallback):
    """Counts seconds, those before an interruption included; says now and then how far the run is."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.what = str(cell)
        self.total = cell.settings["n_timesteps"]
        self.seconds = 0.0

    def _on_training_start(self) -> None:  # after that of the checkpoints, which bring `seconds` back
        self.parent_process = os.getppid()
        self.last = self.said = time.monotonic()
        self.steps_said = self.num_timesteps

    def _on_step(self) -> bool:
        now = time.monotonic()
        self.seconds += now - self.last
        self.last = now
        if now - self.said >= SECONDS_A_LINE:
            self._say(now)
            if os.getppid() != self.parent_process:  # it was killed: nobody would take the result
                self.parent_process = os.getppid()
                signal.raise_signal(signal.SIGTERM)
        return True

    def _say(self, now: float) -> None:
        pace = (now - self.said) / (self.model.num_timesteps - self.steps_said)
        left = (self.total - self.model.num_timesteps) * pace / 60
        returns = [info["r"] for info in self.model.ep_info_buffer or ()]
        recent = f", last {len(returns)} games {np.mean(returns):.2f}" if returns else ""
        print(f"{self.what}: {self.model.num_timesteps} of {self.total} steps{recent}, {left:.0f} min left", flush=True)
        self.said, self.steps_said = now, self.model.num_timesteps


def _train(model: OffPolicyAlgorithm, cell: Cell, folder: Path, every: int) -> float:
    """
    :return: how long it took, in seconds
    """
    assert model.env is not None
    recorder, guard, progress = RunRecorder(str(folder)), InterruptGuard(), _Progress(cell)
    callbacks: list[BaseCallback] = [recorder, guard]
    left = cell.settings["n_timesteps"]
    # Checkpoints let environments start anew whose state cannot be read, and would be part of the experiment then
    algo = cell.settings["algo"]
    without = why_not(model.env) if algo == "per_ddqn" else f"{algo} has no checkpoints"
    if not without:
        guard.checkpoints = RunCheckpoints(folder / "checkpoints", every, logs=recorder.files)
        callbacks.append(guard.checkpoints)
        if guard.checkpoints.steps:
            recorder.resumes = True
            left = guard.checkpoints.resume(model)
            print(f"{cell}: goes on from step {model.num_timesteps}", flush=True)
    with guard.listening():
        model.learn(left, [*callbacks, progress], log_interval=None, reset_num_timesteps=not recorder.resumes)  # type: ignore[arg-type]
    if guard.interrupted:
        way = f"to begin anew ({without})" if without else "with a checkpoint"
        print(f"{cell}: stopped at step {model.num_timesteps}, {way}", flush=True)
        sys.exit(INTERRUPTED)
    return progress.seconds


def _of_games(cell: Cell, folder: Path) -> Row:
    episodes = read_columns(folder / "episodes.csv")
    steps, returns = (episodes.get(name, np.empty(0)) for name in ("timesteps", "r"))
    return of_games(steps, returns, cell.settings["n_timesteps"])


def evaluation(cell: Cell, model: OffPolicyAlgorithm) -> list[float]:
    """
    :param cell: a run
    :param model: its final model
    :return: returns of whole games without exploration
    """
    games = cell.settings["evaluation_episodes"]
    with closing(make_env(cell, cell.seed + 10_000, n_envs=1, evaluation=True)) as env:
        returns, _ = evaluate_policy(model, env, games, deterministic=True, return_episode_rewards=True)
    return list(map(float, returns))  # type: ignore[arg-type]


def _commit() -> str:
    """
    :return: which code this is, with a mark if it has changes; new results are none
    """

    def answer(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changes = answer("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return answer("rev-parse", "--short=12", "HEAD") + "+changes" * bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _machine() -> Row:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # of a game that is not played
            versions[package] = metadata.version(package)
    return {"machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores", "versions": versions}
