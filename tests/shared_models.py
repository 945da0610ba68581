"""Models that are shared, what can happen to their folders, and whether Python runs something of theirs."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_per_dqn import PerDoubleDQN, atari, export_model, make_atari_vec_env
from sb3_per_dqn.minatar import ChannelFirst, register_minatar
from sb3_per_dqn.score import Score
from sb3_per_dqn.whole_files import sha256
from tests.command_line import CARTPOLE_PARAMS, SHORT_CARTPOLE, Run, run_main
from tests.test_training_with_replay import DictFrames, Frames

SCORE = Score(mean=12.345, std=1.5, games=3, deterministic=True, steps=64)
HUGE = [10**6, 10**6, 10**6]


def cartpole() -> VecEnv:
    return make_vec_env("CartPole-v1", 2, seed=3)


def minatar() -> VecEnv:
    register_minatar()
    return make_vec_env("MinAtar/Breakout-v0", 2, seed=3, wrapper_class=ChannelFirst)


def dicts() -> VecEnv:
    return make_vec_env(lambda: DictFrames(Frames()), 2, seed=3)


def breakout() -> VecEnv:
    return make_atari_vec_env("BreakoutNoFrameskip-v4", 1, vec_env_cls=atari.DummyVecEnv)


def normalized() -> VecEnv:
    return VecNormalize(cartpole(), clip_obs=3.0, gamma=0.9, norm_reward=False)


def make(make_env: Callable[[], VecEnv] = cartpole, policy: Any = "MlpPolicy", **kwargs: Any) -> PerDoubleDQN:
    """A model that has learned a little, so that both networks and all counters are its own."""
    settings = {"learning_starts": 10, "batch_size": 8, "buffer_size": 200, "seed": 1, "target_update_interval": 20}
    model = PerDoubleDQN(policy, make_env(), **{**settings, "device": "cpu", **kwargs})
    return model.learn(64)


def observations(model: PerDoubleDQN, number: int = 64) -> Any:
    """Random ones, and not only such as the environment would give."""
    space = model.observation_space
    space.seed(0)
    samples: list[Any] = [space.sample() for _ in range(number)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space}
    return np.stack(samples)


def assert_same(model: PerDoubleDQN, other: PerDoubleDQN) -> None:
    weights, others = model.policy.state_dict(), other.policy.state_dict()
    assert list(weights) == list(others)
    assert all(th.equal(weights[name], others[name]) for name in weights)
    seen = observations(model)
    tensors, _ = model.policy.obs_to_tensor(seen)
    with th.no_grad():
        q_values = model.q_net(tensors)
        assert q_values.std() > 0
        assert th.equal(q_values, other.q_net(tensors))
        assert th.equal(model.q_net_target(tensors), other.q_net_target(tensors))
    np.testing.assert_array_equal(
        model.predict(seen, deterministic=True)[0], other.predict(seen, deterministic=True)[0]
    )
    for name in (
        "num_timesteps",
        "_n_updates",
        "exploration_rate",
        "observation_space",
        "action_space",
        "policy_class",
    ):
        assert getattr(model, name) == getattr(other, name), name


WATCHED = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec")
heard: list[str] = []
listening = False


def hear(event: str, _: Any) -> None:
    if listening and event in WATCHED:
        heard.append(event)


sys.addaudithook(hear)


@pytest.fixture
def nothing_runs() -> Iterator[None]:
    """Python itself says whether something is unpickled or started."""
    global listening
    heard.clear()
    listening = True
    yield
    listening = False
    assert heard == [], heard


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make(normalized, policy_kwargs={"net_arch": [8]}, replay_buffer_kwargs={"n_steps": 2})
    home = tmp_path_factory.mktemp("exported")
    model.save(home / "sb3.zip")
    return export_model(model, home / "shared", env_id="CartPole-v1", score=SCORE)


@pytest.fixture
def folder(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, tmp_path / "shared")
    shutil.copy(exported.parent / "sb3.zip", tmp_path)
    return tmp_path / "shared"


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def replace_weights(folder: Path, data: bytes) -> None:
    """With the right checksum, which anybody can write."""
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, sha256=sha256(data))


def change_tensor(folder: Path, change: Callable[[dict[str, th.Tensor]], None]) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    replace_weights(folder, safetensors.torch.save(tensors))


def add(tensors: dict[str, th.Tensor]) -> None:
    tensors["more"] = th.zeros(2)


def arguments_with(folder: Path, **changes: Any) -> None:
    edit(folder, arguments={**json.loads((folder / "config.json").read_text())["arguments"], **changes})


def truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])


CORRIDORS = """
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnvWrapper


class Corridor(gym.Env):
    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, length=5, bounds=(0, 1), **others):
        self.said = {"length": length, "bounds": bounds, **others}
        self.length, self.place = length, 0

    def observed(self):
        return np.array([self.place, self.length], np.float32)

    def reset(self, *, seed=None, options=None):
        self.place = 0
        return self.observed(), {}

    def step(self, action):
        self.place += 1
        return self.observed(), float(action), self.place >= self.length, False, {}


class Scaled(gym.ObservationWrapper):
    def __init__(self, env, factor=1.0):
        super().__init__(env)
        self.factor = factor

    def observation(self, observation):
        return observation * np.float32(self.factor)


class Shifted(VecEnvWrapper):
    def __init__(self, venv, by):
        super().__init__(venv)
        self.by = by

    def reset(self):
        return self.venv.reset() + np.float32(self.by)

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = info["terminal_observation"] + np.float32(self.by)
        return observations + np.float32(self.by), rewards, dones, infos


gym.register("Corridor-v0", Corridor)
"""


@pytest.fixture
def corridors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a module that registers an environment and has wrappers for it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "corridors.py").write_text(CORRIDORS)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "corridors", raising=False)
    yield "corridors"
    gym.registry.pop("Corridor-v0", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    logs = tmp_path_factory.mktemp("trained")
    run = run_main("train", *SHORT_CARTPOLE, "--eval-freq", "-1", *CARTPOLE_PARAMS, logs=logs, env_id="CartPole-v1")
    assert run.status == 0, run.err
    return run


def export(run: Run, to: Path, *arguments: str) -> Run:
    return run_main("export", "--env", "CartPole-v1", "--device", "cpu", "--to", str(to), *arguments, logs=run.logs)
