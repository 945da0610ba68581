"""
The prioritized buffer against a naive one of dicts and loops, and against SB3's own buffers on the same transitions.

"TRAPS" numbers the faults of earlier prioritized-replay implementations that these tests exclude.
"""

import copy
import math
import pickle
import tracemalloc
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_per_dqn import DeviceReplayBuffer, PrioritizedReplayBuffer
from sb3_per_dqn.replay import memory as memory_module
from sb3_per_dqn.replay import prioritized_buffer
from sb3_per_dqn.replay.memory import available_memory
from sb3_per_dqn.replay.prioritized_buffer import TD_ERROR, PrioritizedReplayBufferSamples

SOAK_OPERATIONS = 20_000
META = th.device("meta")  # a device that is not the CPU, on every machine
N_ACTIONS = 7
PAIR_SPACE = spaces.Box(-np.inf, np.inf, (2,))  # environment, number of the observation


class Transition(NamedTuple):
    env: int
    obs: list[float]
    next_obs: list[float]
    action: int
    reward: float
    done: bool  # by a true termination


class RandomStreams:
    """Environments whose observations are all different; their episodes end at random, also by a time limit."""

    def __init__(self, n_envs: int, seed: int) -> None:
        self.n_envs = n_envs
        self.rng = np.random.default_rng(seed)
        self.numbers = count()
        self.last_obs = self._observe()

    def _observe(self) -> np.ndarray:
        return np.array([[env, next(self.numbers)] for env in range(self.n_envs)], dtype=np.float32)

    def step(self, *buffers: PrioritizedReplayBuffer) -> list[Transition]:
        """Make one step, add it to the buffers, spoil the arrays that they were given, and say what happened."""
        obs, next_obs = self.last_obs, self._observe()
        actions = self.rng.integers(N_ACTIONS, size=self.n_envs)
        rewards = self.rng.normal(size=self.n_envs).astype(np.float32)
        ends = self.rng.choice(["no", "terminated", "time limit"], size=self.n_envs, p=[0.6, 0.2, 0.2])
        dones = ends != "no"
        infos = [{"TimeLimit.truncated": end == "time limit"} if end != "no" else {} for end in ends]
        happened = [
            Transition(
                env,
                obs[env].tolist(),
                next_obs[env].tolist(),
                int(actions[env]),
                float(rewards[env]),
                end == "terminated",
            )
            for env, end in enumerate(ends)
        ]
        self.last_obs = np.where(dones[:, None], self._observe(), next_obs)
        given = (obs.copy(), next_obs, actions, rewards, dones)
        for buffer in buffers:
            buffer.add(*given, infos)
        for array in given:  # TRAPS 23
            array.fill(77)
        for info in infos:
            info.clear()
        return happened


class NaiveBuffer:
    """The definition: what is stored, by serial number, and its priorities p^alpha."""

    def __init__(self, buffer_size: int, n_envs: int, alpha: float, eps: float) -> None:
        self.capacity = max(buffer_size // n_envs, 1) * n_envs
        self.n_envs, self.alpha, self.eps = n_envs, alpha, eps
        self.transitions: dict[int, Transition] = {}
        self.priorities: dict[int, float] = {}
        self.learned: set[int] = set()
        self.max_priority = 1.0
        self.added = 0

    def largest_learned(self) -> float:
        return max((self.priorities[serial] for serial in self.learned), default=self.max_priority)

    def add(self, transitions: list[Transition]) -> None:
        self.max_priority = self.largest_learned()
        for transition in transitions:
            self.transitions[self.added] = transition
            self.priorities[self.added] = self.max_priority
            self.added += 1
        for serial in [serial for serial in self.transitions if serial < self.added - self.capacity]:
            del self.transitions[serial], self.priorities[serial]
            self.learned.discard(serial)

    def update(self, indices: list[int], td_errors: list[float]) -> None:
        for serial, td_error in zip(indices, td_errors, strict=True):
            if serial in self.transitions:
                self.priorities[serial] = math.pow(abs(td_error) + self.eps, self.alpha)
                self.learned.add(serial)

    def probabilities(self) -> dict[int, float]:
        total = math.fsum(self.priorities.values())
        return {serial: priority / total for serial, priority in self.priorities.items()}

    def weights(self, beta: float) -> dict[int, float]:
        weights = {serial: (len(self.transitions) * p) ** -beta for serial, p in self.probabilities().items()}
        return {serial: weight / max(weights.values()) for serial, weight in weights.items()}

    def check(self, batch: PrioritizedReplayBufferSamples, beta: float) -> None:
        """Every field of the batch belongs to the transitions that it names, and each of those is stored."""
        weights = self.weights(beta)
        assert isinstance(batch.observations, th.Tensor)
        assert isinstance(batch.next_observations, th.Tensor)
        for row, serial in enumerate(batch.indices.tolist()):
            drawn = Transition(
                env=serial % self.n_envs,
                obs=batch.observations[row].tolist(),
                next_obs=batch.next_observations[row].tolist(),
                action=int(batch.actions[row].item()),
                reward=batch.rewards[row].item(),
                done=bool(batch.dones[row].item()),
            )
            expected = self.transitions[serial]
            if drawn.done:  # what comes after a termination is never used, and arbitrary
                drawn = drawn._replace(next_obs=expected.next_obs)
            assert drawn == expected
            assert batch.weights[row].item() == pytest.approx(weights[serial], rel=1e-5, abs=1e-37)
        assert ((batch.weights > 0) & (batch.weights <= 1)).all()


def spoil(batch: PrioritizedReplayBufferSamples) -> None:
    """Overwrite everything that a batch consists of (TRAPS 23: the buffer must not notice)."""
    tensors = [batch.observations, batch.next_observations, batch.actions, batch.dones, batch.rewards, batch.weights]
    for tensor in tensors:
        for part in tensor.values() if isinstance(tensor, dict) else [tensor]:
            part.fill_(55)
    batch.indices.fill(-1)


def pair_buffer(
    buffer_size: int, n_envs: int = 1, make: type[PrioritizedReplayBuffer] = PrioritizedReplayBuffer, **kwargs: Any
) -> PrioritizedReplayBuffer:
    return make(buffer_size, PAIR_SPACE, spaces.Discrete(N_ACTIONS), device="cpu", n_envs=n_envs, **kwargs)


def filled_buffer(buffer_size: int, n_envs: int = 1, rows: int | None = None, **kwargs: Any) -> PrioritizedReplayBuffer:
    buffer = pair_buffer(buffer_size, n_envs, **kwargs)
    streams = RandomStreams(n_envs, seed=0)
    for _ in range(buffer.buffer_size if rows is None else rows):
        streams.step(buffer)
    return buffer


def relative_priorities(buffer: PrioritizedReplayBuffer, draws: int = 2000) -> dict[int, float]:
    """Stored priorities by serial number, up to a factor: what the weights of beta = 1 say."""
    batch = buffer.sample(draws, beta=1.0)
    return dict(zip(batch.indices.tolist(), (1 / batch.weights.numpy().astype(float)).ravel(), strict=True))


def shares(buffer: PrioritizedReplayBuffer, draws: int = 200_000) -> np.ndarray:
    """Share of draws by serial number."""
    indices = buffer.sample(draws).indices
    return np.bincount(indices) / draws


# ------------------------------------------------------------------------------------------- against the naive buffer


class BufferMachine(RuleBasedStateMachine):
    """
    TRAPS 8, 9, 13, 15, 16, 17, 19, 20, 22, 23, 24, 25: random adds, samples, updates and pickle round trips, in small
    rings that wrap many times, agree with the naive buffer.
    """

    @initialize(
        buffer_size=st.integers(1, 14),
        n_envs=st.integers(1, 5),
        alpha=st.sampled_from([0.0, 0.5, 0.6, 1.0]),
        eps=st.sampled_from([1e-6, 0.1]),
        seed=st.integers(0, 2**31),
    )
    def start(self, buffer_size: int, n_envs: int, alpha: float, eps: float, seed: int) -> None:
        np.random.seed(seed)
        self.buffer = pair_buffer(buffer_size, n_envs, alpha=alpha, eps=eps)
        self.naive = NaiveBuffer(buffer_size, n_envs, alpha, eps)
        self.streams = RandomStreams(n_envs, seed)

    @rule(steps=st.integers(1, 6))
    def add(self, steps: int) -> None:
        for _ in range(steps):
            self.naive.add(self.streams.step(self.buffer))

    @precondition(lambda self: self.naive.added > 0)
    @rule(batch_size=st.integers(1, 9), beta=st.sampled_from([0.0, 0.4, 1.0]))
    def sample(self, batch_size: int, beta: float) -> None:
        batch = self.buffer.sample(batch_size, beta=beta)
        assert len(batch.indices) == batch_size
        self.naive.check(batch, beta)
        spoil(batch)

    @precondition(lambda self: self.naive.added > 0)
    @rule(data=st.data(), as_tensor=st.booleans())
    def update(self, data: st.DataObject, as_tensor: bool) -> None:
        """Stale serial numbers and duplicates included."""
        newest = self.naive.added - 1
        serial = st.integers(max(0, newest - 2 * self.naive.capacity), newest)
        td_error = st.floats(-1e3, 1e3, width=32)
        pairs = data.draw(st.lists(st.tuples(serial, td_error), max_size=8))
        indices, td_errors = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        column = np.array(td_errors, dtype=np.float32).reshape(-1, 1)
        self.buffer.update_priorities(np.array(indices, dtype=np.int64), th.as_tensor(column) if as_tensor else column)
        self.naive.update(indices, td_errors)

    @precondition(lambda self: self.naive.added > 0)
    @rule(bad=st.sampled_from([math.nan, math.inf, -math.inf]), position=st.integers(0, 2))
    def update_with_a_bad_error(self, bad: float, position: int) -> None:
        td_errors = np.full(3, 9e3)
        td_errors[position] = bad
        with pytest.raises(ValueError, match=f"td_errors.{position}.*not finite"):
            self.buffer.update_priorities(np.full(3, self.naive.added - 1), td_errors)

    @rule(copier=st.sampled_from([copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))]))
    def save_and_load(self, copier: Any) -> None:
        self.buffer = copier(self.buffer)

    @invariant()
    def sizes_agree(self) -> None:
        assert self.buffer.capacity == self.naive.capacity
        assert self.buffer.size() * self.buffer.n_envs == len(self.naive.transitions)
        assert self.buffer.max_priority == pytest.approx(self.naive.largest_learned(), rel=1e-12)

    def teardown(self) -> None:
        if hasattr(self, "naive") and self.naive.added:
            self.naive.check(self.buffer.sample(64, beta=1.0), beta=1.0)


TestBufferMachine = BufferMachine.TestCase
TestBufferMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_soak() -> None:
    """TRAPS 25: many operations in random order, with hundreds of wraps, and nothing drifts."""
    np.random.seed(1)
    rng = np.random.default_rng(1)
    buffer, naive, streams = pair_buffer(32, 3), NaiveBuffer(32, 3, 0.6, 1e-6), RandomStreams(3, seed=1)
    naive.add(streams.step(buffer))
    batch_indices = np.zeros(1, dtype=np.int64)
    for operation in range(SOAK_OPERATIONS):
        choice = rng.integers(4)
        if choice == 0:
            naive.add(streams.step(buffer))
        elif choice == 1:
            batch = buffer.sample(8, beta=0.7)
            batch_indices = batch.indices.copy()
            naive.check(batch, beta=0.7)
            spoil(batch)
        elif choice == 2:  # some of these were overwritten meanwhile
            td_errors = rng.normal(size=batch_indices.size) * 10.0 ** rng.integers(-6, 4)
            buffer.update_priorities(batch_indices, td_errors)
            naive.update(batch_indices.tolist(), td_errors.tolist())
        elif operation % 50 == 0:
            buffer = pickle.loads(pickle.dumps(buffer))
    assert naive.added > 100 * naive.capacity
    assert buffer.max_priority == pytest.approx(naive.largest_learned(), rel=1e-12)
    naive.check(buffer.sample(500, beta=1.0), beta=1.0)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_transitions_are_drawn_in_proportion_to_their_priorities(alpha: float) -> None:
    """TRAPS 9, 13, 17: a chi-square test of the draws over three environments, after the ring has wrapped."""
    np.random.seed(4)
    buffer, naive, streams = pair_buffer(60, 3, alpha=alpha), NaiveBuffer(60, 3, alpha, 1e-6), RandomStreams(3, seed=2)
    for _ in range(27):
        naive.add(streams.step(buffer))
    serials = np.arange(naive.added - 50, naive.added)
    td_errors = np.random.default_rng(3).uniform(-2, 2, serials.size)
    buffer.update_priorities(serials, td_errors)
    naive.update(serials.tolist(), td_errors.tolist())
    draws = 200_000
    counts = np.bincount(buffer.sample(draws).indices, minlength=naive.added)
    assert counts[: naive.added - 60].sum() == 0
    expected = np.array([naive.probabilities()[serial] * draws for serial in range(naive.added - 60, naive.added)])
    statistic = ((counts[-60:] - expected) ** 2 / expected).sum()
    assert abs(statistic - 59) < 5 * math.sqrt(2 * 59)


# ---------------------------------------------------------------------------------------------- priorities and weights


def test_the_newest_transition_can_be_drawn_and_a_single_one_sampled() -> None:
    """TRAPS 6."""
    assert set(filled_buffer(10, rows=1).sample(32).indices) == {0}
    assert set(filled_buffer(1, rows=3).sample(32).indices) == {2}
    for rows in (4, 10, 17):  # partly full, just full, wrapped
        assert rows - 1 in filled_buffer(10, rows=rows).sample(1000).indices


@pytest.mark.parametrize("alpha", [0.5, 0.6, 1.0])
def test_priority_is_error_plus_eps_to_the_alpha(alpha: float) -> None:
    """TRAPS 9: (|delta| + eps)^alpha, with an eps so large that any other order shows."""
    buffer = filled_buffer(3, alpha=alpha, eps=0.5)
    buffer.update_priorities(np.arange(3), np.array([0.0, -1.5, 3.5]))
    priorities = relative_priorities(buffer)
    assert priorities[1] / priorities[0] == pytest.approx((2.0 / 0.5) ** alpha, rel=1e-6)
    assert priorities[2] / priorities[0] == pytest.approx((4.0 / 0.5) ** alpha, rel=1e-6)
    assert buffer.max_priority == pytest.approx(4.0**alpha, rel=1e-12)


def test_a_new_transition_enters_with_the_largest_learned_priority() -> None:
    """TRAPS 8: unrounded, of those stored now; the largest one leaves with its transition."""
    buffer, streams = pair_buffer(4, alpha=1.0, eps=1e-6), RandomStreams(1, seed=0)
    for _ in range(3):
        streams.step(buffer)
    assert buffer.max_priority == 1.0
    buffer.update_priorities(np.array([0, 1]), np.array([7.1234567891234, 0.25]))
    assert buffer.max_priority == 7.1234567891234 + 1e-6  # of what comes next, not of what came last
    streams.step(buffer)
    priorities = relative_priorities(buffer)
    assert priorities[3] == priorities[0]
    streams.step(buffer)  # in place of transition 0
    streams.step(buffer)  # in place of transition 1, the last from which was learned
    buffer.update_priorities(np.array([3]), np.array([0.5]))
    assert buffer.max_priority == 0.5 + 1e-6


def test_the_entry_priority_stays_when_nothing_learned_is_left() -> None:
    """TRAPS 8: with a single row every step overwrites all, and the last maximum known still holds."""
    buffer, streams = pair_buffer(1, alpha=1.0), RandomStreams(1, seed=0)
    streams.step(buffer)
    buffer.update_priorities(np.array([0]), np.array([5.0]))
    for _ in range(3):
        streams.step(buffer)
        assert buffer.max_priority == 5.0 + 1e-6


def test_what_was_stored_before_learning_keeps_its_share() -> None:
    """TRAPS 10: after the first update a tenth of the transitions has the errors' priority, and the rest still 1."""
    np.random.seed(0)
    buffer = filled_buffer(200)
    td_errors = np.linspace(0.5, 1.5, 20)
    buffer.update_priorities(np.arange(20), td_errors)
    expected = 180 / (180 + (td_errors**0.6).sum())
    assert shares(buffer)[20:].sum() == pytest.approx(expected, abs=0.005)
    assert shares(buffer)[20:].min() > 0.5 / 200


def test_new_transitions_do_not_swamp_small_errors() -> None:
    """TRAPS 11: the maximum was 1 once; with all errors near 1e-3, ten per cent new ones get some ten per cent."""
    np.random.seed(0)
    rng = np.random.default_rng(0)
    buffer, streams = pair_buffer(200), RandomStreams(1, seed=0)
    for _ in range(1000):
        streams.step(buffer)
        indices = buffer.sample(8).indices
        buffer.update_priorities(indices, rng.uniform(0.5e-3, 1.5e-3, 8))
    assert buffer.max_priority <= 1.6e-3**0.6
    for _ in range(20):
        streams.step(buffer)
    assert 0.05 < shares(buffer)[1000:].sum() < 0.2


@given(
    td_errors=st.lists(st.floats(0, 1e6), min_size=1, max_size=20),
    alpha=st.floats(0, 1),
    beta=st.floats(0, 1),
    normalize_weights=st.sampled_from(["memory", "batch"]),
    count=st.integers(1, 40),
)
@settings(max_examples=50, deadline=None)
def test_weights_equal_their_closed_form(
    td_errors: list[float], alpha: float, beta: float, normalize_weights: str, count: int
) -> None:
    """TRAPS 13: (N P(i))^-beta over the largest, of all or of the batch, float32 of shape (batch, 1), and in (0, 1]."""
    size = len(td_errors)
    buffer = filled_buffer(size, alpha=alpha, normalize_weights=normalize_weights)
    buffer.update_priorities(np.arange(size), np.array(td_errors))
    probabilities = (np.array(td_errors) + 1e-6) ** alpha
    probabilities /= probabilities.sum()
    weights = (size * probabilities) ** -beta
    batch = buffer.sample(count, beta=beta)
    weights /= (weights if normalize_weights == "memory" else weights[batch.indices]).max()
    assert batch.weights.shape == (count, 1)
    assert batch.weights.dtype == th.float32
    np.testing.assert_allclose(batch.weights.numpy().ravel(), weights[batch.indices], rtol=1e-5)
    assert ((batch.weights > 0) & (batch.weights <= 1)).all()


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (0.6, 0.0)])
def test_weights_are_one_without_prioritization_or_correction(alpha: float, beta: float) -> None:
    """TRAPS 13."""
    buffer = filled_buffer(50, alpha=alpha)
    buffer.update_priorities(np.arange(50), np.logspace(-6, 6, 50))
    assert (buffer.sample(500, beta=beta).weights == 1).all()


def test_weights_stay_above_zero_at_the_edge_of_float32() -> None:
    """TRAPS 13: p_min / p_i below the smallest float32 still is no weight of 0."""
    buffer = filled_buffer(2, alpha=1.0)
    buffer.update_priorities(np.arange(2), np.array([0.0, 1e60]))
    batch = buffer.sample(10, beta=1.0)
    assert (batch.indices == 1).all()
    assert (batch.weights > 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e305])
def test_a_bad_td_error_changes_nothing(bad: float) -> None:
    """TRAPS 15: one bad number in a batch of good ones; 1e305 is finite, but its sum with others would not be."""
    buffer = filled_buffer(6, 2, alpha=1.0)
    buffer.update_priorities(np.arange(6), np.arange(1.0, 7.0))
    before, maximum = relative_priorities(buffer), buffer.max_priority
    with pytest.raises(ValueError, match=r"td_errors\[2\]=|value 1e\+305"):
        buffer.update_priorities(np.array([0, 1, 2, 3]), np.array([50.0, 60.0, bad, 70.0]))
    assert relative_priorities(buffer) == before
    assert buffer.max_priority == maximum


def test_updates_of_overwritten_transitions_are_dropped() -> None:
    """TRAPS 16: the slot now belongs to another transition, whose priority stays."""
    buffer, streams = pair_buffer(6, 2, alpha=1.0), RandomStreams(2, seed=0)
    for _ in range(4):  # rows of two: transitions 0 and 1 are overwritten by 6 and 7
        streams.step(buffer)
    buffer.update_priorities(np.array([0, 1, 2]), np.array([1e6, 1e6, 3.0]))
    priorities = relative_priorities(buffer)
    assert set(priorities) == {2, 3, 4, 5, 6, 7}
    assert priorities[2] / priorities[6] == pytest.approx(3.0, rel=1e-5)
    assert priorities[6] == priorities[7] == priorities[3]
    assert buffer.max_priority == 3.0 + 1e-6


def test_the_last_of_several_updates_of_one_transition_counts() -> None:
    """TRAPS 5, at the buffer: priority, smallest priority and largest priority all follow it."""
    buffer = filled_buffer(2, alpha=1.0, eps=1e-9)
    buffer.update_priorities(np.array([0, 1, 0, 0]), np.array([100.0, 2.0, 0.001, 4.0]))
    assert buffer.max_priority == pytest.approx(4.0)
    priorities = relative_priorities(buffer)
    assert priorities[0] == pytest.approx(2.0)
    assert priorities[1] == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3)])
def test_td_errors_come_in_any_shape(shape: tuple[int, ...]) -> None:
    buffer, other = filled_buffer(3), filled_buffer(3)
    buffer.update_priorities(np.arange(3), np.arange(3.0).reshape(shape))
    other.update_priorities(np.arange(3), th.arange(3.0, requires_grad=True).reshape(shape))
    assert relative_priorities(buffer) == relative_priorities(other)


def test_reset_forgets_everything() -> None:
    buffer = filled_buffer(4)
    buffer.update_priorities(np.arange(4), np.full(4, 9.0))
    buffer.reset()
    assert buffer.size() == 0
    assert buffer.max_priority == 1.0
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(1)
    RandomStreams(1, seed=5).step(buffer)
    assert set(buffer.sample(10).indices) == {4}


@pytest.mark.parametrize("make", [PrioritizedReplayBuffer, DeviceReplayBuffer])
@pytest.mark.parametrize("added", [1, 3, 6])
def test_updates_of_what_was_forgotten_are_dropped(make: type[PrioritizedReplayBuffer], added: int) -> None:
    """TRAPS 16, after a reset: a serial number names the same transition for ever."""
    buffer = filled_buffer(5, make=make, alpha=1.0)
    old: Any = buffer.sample(100).indices
    buffer.reset()
    streams = RandomStreams(1, seed=5)
    for _ in range(added):
        streams.step(buffer)
    buffer.update_priorities(old, np.full(100, 9.0))
    assert buffer.max_priority == 1.0
    new: Any = buffer.sample(100).indices
    assert set(new.tolist()) == set(range(5 + max(added - 5, 0), 5 + added))
    buffer.update_priorities(new, np.full(100, 9.0))
    assert buffer._priorities.values[: min(added, 5)] == pytest.approx(9.0)


# --------------------------------------------------------------------------------------------------------- transitions

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


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf, "0.6", None, True])
def test_bad_alpha(alpha: Any) -> None:
    with pytest.raises(ValueError, match=r"^alpha=.*\[0, 1\]"):
        pair_buffer(4, alpha=alpha)


@pytest.mark.parametrize("eps", [0.0, -1e-6, math.nan, math.inf, "1e-6", None])
def test_bad_eps(eps: Any) -> None:
    with pytest.raises(ValueError, match=r"^eps=.*above 0"):
        pair_buffer(4, eps=eps)


@pytest.mark.parametrize("argument", ["single_frames", "compress_frames"])
@pytest.mark.parametrize("value", [0, 1, np.False_, "yes"])
def test_a_switch_is_a_bool(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{argument}="):
        pair_buffer(4, **{argument: value})


@pytest.mark.parametrize("value", ["all", None, True])
def test_bad_normalization(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^normalize_weights=.*memory or batch"):
        pair_buffer(4, normalize_weights=value)


def test_weights_of_the_batch_need_no_third_tree() -> None:
    of_memory, of_batch = filled_buffer(1000), filled_buffer(1000, normalize_weights="batch")
    assert of_batch.nbytes <= of_memory.nbytes - 8 * 1000


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_bad_beta(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta={beta}"):
        filled_buffer(4).sample(2, beta=beta)


def test_bad_batch_size_and_empty_buffer() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        filled_buffer(4).sample(0)
    with pytest.raises(ValueError, match="empty"):
        pair_buffer(4).sample(2)


def test_updates_that_name_nothing_are_refused() -> None:
    buffer = filled_buffer(4, 2)
    before = relative_priorities(buffer)
    for serial in (-1, 4, 2**40):
        with pytest.raises(IndexError, match="never stored"):
            buffer.update_priorities(np.array([0, serial]), np.ones(2))
    with pytest.raises(ValueError, match="3 elements for 2 indices"):
        buffer.update_priorities(np.array([0, 1]), np.ones(3))
    assert relative_priorities(buffer) == before
    buffer.update_priorities(np.array([], dtype=np.int64), np.array([]))
    assert relative_priorities(buffer) == before


# --------------------------------------------------------------------------------------------------- device and memory


@pytest.mark.parametrize("space", [PAIR_SPACE, spaces.Dict({"pair": PAIR_SPACE})])
def test_every_tensor_of_a_batch_is_on_the_buffers_device(space: spaces.Space[Any]) -> None:
    buffer = PrioritizedReplayBuffer(10, space, spaces.Discrete(2), META)
    obs: Any = np.zeros((1, 2), dtype=np.float32)
    obs = {"pair": obs} if isinstance(space, spaces.Dict) else obs
    buffer.add(obs, obs, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    batch = buffer.sample(4)
    tensors = [batch.actions, batch.rewards, batch.dones, batch.weights]
    for observations in (batch.observations, batch.next_observations):
        tensors += observations.values() if isinstance(observations, dict) else [observations]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


ZEROS = np.zeros((2, 2), dtype=np.float32)
STEP: Any = (
    ZEROS,
    ZEROS + np.array([[1, 2], [3, 4]]),
    np.zeros(2),
    np.zeros(2),
    np.zeros(2),
    [{}, {}],
)
# Of each transition: two observations of two floats, a leaf in each of three trees (25 with what stands above them),
# the action (8), reward, done and timeout (12)
NBYTES = 16 + 25 + 8 + 12


def memory(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(prioritized_buffer, "available_memory", lambda device: available)


def test_memory_that_will_not_fit_is_refused_before_anything_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a size that would fit; a run that needs less than a full buffer is let through."""
    memory(monkeypatch, 10_000)
    buffer = pair_buffer(2000, 2)
    needs, fits = 2000 * NBYTES / 1e9, (10_000 // (2 * NBYTES) - 16) * 2
    message = (
        f"^buffer_size=2000 needs {needs:.3g} GB of memory, of which 1e-05 GB are available: buffer_size={fits} would"
    )
    with pytest.raises(ValueError, match=message):
        buffer.add(*STEP)
    with pytest.raises(ValueError, match=message):
        buffer.expect(2000)
    assert buffer.size() == 0
    assert not hasattr(buffer, "rewards")
    buffer.expect(10_000 // NBYTES)
    buffer.add(*STEP)
    fitting = pair_buffer(fits, 2)
    fitting.add(*STEP)
    assert fitting.nbytes < 10_000 + 3 * 256 * 8  # trees have whole blocks
    memory(monkeypatch, 100)
    with pytest.raises(ValueError, match="are available: free some memory"):
        pair_buffer(2000, 2).add(*STEP)


@pytest.mark.parametrize("buffer_size", [10**13, 10**30])
def test_priorities_that_no_system_has_memory_for_are_refused(buffer_size: int) -> None:
    with pytest.raises(ValueError, match=f"^buffer_size={buffer_size}: its priorities alone"):
        pair_buffer(buffer_size).expect(100)


def test_an_empty_buffer_from_a_file_holds_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch, 1000)
    with pytest.raises(ValueError, match="needs"):
        pickle.loads(pickle.dumps(pair_buffer(2000))).expect(2000)


@pytest.mark.parametrize("shape", [(4,), (3, 96, 96)])
def test_memory_is_taken_when_it_is_written_to(shape: tuple[int, ...]) -> None:
    """
    What the first step makes resident, as the operating system sees it. What it reserves would be 1.4 GB for the
    vectors, and 1.1 GB for the images; only one tree of three cannot begin with zeros.
    """
    rows = 12_000_000 if shape == (4,) else 20_000
    space = spaces.Box(0, 255, shape, dtype=np.uint8)
    buffer = PrioritizedReplayBuffer(rows, space, spaces.Discrete(2), device="cpu", single_frames=False)
    observation = np.ones((1, *shape), dtype=np.uint8)
    buffer.expect(100)
    process = psutil.Process()
    before = process.memory_info().rss
    buffer.add(observation, observation, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    grown = process.memory_info().rss - before
    assert buffer.nbytes > 5e8
    assert grown < 8 * rows + 5e7


def test_a_missing_part_of_an_observation_is_named() -> None:
    space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Discrete(3)})
    buffer = PrioritizedReplayBuffer(4, space, spaces.Discrete(2), device="cpu")
    whole, part = {"a": np.zeros(1), "b": np.zeros(1)}, {"b": np.zeros(1)}
    for observations in ((part, whole), (whole, part)):
        with pytest.raises(ValueError, match=r"^the observation lacks a, which"):
            buffer.add(*observations, np.zeros(1), np.zeros(1), np.zeros(1), [{}])


def test_memory_that_is_held_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a second run; and all of a loaded buffer is there, filled or not."""
    memory(monkeypatch, 10_000)
    buffer = pair_buffer(200, 2)
    buffer.expect(100)
    for _ in range(50):
        buffer.add(*STEP)
    buffer.expect(100)
    memory(monkeypatch, 1000)
    with pytest.raises(ValueError, match=f"needs {100 * NBYTES / 1e9:.3g} GB"):
        buffer.expect(100)
    pickle.loads(pickle.dumps(buffer)).expect(100)
    for _ in range(50):
        buffer.add(*STEP)
    buffer.expect(10**6)


def test_memory_is_asked_for_again_when_whole_arrays_become_necessary(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored already is needed twice while it moves."""
    memory(monkeypatch, 10_000)
    buffer = pair_buffer(200, 2)
    buffer.expect(100)
    for _ in range(10):  # as stacks of one number each
        buffer.add(ZEROS, ZEROS, *STEP[2:])
    needs = 100 * 16 + (100 - 20) * (NBYTES - 16)
    memory(monkeypatch, needs - 1)
    with pytest.raises(ValueError, match=f"needs {needs / 1e9:.3g} GB"):
        buffer.add(*STEP)
    assert buffer.size() == 10
    memory(monkeypatch, needs)
    buffer.add(*STEP)
    assert buffer.size() == 11


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "CGROUP", tmp_path)
    everything = available_memory()
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == pytest.approx(everything, rel=0.2)
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.current").write_text("8000\n")
    (tmp_path / "memory.stat").write_text("anon 7000\ninactive_file 500\nactive_file 100\n")
    assert available_memory() == 1500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"single_frames": "no"}, "^single_frames='no' must be True, False or None"),
        ({"compress_frames": "lz4"}, "^compress_frames='lz4' must be True or False"),
        ({"compress_frames": True, "single_frames": False}, "^compress_frames=True compresses single frames"),
        ({"n_steps": 0}, "^n_steps=0 must be a whole number"),
        ({"n_steps": 2.5}, "^n_steps=2.5 must be a whole number"),
        ({"gamma": 1.5}, r"^gamma=1.5 must be a number in \[0, 1\]"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_buffer(10, **arguments)


@pytest.mark.parametrize(
    ("position", "wrong"),
    [(2, np.array(["left", "right"])), (3, np.array(["much", "more"])), (3, np.zeros(3)), (5, [{}])],
)
def test_a_refused_step_leaves_no_trace(position: int, wrong: Any) -> None:
    buffer = pair_buffer(10, 2)
    buffer.add(*STEP)
    before = pickle.dumps(buffer)
    step = list(STEP)
    step[position] = wrong
    with pytest.raises(ValueError, match=r".+"):
        buffer.add(*step)
    assert pickle.dumps(buffer) == before


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


def test_a_buffer_pickled_without_td_errors_goes_on() -> None:
    buffer = line(PrioritizedReplayBuffer, 1)
    add_line(buffer, range(3))
    state = buffer.__dict__.copy()
    del state["_initial_errors"]
    older = PrioritizedReplayBuffer.__new__(PrioritizedReplayBuffer)
    older.__setstate__(state)
    add_line(older, range(3, 5), np.full((5, 2), 0.75))
    np.testing.assert_allclose(priorities_of(older)[:5], 1.0)
    add_line(older, range(5, 6), np.full((6, 2), 8.75))
    np.testing.assert_allclose(priorities_of(older)[5], 3.0)


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
