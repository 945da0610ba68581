"""Environments in Ray actors: the same as in SB3's own, to the bit, and what is said when one is lost."""

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize, VecVideoRecorder

from sb3_per_dqn import PerDoubleDQN
from sb3_per_dqn.checkpoint.environments import captured_environments, restore_environments, why_not
from sb3_per_dqn.cluster import RayVecEnv, actors
from sb3_per_dqn.cluster.actors import connect
from sb3_per_dqn.replay.prioritized_buffer import LOST_STEP
from sb3_per_dqn.workers import WorkerError

SMALL: dict[str, Any] = {"num_cpus": 0.1, "timeout": 300.0}


@contextmanager
def environment_of_actors() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))  # they import this file
        patch.setenv("RAY_worker_niceness", "0")  # as nice as the tests, and not 15 more
        yield


@pytest.fixture(scope="module", autouse=True)
def local_cluster() -> Iterator[None]:
    with environment_of_actors():
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Game(gym.Env[Any, int]):
    """
    Random numbers, ends, time limits, options, pictures; something happens once, at the seventh step of all.

    :param number: of the environment
    :param fault: what happens
    :param once: a file that says that it has happened
    """

    metadata: Any = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012  # as gymnasium has it
    render_mode = "rgb_array"
    action_space: Any = spaces.Discrete(3)

    def __init__(self, number: int = 0, fault: Callable[[], Any] | None = None, once: Path | None = None) -> None:
        self.number, self.fault, self.once, self.steps, self.bonus = number, fault, once, 0, 0.0
        parts: Any = {"image": spaces.Box(0, 255, (8, 8, 1), np.uint8), "vector": spaces.Box(-9, 9, (3,))}
        self.observation_space = spaces.Dict(parts)

    def _obs(self) -> Any:
        image = self.np_random.integers(0, 256, (8, 8, 1), np.uint8)
        return {"image": image, "vector": self.np_random.normal(size=3).astype(np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(3, 20))
        return self._obs(), {"options": options, "length": self.length}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 7 and self.fault is not None and (self.once is None or not self.once.exists()):
            if self.once is not None:
                self.once.touch()
            self.fault()
        self.length -= 1
        terminated = bool(self.np_random.random() < 0.05)
        reward = float(action) + self.bonus + float(self.np_random.normal())
        return self._obs(), reward, terminated, self.length <= 0, {"steps": self.steps}

    def render(self) -> Any:
        return np.full((4, 4, 3), self.number, np.uint8)

    def add(self, a: int, b: int = 0) -> tuple[int, int]:
        return self.number, a + b


def made(number: int, **kwargs: Any) -> gym.Env[Any, int]:
    return Monitor(Game(number, **kwargs))


MAKERS = [partial(made, number) for number in range(5)]


def raise_error() -> None:
    raise KeyError("the simulator has lost its mind")


def same(one: Any, other: Any) -> None:
    """Times apart, which Monitor writes."""
    if isinstance(one, dict):  # DummyVecEnv has an OrderedDict
        assert one.keys() == other.keys()
        for key in one.keys() - {"t"}:
            same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for parts in zip(one, other, strict=True):
            same(*parts)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


@pytest.fixture(scope="module")
def pair() -> tuple[VecEnv, VecEnv]:
    return DummyVecEnv(list(MAKERS)), RayVecEnv(list(MAKERS), envs_per_actor=2, **SMALL)


CARTPOLES: list[Any] = [partial(gym.make, "CartPole-v1")] * 3


@pytest.fixture(scope="module")
def cartpoles() -> RayVecEnv:
    return RayVecEnv(CARTPOLES, envs_per_actor=2, **SMALL)


def test_the_same_streams_bit_for_bit(pair: tuple[VecEnv, VecEnv]) -> None:
    oracle, env = pair
    for venv in pair:
        venv.seed(7)
        venv.set_options({"level": 3})
    same(env.reset(), oracle.reset())
    same(env.reset_infos, oracle.reset_infos)
    actions = np.random.default_rng(0).integers(3, size=(300, 5))
    ends = 0
    for of_step in actions:
        answers = [venv.step(of_step) for venv in pair]
        same(answers[1], answers[0])
        same(env.reset_infos, oracle.reset_infos)
        ends += int(answers[1][2].sum())
    assert ends > 50
    same(env.reset(), oracle.reset())  # no seeds now
    assert env.reset_infos[0]["options"] is None


def test_the_rest_of_a_vectorized_environment(pair: tuple[VecEnv, VecEnv]) -> None:
    for venv in pair:
        venv.seed(1)
        venv.reset()
    oracle, env = pair
    for venv in pair:
        assert venv.get_attr("number") == [0, 1, 2, 3, 4]
        assert venv.get_attr("number", [4, 0, 3]) == [4, 0, 3]
        assert venv.env_method("add", 2, indices=[3, 1], b=5) == [(3, 7), (1, 7)]
        assert venv.env_method("add", 2, indices=2) == [(2, 2)]
        assert venv.env_is_wrapped(Monitor) == [True] * 5
        assert venv.env_is_wrapped(VecNormalize, indices=1) == [False]  # type: ignore[arg-type]
        assert venv.has_attr("length")
        assert not venv.has_attr("width")
        assert venv.render_mode == "rgb_array"
        assert venv.metadata["render_fps"] == 30
        assert [int(image[0, 0, 0]) for image in venv.get_images() if image is not None] == [0, 1, 2, 3, 4]
    same(env.render(), oracle.render())
    for venv in pair:
        venv.set_attr("mark", 5, indices=[1, 4])
        assert venv.get_attr("mark", 4) == [5]
        assert not venv.has_attr("mark")
    with pytest.raises(WorkerError, match=r"environments 0 to 1(.|\n)*width"):
        env.get_attr("width")
    same(env.step(np.zeros(5, int)), oracle.step(np.zeros(5, int)))  # nothing of this was in the way


class Plain(gym.Env[Any, int]):
    observation_space: Any = spaces.Box(-9, 9, (2,))
    action_space: Any = spaces.Discrete(2)
    bonus = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), self.bonus, False, False, {}


def test_an_attribute_that_is_set_arrives() -> None:
    env = RayVecEnv([Plain, Plain, Plain], envs_per_actor=3, **SMALL)
    env.reset()
    env.set_attr("bonus", 4.0, indices=[0, 2])
    assert env.step(np.zeros(3, int))[1].tolist() == [4.0, 0.0, 4.0]
    env.close()
    env.close()


def test_nobody_comes_back_to_life() -> None:
    env = RayVecEnv([Plain, Plain], restarts=3, **SMALL)
    env.reset()
    env.close()
    for use in (env.reset, partial(env.step, np.zeros(2, int)), partial(env.get_attr, "bonus")):
        with pytest.raises(WorkerError, match=r"were closed.*make others"):
            use()
    assert env.restarted == 0


class Wider(Plain):
    action_space: Any = spaces.Discrete(3)


def test_spaces_of_all_are_the_same() -> None:
    with pytest.raises(ValueError, match=r"Environment 2 has spaces .*Discrete\(3\).* first one .*Discrete\(2\)"):
        RayVecEnv([Plain, Plain, Wider], envs_per_actor=2, **SMALL)


@pytest.mark.parametrize("of_all", [True, False])
def test_a_cluster_that_is_not_there(of_all: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for a quarter of an hour."""
    with socket.socket() as nobody:  # is bound, and does not listen
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConnectionError, match=f"ray_address={address}: no cluster answers there"):
            connect(None if of_all else address)


def test_what_comes_may_be_written_to(pair: tuple[VecEnv, VecEnv]) -> None:
    env = pair[1]
    env.reset()
    while True:
        obs, rewards, dones, infos = env.step(np.zeros(5, int))
        if dones.any():
            break
    terminal = infos[int(dones.argmax())]["terminal_observation"]
    assert isinstance(obs, dict)
    assert all(array.flags.writeable for array in (*obs.values(), rewards, dones, *terminal.values()))


@pytest.mark.parametrize("train_while_stepping", [False, True])
def test_training_equals_that_in_one_process(cartpoles: RayVecEnv, train_while_stepping: bool) -> None:
    weights = []
    for env in (DummyVecEnv(CARTPOLES), cartpoles):
        model = PerDoubleDQN(
            "MlpPolicy",
            env,
            seed=3,
            learning_starts=50,
            n_steps=3,
            device="cpu",
            train_while_stepping=train_while_stepping,
        )
        model.learn(400)
        assert model._n_updates > 20
        weights.append(model.policy.state_dict())
    assert all(th.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_wrappers_and_the_state_of_environments(cartpoles: RayVecEnv) -> None:
    env = VecFrameStack(cartpoles, 2)
    assert not why_not(env)
    env.seed(5)
    env.reset()
    for _ in range(30):
        env.step(np.ones(3, int))
    tree = captured_environments(env)
    expected = [env.step(np.zeros(3, int)) for _ in range(50)]
    other = VecFrameStack(cartpoles, 2)
    restore_environments(other, tree)
    for answer in expected:
        same(other.step(np.zeros(3, int)), answer)


def test_a_video(tmp_path: Path) -> None:
    env = RayVecEnv([partial(gym.make, "CartPole-v1", render_mode="rgb_array")] * 2, 2, **SMALL)
    recorder = VecVideoRecorder(env, str(tmp_path), lambda step: step == 0, video_length=5)
    recorder.reset()
    for _ in range(7):
        recorder.step(np.zeros(2, int))
    recorder.close()
    assert len(list(tmp_path.glob("*.mp4"))) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (raise_error, r"Environment 1 has raised an error(.|\n)*raise_error(.|\n)*lost its mind"),
        (partial(os._exit, 7), r"Actor 0 of 1 \(environments 0 to 1\) has ended"),
        (partial(time.sleep, 1000), r"Actor 0 of 1 \(environments 0 to 1\) has not answered for 3 seconds: it hangs"),
    ],
)
def test_what_became_of_an_actor_is_said(fault: Any, message: str) -> None:
    makers = [MAKERS[0], partial(made, 1, fault=fault)]
    env = RayVecEnv(makers, envs_per_actor=2, num_cpus=0.1)
    env.reset()
    for _ in range(6):
        env.step(np.zeros(2, int))
    env.timeout = 3.0
    with pytest.raises(WorkerError, match=message):
        env.step(np.zeros(2, int))
    env.close()


class Counting(gym.Env[Any, int]):
    """Observations tell which reset and which step they are of; as ``Game``, something happens once."""

    observation_space: Any = spaces.Box(0, np.inf, (2,), np.float64)
    action_space: Any = spaces.Discrete(2)

    def __init__(self, fault: Callable[[], Any] | None = None, once: Path | None = None) -> None:
        self.fault, self.once, self.steps = fault, once, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.obs = np.array([self.np_random.integers(1, 2**40), 0.0])
        return self.obs, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 7 and self.fault is not None and self.once is not None and not self.once.exists():
            self.once.touch()
            self.fault()
        self.obs = self.obs + np.array([0, 1])
        return self.obs, float(self.obs[1]), False, bool(self.obs[1] == 5), {}


def monitored(path: str, **kwargs: Any) -> gym.Env[Any, int]:
    return Monitor(Counting(**kwargs), path)


@pytest.mark.parametrize(("fault", "n_steps"), [(raise_error, 1), (partial(os._exit, 7), 3)])
def test_an_actor_is_replaced(fault: Any, n_steps: int, tmp_path: Path) -> None:
    """The broken episodes end with the step before the one that was lost: nothing is invented, nothing else is lost."""
    makers = [partial(monitored, str(tmp_path / str(number))) for number in range(3)]
    makers[1] = partial(makers[1], fault=fault, once=tmp_path / "once")
    env = RayVecEnv(makers, envs_per_actor=2, restarts=1, **SMALL)
    model = PerDoubleDQN("MlpPolicy", env, learning_starts=4, batch_size=4, n_steps=n_steps, device="cpu", seed=3)
    with pytest.warns(UserWarning, match=r"environments 0 to 1(.|\n)*It is replaced \(1 of 1 restarts\)"):
        model.learn(60)
    env.close()
    buffer: Any = model.replay_buffer
    drawn = buffer._get_samples(np.flatnonzero(buffer._priorities.values))
    obs, next_obs = drawn.observations.numpy(), drawn.next_observations.numpy()
    # the seventh step of environments 0 and 1 was lost, and their last windows are open when the run ends
    assert len(obs) == 60 - 2 - 2 * (n_steps - 1)
    assert (obs[:, 0] == next_obs[:, 0]).all()  # of one episode
    steps = next_obs[:, 1] - obs[:, 1]
    assert ((steps >= 1) & (steps <= n_steps)).all()
    assert (drawn.dones == 0).all()
    # a broken episode of one step, then whole ones, of other random numbers, and Monitor's file goes on
    assert len(np.unique(obs[:, 0])) == 5 + 5 + 4
    lengths = [np.loadtxt(tmp_path / f"{i}.monitor.csv", delimiter=",", skiprows=2)[:, 1].tolist() for i in range(3)]
    assert lengths == [[5, 5, 5], [5, 5, 5], [5, 5, 5, 5]]


def test_one_restart_too_few() -> None:
    env = RayVecEnv([partial(made, 0, fault=raise_error)], restarts=1, **SMALL)
    env.reset()
    with pytest.warns(UserWarning, match="It is replaced"):
        all_steps = [env.step(np.zeros(1, int)) for _ in range(6 + 1 + 6)]
    assert [infos[0].get(LOST_STEP, False) for *_, infos in all_steps] == [False] * 6 + [True] + [False] * 6
    with pytest.raises(WorkerError, match="lost its mind"):
        env.step(np.zeros(1, int))
    env.close()


def cannot_be_made() -> gym.Env[Any, int]:
    raise RuntimeError("no licence")


def test_an_environment_that_cannot_be_made() -> None:
    with pytest.raises(WorkerError, match=r"Environment 1 has raised an error(.|\n)*no licence"):
        RayVecEnv([Plain, cannot_be_made], envs_per_actor=2, **SMALL)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"restarts": -1}, "restarts=-1 must be a whole number, 0 or more"),
        ({"envs_per_actor": 0}, "envs_per_actor=0 must be a whole number, 1 or more"),
        ({"timeout": 0}, "timeout=0 must be a number of seconds, above 0"),
        ({"timeout": "60"}, "timeout='60' must be a number of seconds, above 0"),
        ({"num_cpus": -1}, "num_cpus=-1 must be a number of processors, 0 or more"),
        ({"num_cpus": None}, "num_cpus=None must be a number of processors, 0 or more"),
        ({"num_cpus": 3}, "num_cpus=3 for each of 2 actors: the cluster has 4: num_cpus=2 would fit, or fewer actors"),
    ],
)
def test_arguments_that_make_no_sense(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RayVecEnv([Plain, Plain], **kwargs)


def test_processors_that_others_have_are_waited_for_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = RayVecEnv([Plain], num_cpus=3)

    def warn(message: str, **_: Any) -> None:
        said.append(message)
        first.close()

    monkeypatch.setattr(actors.warnings, "warn", warn)
    RayVecEnv([Plain, Plain], num_cpus=1, timeout=300).close()
    (message,) = said
    assert re.match(
        r"num_cpus=1 for each of 2 actors: others leave [\d.]+ of the cluster's 4: they are waited", message
    )


@pytest.mark.parametrize(
    ("nodes", "num_cpus", "n_actors", "fits"),
    [
        ([7.0], 0.28, 25, None),  # 25 * 0.28 > 7 for floats
        ([7.0], 0.3, 25, 0.28),
        ([3.0, 3.0], 2, 3, 1.5),  # none of them is shared by two nodes
        ([3.0, 1.0], 1, 4, None),
        ([3.0, 1.0], 2, 2, 1.5),
        ([], 1, 1, 0),
    ],
)
def test_the_number_that_would_fit_does(
    nodes: list[float], num_cpus: float, n_actors: int, fits: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [{"Alive": True, "Resources": {"CPU": cpus}} for cpus in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [*there, {"Alive": False, "Resources": {"CPU": 99.0}}])
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 99.0})
    env = RayVecEnv.__new__(RayVecEnv)
    env.num_cpus, env._parts = num_cpus, [range(1)] * n_actors
    if fits is None:
        env._check_room()
        return
    with pytest.raises(ValueError, match=f"num_cpus={fits:g} would fit"):
        env._check_room()
    if fits:
        env.num_cpus = fits
        env._check_room()


def test_processors_that_are_free_are_not_waited_for(recwarn: pytest.WarningsRecorder) -> None:
    for _ in range(3):
        RayVecEnv([Plain, Plain], num_cpus=1.5, timeout=300).close()
    assert not [str(one.message) for one in recwarn if "num_cpus" in str(one.message)]


@pytest.mark.parametrize("address", [None, "local", "ray://1.2.3.4:5"])
def test_where_ray_is_started_it_is_without_its_dashboard(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **kwargs: given.append(kwargs))
    connect(address)
    assert given == [{"address": address, "include_dashboard": False}]
