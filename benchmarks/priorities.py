"""
How long does prioritization take for one gradient step?

``python -m benchmarks.priorities`` prints a markdown table of the microseconds that one cycle takes: draw a batch in
proportion to the priorities, compute the importance-sampling weights (the largest in the whole buffer is 1), turn the
new absolute TD errors into priorities (|delta| + eps)^alpha, and write them back. Contestants:

- this package's three trees (sum, minimum, and maximum of the learned priorities);
- TorchRL's ``PrioritizedSampler`` through its public ``sample`` and ``update_priority`` (``pip install torchrl``):
  trees in C++, float32, a sum and a minimum, and a maximum over all history;
- the same three aggregates in binary NumPy trees, one array operation for each of their levels.

They take turns in random order within one run, so a machine that slows down for a while slows all of them down. With
``--in-a-row 1`` each cycle finds the caches full of another contestant's data, as after a gradient step.
"""

import argparse
import datetime
import os
import platform
import time
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sb3_per_dqn.replay.sum_tree import MaxTree, MinTree, SumTree

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ALPHA, BETA, EPS = 0.6, 0.4, 1e-6
TORCHRL = "TorchRL, PrioritizedSampler"


class Contestant(NamedTuple):
    """One way to do it: ``cycle`` is timed, ``convert`` (absolute TD errors to what ``cycle`` takes) is not."""

    name: str
    cycle: Callable[[Any], object]
    convert: Callable[[FloatArray], Any] = lambda errors: errors


class BinaryTree:
    """The textbook tree: node i has the children 2i and 2i + 1, the leaves are the second half of one array."""

    def __init__(self, slots: int, aggregate: np.ufunc, empty: float) -> None:
        self.depth = (slots - 1).bit_length()
        self.first_leaf = 2**self.depth
        self.aggregate = aggregate
        self.nodes = np.full(2 * self.first_leaf, empty, dtype=np.float64)

    @property
    def root(self) -> float:
        return float(self.nodes[1])

    def __getitem__(self, slots: IntArray) -> FloatArray:
        values: FloatArray = self.nodes[slots + self.first_leaf]
        return values

    def __setitem__(self, slots: IntArray, values: FloatArray) -> None:
        self.write(slots, values)

    def write(self, slots: IntArray, values: FloatArray) -> None:
        nodes = slots + self.first_leaf
        self.nodes[nodes] = values
        for _ in range(self.depth):
            nodes = nodes // 2
            self.nodes[nodes] = self.aggregate(self.nodes[2 * nodes], self.nodes[2 * nodes + 1])

    def find(self, prefix_sums: FloatArray) -> IntArray:
        nodes = np.ones(len(prefix_sums), dtype=np.int64)
        for _ in range(self.depth):
            nodes = 2 * nodes
            left = self.nodes[nodes]
            right_of_it = prefix_sums >= left
            prefix_sums = np.where(right_of_it, prefix_sums - left, prefix_sums)
            nodes = nodes + right_of_it
        slots: IntArray = nodes - self.first_leaf
        return slots

    @property
    def total(self) -> float:
        return self.root


def numpy_contestant(name: str, trees: tuple[Any, Any, Any], errors: FloatArray, batch: int) -> Contestant:
    """
    The cycle on three trees of either kind.

    :param trees: sum, minimum and maximum, empty
    :param errors: absolute TD errors to begin with, one per slot
    """
    sum_tree, min_tree, max_tree = trees
    for tree in trees:
        tree[np.arange(len(errors))] = (errors + EPS) ** ALPHA
    rng = np.random.default_rng(1)

    def cycle(new_errors: FloatArray) -> tuple[FloatArray, float]:
        slots = sum_tree.find(rng.random(batch) * sum_tree.total)
        weights = (min_tree.root / sum_tree[slots]) ** BETA
        priorities = (new_errors + EPS) ** ALPHA
        sum_tree[slots] = priorities
        min_tree.write(slots, priorities)  # the first one has checked them
        max_tree.write(slots, priorities)
        return weights, max_tree.root  # for the loss, and for the next new transition

    return Contestant(name, cycle)


def ours(errors: FloatArray, batch: int, fan_out: int | None = None) -> Contestant:
    sum_tree = SumTree(len(errors)) if fan_out is None else SumTree(len(errors), fan_out)
    name = "sb3_per_dqn, block trees" if fan_out is None else f"the same, sum tree with fan-out {fan_out}"
    return numpy_contestant(name, (sum_tree, MinTree(len(errors)), MaxTree(len(errors))), errors, batch)


def binary(errors: FloatArray, batch: int) -> Contestant:
    kinds = (np.add, 0.0), (np.minimum, np.inf), (np.maximum, 0.0)
    total, smallest, largest = (BinaryTree(len(errors), aggregate, empty) for aggregate, empty in kinds)
    return numpy_contestant("NumPy, binary trees", (total, smallest, largest), errors, batch)


def torchrl(errors: FloatArray, batch: int) -> Contestant:
    torch = import_module("torch")
    data = import_module("torchrl.data")

    storage = data.LazyTensorStorage(len(errors))
    storage.set(range(len(errors)), torch.zeros(len(errors), dtype=torch.uint8))
    sampler = data.replay_buffers.samplers.PrioritizedSampler(len(errors), alpha=ALPHA, beta=BETA, eps=EPS)
    sampler.update_priority(torch.arange(len(errors)), torch.from_numpy(errors).float())

    def cycle(new_errors: Any) -> None:
        slots, _ = sampler.sample(storage, batch)
        sampler.update_priority(slots, new_errors)

    return Contestant(TORCHRL, cycle, lambda e: torch.from_numpy(e).float())


def measure(contestants: list[Contestant], batch: int, repeats: int, in_a_row: int) -> dict[str, FloatArray]:
    """
    :return: for each contestant the microseconds of every cycle, shape (repeats rounded up to whole turns,)
    """
    rng = np.random.default_rng(2)
    microseconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    turns = -(-repeats // in_a_row)
    for turn in range(-(turns // 10 + 1), turns):  # the negative ones warm up
        for next_one in rng.permutation(len(contestants)):
            name, cycle, convert = contestants[next_one]
            for _ in range(in_a_row):
                errors = convert(rng.exponential(size=batch))
                start = time.perf_counter_ns()
                cycle(errors)
                elapsed = time.perf_counter_ns() - start
                if turn >= 0:
                    microseconds[name].append(elapsed / 1000)
    return {name: np.array(times) for name, times in microseconds.items()}


def machine() -> str:
    """The processor's name, as precisely as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} logical cores"


def versions() -> str:
    """What the numbers depend on."""
    found = [f"Python {platform.python_version()}"]
    for package in ("numpy", "torch", "torchrl"):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return int(text)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=positive, default=2**20, help="stored transitions (default %(default)s)")
    parser.add_argument("--batch", type=positive, default=32, help="transitions in a batch (default %(default)s)")
    parser.add_argument("--repeats", type=positive, default=5000, help="cycles for each (default %(default)s)")
    parser.add_argument("--in-a-row", type=positive, default=100, help="cycles in a turn (default %(default)s)")
    parser.add_argument("--fan-outs", type=int, nargs="*", default=[], help="try our sum tree with these as well")
    args = parser.parse_args()

    errors = np.random.default_rng(0).exponential(size=args.slots)
    contestants = [ours(errors, args.batch)]
    contestants += [ours(errors, args.batch, fan_out) for fan_out in args.fan_outs]
    absent = ""
    try:
        contestants.append(torchrl(errors, args.batch))
    except ImportError:
        absent = "not installed"
    except RuntimeError as error:  # its C++ part loads only beside the PyTorch version that it was compiled for
        absent = f"does not run beside this PyTorch: {error}"
    contestants.append(binary(errors, args.batch))
    microseconds = measure(contestants, args.batch, args.repeats, args.in_a_row)

    print(f"{args.slots} slots, batch {args.batch}, {args.repeats} cycles each,")
    print(f"in turns of {args.in_a_row} in random order, {os.environ.get('OMP_NUM_THREADS', 'all')} threads;")
    print(f"{datetime.date.today().isoformat()}, {machine()}; {versions()}\n")
    print("| sample plus update | median µs | quartiles µs | times ours |")
    print("|---|---:|---:|---:|")
    reference = np.median(microseconds[contestants[0].name])
    for name, times in microseconds.items():
        low, middle, high = np.percentile(times, [25, 50, 75])
        print(f"| {name} | {middle:.0f} | {low:.0f} to {high:.0f} | {middle / reference:.2f} |")
    if absent:
        print(f"| {TORCHRL} | {absent} | | |")


if __name__ == "__main__":
    main()
