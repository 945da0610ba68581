"""The tree for devices, on a CPU, against ``SumTree``, ``MinTree``, ``MaxTree`` and the definitions."""

import math
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_per_dqn.replay.device_tree import DeviceTree
from sb3_per_dqn.replay.sum_tree import MaxTree, MinTree, SumTree

CPU = th.device("cpu")
CAPACITIES = [1, 2, 3, 5, 31, 32, 33, 1000, 100_003]
FAN_OUTS = st.one_of(st.none(), st.integers(2, 9))


def tensor(values: object) -> th.Tensor:
    return th.as_tensor(np.asarray(values, dtype=np.float64))


def slots(values: object) -> th.Tensor:
    return th.as_tensor(np.asarray(values, dtype=np.int64))


@given(
    capacity=st.integers(1, 90),
    fan_out=FAN_OUTS,
    writes=st.integers(0, 12),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_it_knows_what_the_trees_on_the_host_know(capacity: int, fan_out: int | None, writes: int, seed: int) -> None:
    """After every write, short or of all slots; whole numbers, so that nothing is left to rounding."""
    rng = np.random.default_rng(seed)
    tree = DeviceTree(capacity, CPU, fan_out)
    on_host = SumTree(capacity), MinTree(capacity), MaxTree(capacity)
    for _ in range(writes):
        chosen = rng.permutation(capacity)[: rng.integers(1, capacity + 1)]
        values = rng.integers(0, 5, chosen.size).astype(np.float64)
        if rng.random() < 0.3:
            values[:] = values[0]
        tree[slots(chosen)] = tensor(values) if rng.random() < 0.7 else float(values[0])
        values = tree.values[chosen]
        for other in on_host:
            other[chosen] = values
        assert (tree.values == on_host[0].values).all()
        assert tree.total.item() == on_host[0].total
        assert tree.smallest.item() == on_host[1].root
        assert tree.largest.item() == on_host[2].root
        assert tree[slots(chosen)].tolist() == values.tolist()
        total = int(tree.total)
        if total:
            prefix_sums = np.arange(0, total, 0.5)
            assert tree.find(tensor(prefix_sums)).tolist() == on_host[0].find(prefix_sums).tolist()


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("filled_part", ["first", "last", "one", "half", "all"])
def test_both_ends_find_a_filled_slot(capacity: int, filled_part: str) -> None:
    """TRAPS 1, 2, 4: at 0, just under the total and at the total, with priorities from 1e-12 to 1e12 side by side."""
    rng = np.random.default_rng(capacity)
    filled = {
        "first": np.array([0]),
        "last": np.array([capacity - 1]),
        "one": rng.integers(0, capacity, 1),
        "half": rng.permutation(capacity)[: max(capacity // 2, 1)],
        "all": np.arange(capacity),
    }[filled_part]
    tree = DeviceTree(capacity, CPU)
    tree[slots(filled)] = tensor(10.0 ** rng.uniform(-12, 12, filled.size))
    total = tree.total.item()
    fractions = [0.0, math.nextafter(0.0, 1.0), total / 3, math.nextafter(total, 0.0), total, *rng.random(2000) * total]
    found = tree.find(tensor(fractions))
    assert (tree[found] > 0).all()
    assert found[0] == filled.min()
    assert (np.diff(found[np.argsort(fractions)].numpy()) >= 0).all()


@given(
    values=st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e9)), min_size=1, max_size=80).filter(any),
    fan_out=FAN_OUTS,
    fraction=st.floats(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_the_slot_found_holds_the_prefix_sum(values: list[float], fan_out: int | None, fraction: float) -> None:
    """In exact arithmetic, up to what rounding a sum of so many numbers can do."""
    tree = DeviceTree(len(values), CPU, fan_out)
    tree[slots(range(len(values)))] = tensor(values)
    prefix_sum = fraction * tree.total.item()
    slot = int(tree.find(tensor([prefix_sum])))
    running = list(accumulate(Fraction(value) for value in values))
    rounding = running[-1] * Fraction(len(values), 2**52)
    assert values[slot] > 0
    assert running[slot] - Fraction(values[slot]) - rounding <= Fraction(prefix_sum) <= running[slot] + rounding


def test_nothing_written_nowhere_is_seen() -> None:
    for capacity in (1, 4, 9, 10, 100):
        tree = DeviceTree(capacity, CPU)
        tree[slots(range(capacity))] = 1.0
        tree[slots([tree.nowhere, tree.nowhere, 0])] = tensor([0.0, 0.0, 2.0])
        assert tree.total.item() == capacity + 1
        assert (tree.find(th.linspace(0, capacity + 1, 100, dtype=th.float64)) < capacity).all()


def test_rounding_never_leads_to_an_empty_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parallel running sums need not be monotone, nor end at the sum: as if rounded by a lot."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random(200) < 0.5, 0.0, rng.random(200))
    tree = DeviceTree(200, CPU)
    tree[slots(range(200))] = tensor(values)
    exact = th.Tensor.cumsum

    def rounded(self: th.Tensor, dim: int) -> th.Tensor:
        return exact(self, dim) * th.as_tensor(rng.uniform(0.9, 1.1, self.shape))

    monkeypatch.setattr(th.Tensor, "cumsum", rounded)
    found = tree.find(tensor(np.linspace(0, values.sum(), 5000)))
    assert (values[found] > 0).all()


def test_no_capacity() -> None:
    with pytest.raises(ValueError, match="capacity=0"):
        DeviceTree(0, CPU)
