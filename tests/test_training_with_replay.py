"""What PerDoubleDQN and its replay memory do together: n-step returns, frames, breaks, memory, and what is logged."""

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, TimeLimit
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_per_dqn import DeviceReplayBuffer, PerDoubleDQN, PrioritizedReplayBuffer, make_atari_vec_env
from sb3_per_dqn.replay import prioritized_buffer
from sb3_per_dqn.replay.frame_store import FrameStore
from sb3_per_dqn.replay.observation_store import ArrayStore
from sb3_per_dqn.replay.statistics import DrawStatistics, priority_statistics

GAMMA = 0.9


class Corridor(gym.Env[Any, int]):
    """The same observation everywhere, so that it never tells where a segment ends. The reward counts the steps."""

    observation_space: Any = spaces.Discrete(2)
    action_space: Any = spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return 1, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return 1, float(self.steps), self.steps % 11 == 0, False, {}


class Frames(gym.Env[Any, int]):
    """Random pictures of one channel."""

    action_space: Any = spaces.Discrete(3)

    def __init__(self, shape: tuple[int, ...] = (36, 36, 1)) -> None:
        self.observation_space: Any = spaces.Box(0, 255, shape, dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 1.0, bool(self.np_random.random() < 0.1), False, {}


class DictFrames(gym.ObservationWrapper[Any, Any, Any]):
    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"image": env.observation_space, "speed": spaces.Box(-1, 1, (2,))})

    def observation(self, observation: Any) -> Any:
        return {"image": observation, "speed": np.array([0.5, -0.5], dtype=np.float32)}


def make(env: VecEnv, policy: str = "MlpPolicy", **kwargs: Any) -> PerDoubleDQN:
    arguments: dict[str, Any] = {
        "learning_starts": 20,
        "batch_size": 16,
        "buffer_size": 240,
        "train_freq": 2,
        "gamma": GAMMA,
        "seed": 1,
        "device": "cpu",
        "policy_kwargs": {"net_arch": [8]},
        **kwargs,
    }
    return PerDoubleDQN(policy, env, **arguments)


def buffer_of(model: PerDoubleDQN) -> PrioritizedReplayBuffer:
    assert isinstance(model.replay_buffer, PrioritizedReplayBuffer)
    return model.replay_buffer


def store_of(model: PerDoubleDQN) -> Any:
    return buffer_of(model)._store


def every_slot(buffer: PrioritizedReplayBuffer) -> tuple[np.ndarray, Any]:
    """:return: serial numbers of all transitions that can be drawn, and these transitions"""
    slots = np.flatnonzero(buffer._priorities.values)
    return buffer._serial_numbers(slots), buffer._get_samples(slots)


class Stop(BaseCallback):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def _on_step(self) -> bool:
        return self.n_calls < self.after


# -------------------------------------------------------------------------------------------------------------- n-step


def corridor() -> VecEnv:
    return make_vec_env(lambda: TimeLimit(Corridor(), 7), 2)


def stacked_frames() -> VecEnv:
    return VecFrameStack(make_vec_env(lambda: TimeLimit(Frames(), 6), 3, seed=0), 4)


def dict_of_frames() -> VecEnv:
    return make_vec_env(lambda: DictFrames(FrameStackObservation(TimeLimit(Frames((36, 36)), 6), 4)), 2, seed=0)


@pytest.mark.parametrize(
    ("env", "policy"), [(corridor, "MlpPolicy"), (stacked_frames, "CnnPolicy"), (dict_of_frames, "MultiInputPolicy")]
)
@pytest.mark.parametrize("train_freq", [1, 4])
def test_n_steps_just_work(env: Callable[[], VecEnv], policy: str, train_freq: int, tmp_path: Path) -> None:
    """From the first step on, with no warning and nothing ignored, through saving and loading."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make(env(), policy, n_steps=3, learning_starts=0, train_freq=train_freq)
        model.learn(60)
    assert (model.n_steps, buffer_of(model).n_steps, buffer_of(model).gamma) == (3, 3, GAMMA)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = PerDoubleDQN.load(tmp_path / "model", env=env(), device="cpu")
    assert (loaded.n_steps, buffer_of(loaded).n_steps) == (3, 3)
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(40, reset_num_timesteps=False)
    serials, transitions = every_slot(buffer_of(loaded))
    assert serials.max() > 60
    powers = {round(GAMMA**k, 6) for k in (1, 2, 3)}
    assert {round(value, 6) for value in transitions.discounts.ravel().tolist()} == powers


def test_targets_discount_by_what_was_summed() -> None:
    """Three rewards and gamma^3, or fewer and as many powers of gamma: what the network is trained towards."""
    model = make(corridor(), n_steps=3, learning_starts=100)
    model.learn(60)
    _, batch = every_slot(buffer_of(model))
    with th.no_grad():
        best = model.q_net(batch.next_observations).argmax(dim=1, keepdim=True)
        value = model.q_net_target(batch.next_observations).gather(1, best)
    expected = batch.rewards + (1 - batch.dones) * batch.discounts * value
    assert th.equal(model._target_q_values(batch), expected)


def test_the_returns_of_a_run_are_those_of_its_rewards() -> None:
    """TRAPS 18, 19: several environments, terminations, time limits; rewards count steps, and tell what is summed."""
    model = make(corridor(), n_steps=3, learning_starts=1000, buffer_size=1000)
    model.learn(200)
    serials, transitions = every_slot(buffer_of(model))
    done = buffer_of(model).dones
    for serial, reward, discount in zip(
        serials.tolist(), transitions.rewards.ravel().tolist(), transitions.discounts.ravel().tolist(), strict=True
    ):
        step, env = divmod(serial, 2)
        length = next((k + 1 for k in range(3) if done[step + k, env]), 3)
        assert reward == pytest.approx(sum(GAMMA**k * (step + 1 + k) for k in range(length)))
        assert discount == pytest.approx(GAMMA**length)
    assert sorted(serials) == [
        serial for serial in range(200) if serial < 196 or done[serial // 2 : 100, serial % 2].any()
    ]


@pytest.mark.parametrize("how", ["learn again", "callback", "set_env", "load"])
def test_nothing_crosses_a_break(how: str, tmp_path: Path) -> None:
    """TRAPS 18: where the observation cannot tell, as it is always the same, the algorithm does."""
    model = make(corridor(), n_steps=3, learning_starts=1000)
    model.learn(8, callback=Stop(4) if how == "callback" else None)
    steps = buffer_of(model).pos
    if how == "set_env":
        model.set_env(corridor())
    if how == "load":
        model.save_replay_buffer(tmp_path / "buffer")
        model.learn(2, reset_num_timesteps=False)
        model.load_replay_buffer(tmp_path / "buffer")
    model.learn(8, reset_num_timesteps=how == "learn again")
    serials, transitions = every_slot(buffer_of(model))
    lengths = dict(zip(serials.tolist(), np.log(transitions.discounts.numpy().ravel()) / np.log(GAMMA), strict=True))
    for env in (0, 1):
        last = (steps - 1) * 2 + env
        assert [round(float(lengths[serial])) for serial in (last - 4, last - 2, last)] == [3, 2, 1]
    assert transitions.dones.sum() == 0


def test_no_break_where_learning_goes_on() -> None:
    model = make(corridor(), n_steps=3, learning_starts=1000)
    model.learn(8)
    model.learn(4, reset_num_timesteps=False)
    serials, transitions = every_slot(buffer_of(model))
    assert sorted(serials) == list(range(8))
    assert th.allclose(transitions.discounts, th.full((8, 1), GAMMA**3))


def test_a_loaded_buffer_that_differs_from_the_model_is_named(tmp_path: Path) -> None:
    model = make(corridor(), n_steps=3, prioritized_replay_alpha=0.4)
    model.learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make(corridor())
    with pytest.warns(UserWarning, match="differs.*PrioritizedReplayBuffer, alpha=0.4, n_steps=3"):
        other.load_replay_buffer(tmp_path / "buffer")
    theirs = DQN("MlpPolicy", corridor(), buffer_size=50, device="cpu")
    theirs.save_replay_buffer(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="differs.* ReplayBuffer, .*alpha=None"):
        other.load_replay_buffer(tmp_path / "theirs")
    n_step = make(corridor(), prioritized_replay=False, n_steps=3)
    n_step.save_replay_buffer(tmp_path / "n_step")
    with pytest.warns(UserWarning, match="differs.* NStepReplayBuffer, buffer_size=.*, n_steps=3"):
        make(corridor(), prioritized_replay=False, n_steps=2, buffer_size=60).load_replay_buffer(tmp_path / "n_step")
    of_memory = make(corridor(), prioritized_replay_normalize_weights="memory")
    of_memory.save_replay_buffer(tmp_path / "of_memory")
    with pytest.warns(UserWarning, match="differs.*PrioritizedReplayBuffer, normalize_weights=memory.$"):
        make(corridor()).load_replay_buffer(tmp_path / "of_memory")
    one_step = make(corridor(), gamma=0.5)
    one_step.save_replay_buffer(tmp_path / "one_step")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(corridor()).load_replay_buffer(tmp_path / "one_step")  # whose discount is the model's
    single = make(make_vec_env(Corridor, 1))
    before = single.replay_buffer
    with pytest.raises(ValueError, match="a buffer of 2 environments, and the model has 1"):
        single.load_replay_buffer(tmp_path / "buffer")
    assert single.replay_buffer is before


@pytest.mark.parametrize("env", ["Acrobot-v1", "MountainCar-v0"])
def test_a_loaded_buffer_of_another_environment_is_refused(env: str, tmp_path: Path) -> None:
    model = make(make_vec_env("CartPole-v1", 2))
    model.save_replay_buffer(tmp_path / "buffer")
    other = make(make_vec_env(env, 2))
    before = other.replay_buffer
    with pytest.raises(ValueError, match=r"buffer: a buffer for Box\(.*\(4,\), float32\), and the model has Box"):
        other.load_replay_buffer(tmp_path / "buffer")
    assert other.replay_buffer is before


def test_a_loaded_buffer_of_other_actions_is_refused(tmp_path: Path) -> None:
    model = make(make_vec_env("CartPole-v1", 2))
    assert model.replay_buffer is not None
    model.replay_buffer.action_space = spaces.Discrete(5)
    model.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"a buffer for Discrete\(5\), and the model has Discrete\(2\)"):
        make(make_vec_env("CartPole-v1", 2)).load_replay_buffer(tmp_path / "buffer")


# -------------------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("compress_frames", [False, True])
def test_frames_are_kept_once_by_themselves(compress_frames: bool) -> None:
    env = stacked_frames()
    model = make(env, "CnnPolicy", replay_buffer_kwargs={"compress_frames": compress_frames})
    model.learn(60)
    assert env.observation_space.shape == (36, 36, 4)
    assert isinstance(store_of(model)._store, FrameStore)


def test_a_dict_of_frames() -> None:
    model = make(dict_of_frames(), "MultiInputPolicy")
    model.learn(60)
    kinds = {key: type(store._store) for key, store in store_of(model)._stores.items()}
    assert kinds == {"image": FrameStore, "speed": ArrayStore}


def test_pictures_that_are_no_stacks_are_kept_whole() -> None:
    model = make(make_vec_env(lambda: Frames((36, 36, 3)), 2, seed=0), "CnnPolicy")
    model.learn(60)
    assert isinstance(store_of(model)._store, ArrayStore)


def test_demanded_frames_that_are_none_end_the_run_in_one_line() -> None:
    env = make_vec_env(lambda: Frames((36, 36, 3)), 2, seed=0)
    model = make(env, "CnnPolicy", replay_buffer_kwargs={"single_frames": True})
    with pytest.raises(
        ValueError, match="at step 0 of the buffer the observation of environment 0 is no sliding stack"
    ):
        model.learn(60)


def test_vec_normalize_with_frames_and_n_steps() -> None:
    """Observations are normalized when they are read: what is stored are the frames as they were."""
    env = VecNormalize(stacked_frames(), norm_obs=True, norm_reward=True)
    model = make(env, "MlpPolicy", n_steps=2)
    model.learn(100)
    batch = buffer_of(model).sample(50, env=env)
    assert isinstance(batch.observations, th.Tensor)
    assert batch.observations.dtype == th.float32
    assert batch.observations.min() < -0.5


def recorded_steps(env: VecEnv, model: PerDoubleDQN, steps: int) -> dict[tuple[int, int], tuple[Any, ...]]:
    """Play, store, and keep what was stored, as whole observations."""
    record: dict[tuple[int, int], tuple[Any, ...]] = {}
    add = buffer_of(model).add

    def recording_add(obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        number = len(record) // env.num_envs
        for i in range(env.num_envs):
            timeout = infos[i].get("TimeLimit.truncated", False)
            record[number, i] = (obs[i].copy(), next_obs[i].copy(), float(reward[i]), bool(done[i]), timeout)
        add(obs, next_obs, action, reward, done, infos)

    buffer_of(model).add = recording_add  # type: ignore[method-assign]
    model.learn(steps)
    return record


@pytest.mark.slow
@pytest.mark.parametrize("compress_frames", [False, True])
def test_every_slot_of_a_breakout_run(compress_frames: bool) -> None:
    """
    TRAPS 17, 18, 20, 21: 20,000 steps of the real game in eight processes, with a time limit in every other game. Every
    transition that can be drawn, after the ring has wrapped, is what the emulators sent, bit by bit.
    """
    env = make_atari_vec_env(
        "BreakoutNoFrameskip-v4", 8, seed=0, env_kwargs={"max_num_frames_per_episode": 900}, vec_env_cls=SubprocVecEnv
    )
    model = PerDoubleDQN(
        "CnnPolicy",
        env,
        buffer_size=12_000,
        learning_starts=10**6,
        n_steps=3,
        gamma=GAMMA,
        seed=0,
        device="cpu",
        exploration=1.0,
        replay_buffer_kwargs={"single_frames": True, "compress_frames": compress_frames},
    )
    record = recorded_steps(env, model, 20_000)
    env.close()
    serials, batch = every_slot(buffer_of(model))
    assert len(record) == 20_000
    assert len(serials) >= 12_000 - 2 * 8
    kinds = set()
    for i, serial in enumerate(serials.tolist()):
        window = []
        for k in range(3):
            window.append(record[serial // 8 + k, serial % 8])
            if window[-1][3]:
                break
        last_next_obs, done, timeout = window[-1][1], window[-1][3], window[-1][4]
        assert np.array_equal(batch.observations[i], window[0][0])
        assert batch.rewards[i].item() == pytest.approx(sum(GAMMA**k * step[2] for k, step in enumerate(window)))
        assert batch.discounts[i].item() == pytest.approx(GAMMA ** len(window))
        assert bool(batch.dones[i]) == (done and not timeout)
        if not batch.dones[i]:
            assert np.array_equal(batch.next_observations[i], last_next_obs)
        kinds.add((len(window), done, timeout))
    assert {(3, False, False), (1, True, False), (1, True, True)} <= kinds


# -------------------------------------------------------------------------------------------------------------- memory


def test_memory_that_will_not_fit_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prioritized_buffer, "available_memory", lambda device: 10**6)
    model = make(stacked_frames(), "CnnPolicy", buffer_size=90_000)
    with pytest.raises(ValueError, match=r"^buffer_size=90000 needs 0.121 GB of memory.*buffer_size=6\d\d would fit"):
        model.learn(10**6)
    assert model.num_timesteps == 0
    model.learn(30)  # which needs less


def test_a_fallback_that_will_not_fit_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """As stacks of three it would fit; what the first step shows to be whole pictures does not."""
    monkeypatch.setattr(prioritized_buffer, "available_memory", lambda device: 3 * 10**6)
    model = make(make_vec_env(lambda: Frames((36, 36, 3)), 2, seed=0), "CnnPolicy", buffer_size=1000)
    with pytest.raises(ValueError, match=r"^buffer_size=1000 needs 0.00782 GB of memory"):
        model.learn(1000)
    assert model.num_timesteps == 2
    assert buffer_of(model).size() == 0


def test_a_buffer_too_small_for_its_windows() -> None:
    model = make(make_vec_env(Corridor, 10), n_steps=5, buffer_size=40)
    with pytest.raises(ValueError, match=r"^buffer_size=40 holds 4 steps of 10 environments, fewer than n_steps=5"):
        model.learn(100)
    assert model.num_timesteps == 0


def test_compression_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lz4.block", None)
    model = make(stacked_frames(), "CnnPolicy", replay_buffer_kwargs={"compress_frames": True})
    with pytest.raises(ValueError, match=r"^compress_frames=True needs lz4: pip install 'sb3-per-dqn\[compression\]'"):
        model.learn(100)
    assert model.num_timesteps == 0


@pytest.mark.parametrize("handle_timeout_termination", [True, False])
def test_optimize_memory_usage_changes_nothing(handle_timeout_termination: bool) -> None:
    """
    SB3's memory shares what we do not share, so a second learn() must truncate its last trajectory. Ours says the same
    and learns the same, without a termination that never happened.
    """
    models = []
    for optimize in (False, True):
        timeouts = {"handle_timeout_termination": handle_timeout_termination}
        model = make(corridor(), optimize_memory_usage=optimize, replay_buffer_kwargs=timeouts, learning_starts=0)
        model.learn(40)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.learn(36, reset_num_timesteps=False)
            assert not caught
            model.learn(40)
        assert ["will be truncated" in str(warning.message) for warning in caught] == [True] * optimize
        models.append(model)
    plain, optimized = models
    for name, weights in plain.policy.state_dict().items():
        assert th.equal(weights, optimized.policy.state_dict()[name]), name
    slots = np.arange(116)
    dones, others = (buffer_of(model)._get_samples(slots).dones for model in models)
    assert th.equal(dones, others)
    assert not dones[74:76].any()  # the last transitions before the reset


# ---------------------------------------------------------------------------------------------------------- statistics


def test_what_the_buffer_knows_about_itself_is_logged(tmp_path: Path) -> None:
    model = make(corridor(), n_steps=2, learning_starts=0)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(100, log_interval=1)
    with open(tmp_path / "progress.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["replay/age"]]  # not if nothing was drawn since the last row
    logged = {name.removeprefix("replay/"): float(value) for name, value in rows[-1].items() if "replay/" in name}
    assert logged.keys() == buffer_of(model).statistics().keys()
    assert 0 < logged["effective_sample_size"] <= 1
    assert 0 < logged["max_weight"] <= 1
    assert 0 <= logged["age"] < 100
    assert 0.5 < logged["replayed"] <= 1
    assert 0 < logged["priority_q10"] <= logged["priority_q50"] <= logged["priority_q90"]
    assert logged["gigabytes"] * 1e9 == pytest.approx(buffer_of(model).nbytes, rel=1e-3)


def test_statistics_by_hand() -> None:
    statistics = DrawStatistics()
    assert statistics.summary() == {}
    statistics.record(np.array([1.0, 1.0, 1.0, 1.0], dtype=np.float32), np.array([0, 1, 2, 3]))
    statistics.record(np.array([0.6, 0.0, 0.0, 0.2], dtype=np.float32), np.array([4, 4, 4, 10]))
    summary = statistics.summary()
    assert summary["effective_sample_size"] == pytest.approx((1 + 0.64 / 0.4 / 4) / 2)
    assert (summary["max_weight"], summary["age"]) == (1.0, 3.5)
    assert statistics.summary() == {}
    priorities = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    learned = np.array([0.0, 0.0, 2.0, 0.0, 4.0, 0.0])
    assert priority_statistics(priorities, learned) == pytest.approx(
        {"replayed": 0.4, "priority_q10": 1.4, "priority_q50": 3.0, "priority_q90": 4.6}
    )
    assert priority_statistics(np.zeros(3), np.zeros(3))["replayed"] == 0.0
    # of many, a part: of all environments, however these are interleaved
    for n_envs in (2, 4, 8):
        priorities = np.arange(80_000.0) % n_envs + 1
        quantiles = priority_statistics(priorities, priorities)
        assert quantiles["priority_q10"] == 1.0
        assert quantiles["priority_q90"] == n_envs


@pytest.mark.parametrize("make_buffer", [PrioritizedReplayBuffer, DeviceReplayBuffer])
def test_statistics_are_of_what_is_stored(make_buffer: type[PrioritizedReplayBuffer]) -> None:
    """However little that is of a large buffer: empty slots are neither counted nor looked at."""
    space = spaces.Box(-1, 1, (2,))
    buffer = make_buffer(500_000, space, spaces.Discrete(2), "cpu", n_envs=2, alpha=1.0, eps=1e-9)
    obs = np.zeros((2, 2), dtype=np.float32)
    for step in range(3):
        buffer.add(obs + step, obs + step + 1, np.zeros(2), np.zeros(2), np.zeros(2, dtype=bool), [{}, {}])
    indices = buffer.sample(100).indices
    numbers = np.arange(1, 6) if isinstance(indices, np.ndarray) else th.arange(1, 6)
    buffer.update_priorities(numbers, th.arange(1.0, 6.0))
    statistics = buffer.statistics()
    assert statistics["replayed"] == pytest.approx(5 / 6)
    quantiles = [statistics[f"priority_{name}"] for name in ("q10", "q50", "q90")]
    assert quantiles == pytest.approx(np.quantile([1, 1, 2, 3, 4, 5], [0.1, 0.5, 0.9]))
