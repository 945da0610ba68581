"""
The prioritized buffer's transitions against SB3's own buffers, and what comes with them from where they were made.

"TRAPS" numbers the faults of earlier prioritized-replay implementations that these tests exclude.
"""

import pickle
import tracemalloc
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_per_dqn import DeviceReplayBuffer, PrioritizedReplayBuffer
from sb3_per_dqn.replay.prioritized_buffer import TD_ERROR
from tests.pair_buffers import N_ACTIONS, PAIR_SPACE, RandomStreams, filled_buffer, pair_buffer

IMAGE_SPACE = spaces.Box(0, 255, (3, 6, 5), dtype=np.uint8)
SPACES: dict[str, spaces.Space[Any]] = {
    "float box": spaces.Box(-1, 1, (4,)),
    "double box": spaces.Box(-1, 1, (2, 3), dtype=np.float64),
    "uint8 image": IMAGE_SPACE,
    "discrete": spaces.Discrete(9),
    "multi-discrete": spaces.MultiDiscrete([3, 4, 5]),
    "multi-binary": spaces.MultiBinary(5),
    "multi-binary grid": spaces.MultiBinary([2, 3]),
    "dict": spaces.Dict({"image": IMAGE_SPACE, "box": spaces.Box(-1, 1, (2,)), "room": spaces.Discrete(9)}),
}


def stacked(space: spaces.Space[Any], n_envs: int) -> Any:
    """Observations as a VecEnv returns them."""
    if isinstance(space, spaces.Dict):
        return {key: stacked(part, n_envs) for key, part in space.spaces.items()}
    return np.stack([np.asarray(space.sample()) for _ in range(n_envs)])


def assert_same_tensors(mine: Any, other: Any) -> None:
    if isinstance(other, dict):
        assert mine.keys() == other.keys()
        for key in other:
            assert_same_tensors(mine[key], other[key])
    else:
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        assert th.equal(mine, other)


def ours_and_theirs(space: spaces.Space[Any], **kwargs: Any) -> tuple[PrioritizedReplayBuffer, ReplayBuffer]:
    """Both with the same transitions; one environment, so that SB3's buffer does not draw one itself."""
    space.seed(0)
    rng = np.random.default_rng(0)
    arguments: dict[str, Any] = {"device": "cpu", "n_envs": 1, **kwargs}
    ours = PrioritizedReplayBuffer(8, space, spaces.Discrete(N_ACTIONS), **arguments)
    theirs_class: type[Any] = DictReplayBuffer if isinstance(space, spaces.Dict) else ReplayBuffer
    theirs = theirs_class(8, space, spaces.Discrete(N_ACTIONS), **arguments)
    for step in range(13):
        transition = (stacked(space, 1), stacked(space, 1), rng.integers(N_ACTIONS, size=1), rng.normal(size=1))
        done = np.array([step % 3 == 0])
        infos = [{"TimeLimit.truncated": step % 6 == 0}]
        for buffer in (ours, theirs):
            buffer.add(*transition, done, infos)
    return ours, theirs


@pytest.mark.parametrize("handle_timeout_termination", [True, False])
@pytest.mark.parametrize("name", SPACES)
def test_every_field_equals_sb3s(name: str, handle_timeout_termination: bool) -> None:
    """TRAPS 19, 20: bit for bit, in dtype and shape, for every kind of observation."""
    ours, theirs = ours_and_theirs(SPACES[name], handle_timeout_termination=handle_timeout_termination)
    mine = ours.sample(100)
    assert set(mine.indices) == set(range(5, 13))
    other = theirs._get_samples(mine.indices % 8)
    for field in ("observations", "actions", "next_observations", "dones", "rewards"):
        assert_same_tensors(getattr(mine, field), getattr(other, field))
    assert mine.discounts is None
    assert other.discounts is None


class SpaceEnv(gym.Env[Any, int]):
    action_space: Any = spaces.Discrete(N_ACTIONS)

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space = space


@pytest.mark.parametrize("name", ["float box", "double box", "dict"])
def test_vec_normalize_is_applied_as_sb3_does(name: str) -> None:
    space = SPACES[name]
    ours, theirs = ours_and_theirs(space)
    keys = ["box"] if isinstance(space, spaces.Dict) else None
    vec_normalize = VecNormalize(DummyVecEnv([lambda: SpaceEnv(space)]), norm_obs_keys=keys, clip_reward=0.5)
    for _ in range(20):
        observations = stacked(space, 4)
        if isinstance(vec_normalize.obs_rms, dict):
            vec_normalize.obs_rms["box"].update(observations["box"])
        else:
            vec_normalize.obs_rms.update(observations)
    vec_normalize.ret_rms.update(np.array([3.0, -4.0, 5.0]))
    mine = ours.sample(100, env=vec_normalize)
    other = theirs._get_samples(mine.indices % 8, env=vec_normalize)
    for field in ("observations", "actions", "next_observations", "dones", "rewards"):
        assert_same_tensors(getattr(mine, field), getattr(other, field))
    raw = ours.sample(100)
    assert raw.rewards.abs().max() > mine.rewards.abs().max()  # otherwise nothing was compared


def test_observations_of_another_shape_are_refused() -> None:
    """Channels last has as many numbers as channels first, but is another image."""
    buffer = PrioritizedReplayBuffer(4, IMAGE_SPACE, spaces.Discrete(2), device="cpu")
    image = np.zeros((1, 6, 5, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="shape"):
        buffer.add(image, image, np.zeros(1), np.zeros(1), np.zeros(1), [{}])


def test_all_environments_are_reached() -> None:
    """TRAPS 17: with equal priorities each has its share of the draws, and returns its own observations."""
    np.random.seed(0)
    buffer = filled_buffer(60, 4)
    batch = buffer.sample(40_000)
    assert isinstance(batch.observations, th.Tensor)
    assert (batch.observations[:, 0].numpy() == batch.indices % 4).all()
    assert np.bincount(batch.indices % 4) / 40_000 == pytest.approx(np.full(4, 0.25), abs=0.015)


@pytest.mark.parametrize(
    ("buffer_size", "n_envs", "capacity"), [(1, 1, 1), (10, 3, 9), (2, 5, 5), (1, 4, 4), (12, 4, 12)]
)
def test_capacity_is_a_whole_number_of_rows(buffer_size: int, n_envs: int, capacity: int) -> None:
    """As in SB3's buffers: rounded down, but at least a row."""
    buffer = filled_buffer(buffer_size, n_envs, rows=20)
    theirs = ReplayBuffer(buffer_size, PAIR_SPACE, spaces.Discrete(2), n_envs=n_envs, device="cpu")
    assert buffer.buffer_size == theirs.buffer_size == buffer.size()
    assert buffer.capacity == capacity
    assert set(buffer.sample(500).indices) == set(range(20 * n_envs - capacity, 20 * n_envs))


def test_position_and_fullness_are_sb3s() -> None:
    buffer = pair_buffer(6, 2)
    theirs = ReplayBuffer(6, PAIR_SPACE, spaces.Discrete(2), n_envs=2, device="cpu")
    streams = RandomStreams(2, seed=0)
    nothing: Any = (np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(2), np.zeros(2), np.zeros(2), [{}, {}])
    for _ in range(8):
        assert (buffer.pos, buffer.full, buffer.size()) == (theirs.pos, theirs.full, theirs.size())
        streams.step(buffer)
        theirs.add(*nothing)


def test_a_copy_goes_on_as_the_original() -> None:
    """TRAPS 24: priorities, maximum priority, position and serial numbers survive a pickle."""
    buffer, streams = pair_buffer(10, 2), RandomStreams(2, seed=0)
    for _ in range(8):
        streams.step(buffer)
    buffer.update_priorities(np.arange(6, 16), np.linspace(2, 3, 10))
    twin = pickle.loads(pickle.dumps(buffer))
    streams.step(buffer, twin)
    np.random.seed(0)
    mine = buffer.sample(50, beta=0.5)
    np.random.seed(0)
    other = twin.sample(50, beta=0.5)
    for field, value in mine._asdict().items():
        assert value is None or np.array_equal(value, getattr(other, field))
    assert twin.max_priority == buffer.max_priority == pytest.approx(3.0**0.6, rel=1e-5)


def test_no_storage_before_the_first_transition() -> None:
    """A million stacked Atari frames would be 56 GB."""
    frames = spaces.Box(0, 255, (4, 84, 84), dtype=np.uint8)
    tracemalloc.start()
    try:
        buffer = PrioritizedReplayBuffer(1_000_000, frames, spaces.Discrete(4), device="cpu", n_envs=8)
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()
    assert buffer.size() == 0
    assert pickle.loads(pickle.dumps(buffer)).size() == 0


# --------------------------------------------------------------------------------------- TD errors and ends of segments


def line(buffer_class: type[PrioritizedReplayBuffer], n_steps: int) -> PrioritizedReplayBuffer:
    return buffer_class(40, PAIR_SPACE, spaces.Discrete(2), "cpu", n_envs=2, n_steps=n_steps, alpha=0.5, eps=0.25)


def add_line(buffer: PrioritizedReplayBuffer, steps: range, errors: Any = None) -> None:
    """Two environments that go on for ever; ``errors`` of each step and environment, where one is known."""
    for step in steps:
        obs = np.array([[0, step], [1, step]], dtype=np.float32)
        infos = [{} if errors is None else {TD_ERROR: errors[step, env]} for env in range(2)]
        buffer.add(obs, obs + np.array([0, 1]), np.zeros(2, int), np.zeros(2), np.zeros(2, bool), infos)


def priorities_of(buffer: Any) -> Any:
    values = buffer._priorities.values
    return np.asarray(values, dtype=np.float64).reshape(-1, 2)


@pytest.mark.parametrize("buffer_class", [PrioritizedReplayBuffer, DeviceReplayBuffer])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_known_td_error_is_the_priority_of_a_new_transition(buffer_class: Any, n_steps: int) -> None:
    buffer = line(buffer_class, n_steps)
    errors = np.random.default_rng(0).normal(size=(70, 2))
    errors[[5, 60, 65], [0, 1, 1]] = np.nan, np.inf, np.nan  # as if it were not known
    add_line(buffer, range(70), errors)
    expected = (np.abs(errors) + 0.25) ** 0.5
    expected[~np.isfinite(expected)] = 1.0  # nothing was learned from yet
    newest = 70 - (n_steps - 1)
    for step in range(70 - 20, newest):
        np.testing.assert_allclose(priorities_of(buffer)[step % 20], expected[step])
    assert not priorities_of(buffer)[[step % 20 for step in range(newest, 70)]].any()
    buffer.end_segments(np.array([False, True]))  # of one environment alone
    for step in range(newest, 70):
        np.testing.assert_allclose(priorities_of(buffer)[step % 20], [0, expected[step, 1]])


def test_a_segment_ends_where_it_is_said_to() -> None:
    buffer = line(PrioritizedReplayBuffer, 3)
    add_line(buffer, range(2))
    buffer.end_segments(np.array([True, False]))
    add_line(buffer, range(2, 6))  # as observations alone have it, everything goes on
    drawn = buffer._get_samples(np.flatnonzero(buffer._priorities.values))
    ends = dict(zip(map(tuple, drawn.observations.tolist()), drawn.next_observations[:, 1].tolist(), strict=True))
    assert [ends[0, step] for step in range(4)] == [2, 2, 5, 6]
    assert [ends[1, step] for step in range(4)] == [3, 4, 5, 6]


def test_a_td_error_that_is_no_number_leaves_nothing_behind() -> None:
    buffer = PrioritizedReplayBuffer(8, spaces.Box(0, 1, (2,)), spaces.Discrete(2))
    one = np.ones((1, 2), np.float32)
    given = one, one, np.array([0]), np.array([0.5]), np.array([False])
    buffer.add(*given, [{}])
    with pytest.raises(ValueError, match="could not convert"):
        buffer.add(*given, [{TD_ERROR: "large"}])
    assert buffer.size() == 1
    assert buffer.actions[1] == 0
    buffer.add(*given, [{TD_ERROR: 3.0}])
    assert buffer._priorities.values[:3].tolist() == [1.0, (3.0 + 1e-6) ** 0.6, 0.0]
