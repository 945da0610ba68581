"""
The trees against naive oracles: ``math.fsum``, ``np.cumsum``, ``min``, ``max`` and loops over plain lists.

"TRAPS" numbers the faults of earlier prioritized-replay implementations that these tests exclude.
"""

import copy
import math
import pickle
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sb3_per_dqn.replay.sum_tree import BlockTree, MaxTree, MinTree, SumTree

CAPACITIES = (1, 3, 5, 31, 32, 33, 1000, 1_000_000)
TREES = (SumTree, MinTree, MaxTree)

EMPTY_OR_POSITIVE = st.one_of(st.just(0.0), st.floats(1e-12, 1e12), st.sampled_from([1e-12, 1.0, 1e12]))


def filled(values: Any, fan_out: int = 32) -> SumTree:
    tree = SumTree(len(values), fan_out)
    tree[np.arange(len(values))] = values
    return tree


def random_values(rng: np.random.Generator, size: int, empty: float = 0.3) -> np.ndarray:
    """Numbers from 1e-12 to 1e12, evenly spread over the powers of ten, some of them 0."""
    return np.where(rng.random(size) < empty, 0.0, 10.0 ** rng.uniform(-12, 12, size))


def awkward_prefix_sums(total: float) -> list[float]:
    return [0.0, math.nextafter(0.0, 1.0), total / 3, total / 2, math.nextafter(total, 0.0), total]


# ---------------------------------------------------------------------------------------------------------------- find


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("filled_part", ["first", "last", "one", "half", "all"])
def test_both_ends_find_a_filled_slot(capacity: int, filled_part: str) -> None:
    """TRAPS 1, 2, 4: at 0, just under the total and at the total, for any capacity and at partial fill."""
    rng = np.random.default_rng(capacity)
    slots = {
        "first": np.array([0]),
        "last": np.array([capacity - 1]),
        "one": rng.integers(0, capacity, 1),
        "half": np.flatnonzero(rng.random(capacity) < 0.5),
        "all": np.arange(capacity),
    }[filled_part]
    if slots.size == 0:
        slots = np.array([0])
    tree = SumTree(capacity)
    tree[slots] = 10.0 ** rng.uniform(-12, 12, slots.size)
    found = tree.find(awkward_prefix_sums(tree.total))
    assert (tree[found] > 0).all()
    assert found[0] == slots.min()


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(EMPTY_OR_POSITIVE, min_size=1, max_size=80).filter(any),
    fan_out=st.integers(2, 8),
    fractions=st.lists(st.floats(0, 1), max_size=20),
)
def test_find_never_returns_an_empty_slot_and_is_monotone(
    values: list[float], fan_out: int, fractions: list[float]
) -> None:
    """TRAPS 1, 2, 4: deep trees over values from 1e-12 to 1e12 side by side."""
    tree = filled(values, fan_out)
    running = list(accumulate(values))
    nearby = [q for r in running for q in (math.nextafter(r, 0.0), r, math.nextafter(r, math.inf))]
    inside = [q for q in nearby if q <= tree.total]
    queries = sorted([*awkward_prefix_sums(tree.total), *(f * tree.total for f in fractions), *inside])
    found = tree.find(queries)
    assert all(values[slot] > 0 for slot in found)
    assert (np.diff(found) >= 0).all()


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.integers(0, 9), min_size=1, max_size=120).filter(any), fan_out=st.integers(2, 33))
def test_find_inverts_the_running_sum_exactly(values: list[int], fan_out: int) -> None:
    """Whole numbers leave nothing to rounding: slot i is found for the prefix sums in [sum(:i), sum(:i + 1))."""
    owners = [slot for slot, value in enumerate(values) for _ in range(value)]
    tree = filled(values, fan_out)
    assert tree.find(np.arange(sum(values))).tolist() == owners
    assert tree.find(np.arange(sum(values)) + 0.5).tolist() == owners


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(EMPTY_OR_POSITIVE, min_size=1, max_size=80).filter(any),
    fan_out=st.integers(2, 8),
    fraction=st.floats(0, 1),
)
def test_find_is_the_exact_inverse_up_to_rounding(values: list[float], fan_out: int, fraction: float) -> None:
    """In rational arithmetic the prefix sum lies in the found slot's interval, widened by 1e-13 of the total."""
    tree = filled(values, fan_out)
    prefix_sum = fraction * tree.total
    slot = int(tree.find(prefix_sum))
    below = sum(map(Fraction, values[:slot]), Fraction(0))
    tolerance = Fraction(tree.total) / 10**13
    assert below - tolerance <= Fraction(prefix_sum) <= below + Fraction(values[slot]) + tolerance


@pytest.mark.parametrize("tiny_first", [True, False])
def test_a_block_that_vanishes_in_the_running_sum(tiny_first: bool) -> None:
    """TRAPS 2: beside 1e12 a whole block of 1e-12 does not move a float64 running sum; it must do no harm."""
    values = np.zeros(64 * 64 * 64)
    tiny, huge = (slice(0, 64), slice(-64, None)) if tiny_first else (slice(-64, None), slice(0, 64))
    values[tiny], values[huge] = 1e-12, 1e12
    tree = filled(values)
    assert tree.total == pytest.approx(64e12, rel=1e-15)
    found = tree.find([*awkward_prefix_sums(tree.total), *np.linspace(0, tree.total, 1000)])
    assert (tree[found] > 0).all()
    assert tree.find(0.0) == 0
    tree[np.flatnonzero(values == 1e12)] = 0.0
    assert tree.total == pytest.approx(64e-12, rel=1e-15)  # nothing of the huge values remains in any sum
    assert (tree[tree.find(awkward_prefix_sums(tree.total))] == 1e-12).all()


def test_the_smallest_numbers_there_are() -> None:
    """TRAPS 1, 2: below the smallest subnormal there is nothing but 0."""
    tree = SumTree(5, fan_out=2)
    tree[3] = 5e-324
    assert tree.find([0.0, tree.total]).tolist() == [3, 3]


def test_the_largest_values_do_not_overflow() -> None:
    tree = SumTree(1_000_000)
    tree[np.arange(1_000_000)] = SumTree.LARGEST_VALUE
    assert tree.total == pytest.approx(1e306)
    assert tree.find([0.0, tree.total]).tolist() == [0, 999_999]


def test_one_item_can_be_found_wherever_it_is() -> None:
    """TRAPS 6: also the newest, also alone, also in a tree of one slot."""
    assert filled([0.25]).find([0.0, 0.1, 0.25]).tolist() == [0, 0, 0]
    for slot in range(70):
        tree = SumTree(70, fan_out=3)
        tree[slot] = 1e-6
        assert tree.find([0.0, 5e-7, 1e-6]).tolist() == [slot] * 3


def test_past_the_total_counts_as_just_under_it() -> None:
    tree = filled([1.0, 2.0, 0.0])
    assert tree.find([math.nextafter(3.0, 4.0), 1e9, math.inf]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("prefix_sum", [-1e-9, -math.inf, math.nan])
def test_find_refuses_what_is_no_prefix_sum(prefix_sum: float) -> None:
    with pytest.raises(ValueError, match=f"prefix_sums={prefix_sum}"):
        filled([1.0, 2.0]).find([0.5, prefix_sum])


@pytest.mark.parametrize("capacity", [1, 33, 5000])
def test_an_empty_tree_says_so(capacity: int) -> None:
    """TRAPS 1, 7: at once, instead of looking for a slot for ever."""
    tree = SumTree(capacity)
    with pytest.raises(ValueError, match="empty"):
        tree.find([0.0])
    tree[capacity - 1] = 1.0
    tree[capacity - 1] = 0.0
    with pytest.raises(ValueError, match="empty"):
        tree.find([0.0])


def test_find_keeps_the_shape_and_its_argument() -> None:
    tree = filled(np.ones(100))
    queries = np.array([[0.5, 99.5, 200.0], [7.0, 31.5, 32.5]])
    before = queries.copy()
    assert tree.find(queries).tolist() == [[0, 99, 99], [7, 31, 32]]
    assert tree.find(7.5).shape == ()
    assert tree.find([]).shape == (0,)
    assert (queries == before).all()


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's statistic as a number of standard deviations from its mean (Wilson and Hilferty, 1931)."""
    degrees = len(expected) - 1
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees)))


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("stratified", [False, True])
def test_frequencies_are_proportional_to_values(capacity: int, stratified: bool) -> None:
    """TRAPS 4: a chi-square test of the draws, over 16 groups of slots where a slot alone is drawn too seldom."""
    draws = 200_000
    rng = np.random.default_rng(seed=capacity)
    values = rng.uniform(0.1, 1.0, capacity) * (rng.random(capacity) < 0.8)
    values[0] = 1.0
    tree = filled(values)
    uniform = (np.arange(draws) + rng.random(draws)) / draws if stratified else rng.random(draws)
    counts = np.bincount(tree.find(uniform * tree.total), minlength=capacity)
    assert (counts[values == 0] == 0).all()
    groups = np.arange(capacity) % (capacity if capacity <= 1000 else 16)
    expected = np.bincount(groups, values) / values.sum() * draws
    observed = np.bincount(groups, counts)[expected > 0]
    expected = expected[expected > 0]
    if len(expected) == 1:
        assert observed[0] == draws
    elif stratified:  # closer than chance: each slot of a small tree gets its share up to one draw at either end
        assert chi_square(observed, expected) < 4
        if capacity <= 1000:
            assert (abs(observed - expected) <= 2).all()
    else:
        assert abs(chi_square(observed, expected)) < 4


# -------------------------------------------------------------------------------------------------------------- update


def test_the_root_after_a_million_updates() -> None:
    """TRAPS 3: 1e6 updates between 1e-12 and 1e12 leave no trace but the leaves themselves."""
    capacity, batch = 33_000, 1000
    rng = np.random.default_rng(3)
    tree = SumTree(capacity)
    for _ in range(1000):
        tree[rng.integers(0, capacity, batch)] = random_values(rng, batch)
    leaves = tree[np.arange(capacity)]
    assert tree.total == pytest.approx(math.fsum(leaves), rel=1e-12, abs=0)
    small = 10.0 ** rng.uniform(-12, -9, capacity)
    for slots in np.split(rng.permutation(capacity), 33):  # now without the large ones, whose rounding errors must go
        tree[slots] = small[slots]
    assert tree.total == pytest.approx(math.fsum(small), rel=1e-12, abs=0)
    tree[np.arange(capacity)] = 0.0
    assert tree.total == 0.0


@pytest.mark.parametrize("tree_type", TREES)
@pytest.mark.parametrize("capacity", [1, 3, 33, 5000])
def test_of_duplicates_the_last_wins(tree_type: type[SumTree | MinTree | MaxTree], capacity: int) -> None:
    """TRAPS 5: and the aggregates are those of the values that won."""
    rng = np.random.default_rng(5)
    tree = tree_type(capacity, fan_out=3)
    expected = np.zeros(capacity)
    for _ in range(50):
        slots = rng.integers(0, min(capacity, 10), 40)
        values = random_values(rng, 40)
        tree[slots] = values
        for slot, value in zip(slots, values, strict=True):
            expected[slot] = value
        assert (tree[np.arange(capacity)] == expected).all()
        check_aggregate(tree, expected)


def test_a_long_write_equals_many_short_ones() -> None:
    values = random_values(np.random.default_rng(0), 3000)
    long, short = filled(values, fan_out=4), SumTree(3000, fan_out=4)
    for slot, value in enumerate(values):
        short[slot] = value
    assert long.total == short.total
    queries = np.linspace(0, long.total, 999)
    assert (long.find(queries) == short.find(queries)).all()


@pytest.mark.parametrize("tree_type", TREES)
@pytest.mark.parametrize("bad", [-1.0, -1e-300, math.nan, math.inf, -math.inf, 2e300])
def test_a_bad_value_is_named_and_nothing_is_written(tree_type: type[SumTree | MinTree | MaxTree], bad: float) -> None:
    tree = tree_type(40)
    tree[np.arange(40)] = np.arange(40)
    before = pickle.dumps(tree)
    with pytest.raises(ValueError, match=r"value .* at index 17\b") as error:
        tree[[3, 17, 5]] = [0.5, bad, 0.5]
    assert f"value {bad} " in str(error.value)
    assert pickle.dumps(tree) == before


@pytest.mark.parametrize("tree_type", TREES)
@pytest.mark.parametrize("capacity", [1, 33, 40])
def test_a_slot_out_of_range_is_named_and_nothing_is_written(
    tree_type: type[SumTree | MinTree | MaxTree], capacity: int
) -> None:
    """The padding behind the last slot is out of range, and a negative index does not count from the end."""
    tree = tree_type(capacity)
    tree[np.arange(capacity)] = 1.0
    before = pickle.dumps(tree)
    for bad in (capacity, capacity + 1, 2**40, -1, -capacity):
        with pytest.raises(IndexError, match=f"index {bad} is out of range"):
            tree[[0, bad]] = [0.5, 0.5]
        with pytest.raises(IndexError, match=f"index {bad} is out of range"):
            tree[[0, bad]]
    with pytest.raises(IndexError, match="integers"):
        tree[[0.5]]
    with pytest.raises(IndexError, match="integers"):
        tree[[True]] = 1.0
    assert pickle.dumps(tree) == before


@pytest.mark.parametrize("tree_type", TREES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_values_that_do_not_fit_the_indices(tree_type: type[SumTree | MinTree | MaxTree], count: int) -> None:
    tree = tree_type(10)
    before = pickle.dumps(tree)
    with pytest.raises(ValueError, match=rf"shape \({count},\)"):
        tree[[0, 1, 2]] = np.ones(count)
    assert pickle.dumps(tree) == before


@pytest.mark.parametrize("tree_type", TREES)
def test_shapes_and_dtypes_of_indices(tree_type: type[SumTree | MinTree | MaxTree]) -> None:
    tree = tree_type(1000, fan_out=4)
    tree[np.array([[1, 2], [999, 4]], dtype=np.int32)] = [[1, 2], [3, 4]]
    assert tree[[[999], [4]]].tolist() == [[3.0], [4.0]]
    tree[np.array([7, 8], dtype=np.uint64)] = 5
    tree[9] = 6.0
    assert tree[np.arange(10)].tolist() == [0, 1, 2, 0, 4, 0, 0, 5, 5, 6]
    assert tree[9].shape == ()
    before = pickle.dumps(tree)
    tree[[]] = []
    tree[np.array([], dtype=np.int64)] = 1.0
    assert tree[[]].shape == (0,)
    assert pickle.dumps(tree) == before


@pytest.mark.parametrize("tree_type", TREES)
@pytest.mark.parametrize(
    ("capacity", "fan_out", "message"), [(0, 32, "capacity=0"), (-5, 32, "-5"), (5, 1, "fan_out=1")]
)
def test_impossible_trees(
    tree_type: type[SumTree | MinTree | MaxTree], capacity: int, fan_out: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tree_type(capacity, fan_out)


# ------------------------------------------------------------------------------------------------------ state and size


@pytest.mark.parametrize("tree_type", TREES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda tree: pickle.loads(pickle.dumps(tree))])
def test_a_copy_is_equal_and_independent(tree_type: type[SumTree | MinTree | MaxTree], duplicate: Any) -> None:
    """TRAPS 24, the trees' part: a copy goes on as the original does, and neither sees the other's writes."""
    rng = np.random.default_rng(24)
    tree = tree_type(500, fan_out=3)
    tree[np.arange(500)] = random_values(rng, 500)
    twin = duplicate(tree)
    assert pickle.dumps(twin) == pickle.dumps(tree)
    values = tree[np.arange(500)]
    for _ in range(20):
        slots, new = rng.integers(0, 500, 32), random_values(rng, 32)
        twin[slots] = new
        assert (tree[np.arange(500)] == values).all()
    check_aggregate(tree, values)
    check_aggregate(twin, twin[np.arange(500)])


@pytest.mark.parametrize("tree_type", TREES)
def test_memory_is_the_leaves_and_a_little(tree_type: type[SumTree | MinTree | MaxTree]) -> None:
    leaves = 2**20 * 8
    assert leaves < len(pickle.dumps(tree_type(2**20))) < leaves * (1 + 1 / 31) + 1000


# -------------------------------------------------------------------------------------------- everything, in any order


def check_aggregate(tree: BlockTree, values: Any) -> None:
    """Compare with the naive aggregate of plain numbers."""
    positive = [value for value in values if value > 0]
    if isinstance(tree, SumTree):
        assert tree.total == pytest.approx(math.fsum(positive), rel=1e-12, abs=0)
        if positive:
            found = tree.find(awkward_prefix_sums(tree.total))
            assert all(values[slot] > 0 for slot in found)
            assert (np.diff(found) >= 0).all()
    elif isinstance(tree, MinTree):
        assert tree.root == min(positive, default=math.inf)
    else:
        assert isinstance(tree, MaxTree)
        assert tree.root == max(positive, default=0.0)


class Trees(RuleBasedStateMachine):
    """TRAPS 25, the trees' part: any order of writes and reads, against a plain list."""

    @initialize(capacity=st.integers(1, 100), fan_out=st.integers(2, 6))
    def empty(self, capacity: int, fan_out: int) -> None:
        self.values = [0.0] * capacity
        self.trees = [tree_type(capacity, fan_out) for tree_type in TREES]

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        slot = st.integers(0, len(self.values) - 1)
        writes = data.draw(st.lists(st.tuples(slot, EMPTY_OR_POSITIVE), max_size=30))
        for tree in self.trees:
            tree[[index for index, _ in writes]] = [value for _, value in writes]
        for index, value in writes:
            self.values[index] = value

    @rule(data=st.data(), value=EMPTY_OR_POSITIVE)
    def write_a_stretch(self, data: st.DataObject, value: float) -> None:
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(self.values))] * 2)))
        for tree in self.trees:
            tree[np.arange(start, stop)] = value
        self.values[start:stop] = [value] * (stop - start)

    @rule(data=st.data(), bad=st.sampled_from([-1.0, math.nan, math.inf]))
    def fail_to_write(self, data: st.DataObject, bad: float) -> None:
        slot = data.draw(st.integers(0, len(self.values) - 1))
        for tree in self.trees:
            with pytest.raises(ValueError, match=f"at index {slot}"):
                tree[[0, slot]] = [1.0, bad]

    @rule()
    def restore(self) -> None:
        self.trees = pickle.loads(pickle.dumps(self.trees))

    @rule()
    def read_aggregates(self) -> None:
        for tree in self.trees:
            check_aggregate(tree, self.values)

    @invariant()
    def leaves_are_as_written(self) -> None:
        for tree in getattr(self, "trees", []):
            assert tree[np.arange(len(self.values))].tolist() == self.values


Trees.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestTrees = Trees.TestCase


@pytest.mark.parametrize("capacity", [1, 33, 16_384, 1_000_000])
def test_soak(capacity: int) -> None:
    """TRAPS 25: a ring is filled and wraps, batches are drawn and written back; every aggregate stays exact."""
    rng = np.random.default_rng(25)
    total, smallest, largest = SumTree(capacity), MinTree(capacity), MaxTree(capacity)
    values, learned = np.zeros(capacity), np.zeros(capacity)
    position = 0
    for step in range(3000):
        slots = (position + np.arange(8)) % capacity
        position = (position + 8) % capacity
        new = largest.root or 1.0
        total[slots] = smallest[slots] = values[slots] = new
        largest[slots] = learned[slots] = 0.0
        drawn = total.find(rng.random(32) * total.total)
        assert (values[drawn] > 0).all()
        update = 10.0 ** rng.uniform(-6, 1, 32)
        total[drawn] = smallest[drawn] = largest[drawn] = update
        values[drawn] = learned[drawn] = update
        if step % (10 if capacity < 20_000 else 500) == 0:
            assert total.total == pytest.approx(math.fsum(values), rel=1e-12, abs=0)
            assert smallest.root == values[values > 0].min()
            assert largest.root == learned.max()


@pytest.mark.parametrize("kind", [SumTree, MinTree, MaxTree])
@pytest.mark.parametrize("capacity", [1, 33, 1000])
def test_values_are_those_of_all_slots(kind: type[Any], capacity: int) -> None:
    """An empty slot's is 0 in each of the trees; and what is written without a check is there as well."""
    tree = kind(capacity)
    tree[np.arange(0, capacity, 2)] = np.linspace(1, 2, len(range(0, capacity, 2)))
    tree.write(np.array([capacity - 1]), 0.5)
    assert tree.values.shape == (capacity,)
    np.testing.assert_array_equal(tree.values, tree[np.arange(capacity)])
    assert tree.values[-1] == 0.5
    assert np.count_nonzero(tree.values) == len({*range(0, capacity, 2), capacity - 1})
