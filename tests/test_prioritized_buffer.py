"""
The prioritized buffer against a naive one of dicts and loops, and its priorities and weights against their formulas.

"TRAPS" numbers the faults of earlier prioritized-replay implementations that these tests exclude.
"""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sb3_per_dqn import DeviceReplayBuffer, PrioritizedReplayBuffer
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBufferSamples
from tests.pair_buffers import RandomStreams, Transition, filled_buffer, pair_buffer, relative_priorities

SOAK_OPERATIONS = 20_000


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
