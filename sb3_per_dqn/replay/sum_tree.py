"""
One number per slot, few of which change at a time, and an aggregate over all of them: the sum with its inverse running
sum, the smallest, or the largest. NumPy only: numbers in, indices out.

The slots lie in blocks of ``fan_out``. What is known of a block is always derived from its numbers, never adjusted by
a difference, so rounding errors do not pile up.
"""

from typing import ClassVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class BlockTree:
    """
    What the trees have in common: the leaves, one float64 per slot, and the checks before they are written.
    Every slot starts empty, which is to say with the value 0. The state is plain arrays: pickle and deepcopy work.

    :param capacity: the number of slots, at least 1; it never changes
    :param fan_out: slots per block, at least 2
    :raises ValueError: if either is too small
    """

    LARGEST_VALUE: ClassVar[float] = 1e300  # a hundred million of these still have a finite sum
    _EMPTY: ClassVar[float] = 0.0  # how the leaf of an empty slot is stored

    def __init__(self, capacity: int, fan_out: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: a tree needs at least one slot")
        if fan_out < 2:
            raise ValueError(f"fan_out={fan_out}: a block needs at least two slots")
        self.capacity = capacity
        self.fan_out = fan_out
        blocks = -(-capacity // fan_out)
        self._leaves = np.zeros((blocks, fan_out))  # padded with empty slots
        if self._EMPTY != 0:
            self._leaves.fill(self._EMPTY)  # only then: zeros() takes memory where it is first written to

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._leaves.nbytes

    @property
    def values(self) -> FloatArray:
        """All values, by slot, shape (capacity,); not to be written to."""
        return self._leaves.reshape(-1)[: self.capacity]

    def __getitem__(self, indices: npt.ArrayLike) -> FloatArray:
        """
        Read values.

        :param indices: slots in [0, capacity), integers in any shape
        :return: their values, float64 in the same shape
        :raises IndexError: if a slot is out of range
        """
        return self._leaves.take(self._checked_slots(indices))

    def __setitem__(self, indices: npt.ArrayLike, values: npt.ArrayLike) -> None:
        """
        Write values. Where a slot is named twice the last value wins. After an error the tree is as it was.

        :param indices: slots in [0, capacity), integers in any shape
        :param values: one per slot, or one for all: finite, from 0 (the slot is empty) to ``LARGEST_VALUE``
        :raises IndexError: if a slot is out of range
        :raises ValueError: if a value is out of range, or if there is not one for each slot
        """
        slots = self._checked_slots(indices)
        self.write(slots, self._checked_values(values, slots))

    def write(self, slots: IntArray, values: FloatArray | float) -> None:
        """
        Write values without a check, where another tree has checked them already.

        :param slots: as for ``tree[slots] = values``, int64
        :param values: likewise, float64
        """
        self._leaves.reshape(-1)[slots] = values

    def _checked_slots(self, indices: npt.ArrayLike) -> IntArray:
        slots = np.asarray(indices)
        if slots.dtype != np.int64:
            if slots.size and slots.dtype.kind not in "iu":
                raise IndexError(f"indices must be integers, not {slots.dtype}")
            slots = slots.astype(np.int64)
        # Read as unsigned, a negative index is a huge one: a single comparison checks both ends.
        if np.maximum.reduce(slots.view(np.uint64), axis=None, initial=0) >= self.capacity:
            wrong = slots[(slots < 0) | (slots >= self.capacity)]
            raise IndexError(f"index {wrong[0]} is out of range: the tree has slots 0 to {self.capacity - 1}")
        return slots

    def _checked_values(self, values: npt.ArrayLike, slots: IntArray) -> FloatArray:
        numbers = np.asarray(values, dtype=np.float64)
        if numbers.shape != slots.shape:
            if numbers.ndim > 0:
                raise ValueError(
                    f"values of shape {numbers.shape} for indices of shape {slots.shape}: give one or as many"
                )
            numbers = np.full(slots.shape, numbers)
        smallest = np.minimum.reduce(numbers, axis=None, initial=0.0)  # NaN if any number is
        largest = np.maximum.reduce(numbers, axis=None, initial=0.0)
        if not (smallest >= 0 and largest <= self.LARGEST_VALUE):
            wrong = ~((numbers >= 0) & (numbers <= self.LARGEST_VALUE))
            raise ValueError(
                f"value {numbers[wrong][0]} at index {slots[wrong][0]}: "
                f"must be a finite number from 0 to {self.LARGEST_VALUE:g}"
            )
        return numbers


class SumTree(BlockTree):
    """
    The sum of all values, and the slot in which a prefix sum falls: the inverse of the cumulative distribution.

    Above the leaves lie levels of sums, one for each block of ``fan_out`` numbers below, up to a top level of at most
    ``fan_out ** 2`` sums that is scanned whole.

    :param capacity: the number of slots, at least 1; it never changes
    :param fan_out: children per node, at least 2. With 2^20 slots and batches of 32 (two levels of blocks below a top
        of 1024 sums) 32 was the fastest: a draw and an update, other trees included, took 1.3 times as long with 8,
        1.04 to 1.08 times with 16, 1.05 times with 64 (``python -m benchmarks.priorities --fan-outs 8 16 64``)
    """

    def __init__(self, capacity: int, fan_out: int = 32) -> None:
        super().__init__(capacity, fan_out)
        self._sums: list[FloatArray] = []  # from the leaves' parents, (blocks, fan_out), to the top, (1, nodes)
        nodes = len(self._leaves)
        while nodes > fan_out**2:
            self._sums.append(np.zeros((-(-nodes // fan_out), fan_out)))
            nodes = len(self._sums[-1])
        self._sums.append(np.zeros((1, nodes)))

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(sums.nbytes for sums in self._sums)

    @property
    def total(self) -> float:
        """The sum of all values."""
        return float(np.add.reduce(self._sums[-1], axis=None))

    def find(self, prefix_sums: npt.ArrayLike) -> IntArray:
        """
        Find for each prefix sum the first slot at which the running sum of the values exceeds it. It always holds a
        value above 0, and a larger prefix sum never leads to an earlier slot.

        :param prefix_sums: numbers in [0, total], in any shape; above the total they count as just under it
        :return: slots, int64 in the same shape
        :raises ValueError: if a prefix sum is negative or NaN, or if all slots are empty
        """
        targets = np.asarray(prefix_sums, dtype=np.float64)
        if not np.minimum.reduce(targets, axis=None, initial=0.0) >= 0:
            raise ValueError(f"prefix_sums={targets[~(targets >= 0)][0]}: must be numbers from 0 to the total")
        *levels, top = (self._leaves, *self._sums)

        # In every block the search is for the first running sum above the target, so the child found made the running
        # sum grow and cannot be 0. Rounding may carry a target past its block's end: it is kept just under it.
        running = np.zeros(top.size + 1)
        np.add.accumulate(top[0], out=running[1:])
        if running[-1] == 0:
            raise ValueError("the tree is empty: no slot has a value above 0")
        remaining = np.minimum(targets.reshape(-1), np.nextafter(running[-1], 0))
        nodes: IntArray = running.searchsorted(remaining, side="right") - 1
        remaining -= running[nodes]

        rows = np.arange(nodes.size)
        running = np.zeros((nodes.size, self.fan_out + 1))
        for level in reversed(levels):
            np.add.accumulate(level.take(nodes, axis=0), axis=1, out=running[:, 1:])
            np.minimum(remaining, np.nextafter(running[:, -1], 0), out=remaining)
            children = (running > remaining[:, None]).argmax(axis=1) - 1
            remaining -= running[rows, children]
            nodes = nodes * self.fan_out + children
        return nodes.reshape(targets.shape)

    def write(self, slots: IntArray, values: FloatArray | float) -> None:
        super().write(slots, values)
        nodes, below = slots, self._leaves
        for sums in self._sums:
            nodes = nodes // self.fan_out
            if nodes.size > len(below):
                nodes = np.arange(len(below))  # every block once: a long write must not gather one many times
            sums.put(nodes, np.add.reduce(below.take(nodes, axis=0), axis=-1))
            below = sums


class MaxTree(BlockTree):
    """
    The largest of all values.

    Each block has an upper bound. A write raises the bounds that it exceeds and leaves the others; whoever asks for the
    largest value takes the highest bound, recomputes its block, and is done when the two agree. So a value overwritten
    costs at most one recomputation, and mostly none, since few values are the largest of their block.

    :param capacity: the number of slots, at least 1; it never changes
    :param fan_out: slots per block, at least 2; from 128 on it hardly matters
    """

    def __init__(self, capacity: int, fan_out: int = 256) -> None:
        super().__init__(capacity, fan_out)
        self._bounds = np.full(len(self._leaves), self._EMPTY)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._bounds.nbytes

    @property
    def root(self) -> float:
        """The largest value; 0 if all slots are empty."""
        while True:
            block = self._bounds.argmax()
            largest = self._leaves[block].max()
            if largest == self._bounds[block]:
                return float(largest)
            self._bounds[block] = largest

    def write(self, slots: IntArray, values: FloatArray | float) -> None:
        super().write(slots, values)
        np.maximum.at(self._bounds, slots // self.fan_out, values)


class MinTree(MaxTree):
    """
    The smallest of the values above 0: the largest of the negated ones, with minus infinity for an empty slot.

    :param capacity: the number of slots, at least 1; it never changes
    :param fan_out: slots per block, at least 2
    """

    _EMPTY = -np.inf

    @property
    def root(self) -> float:
        """The smallest value above 0; infinity if all slots are empty."""
        return -super().root

    @property
    def values(self) -> FloatArray:
        return np.where(np.isinf(super().values), 0.0, -super().values)

    def __getitem__(self, indices: npt.ArrayLike) -> FloatArray:
        values = -super().__getitem__(indices)
        return np.where(np.isinf(values), 0.0, values)

    def write(self, slots: IntArray, values: FloatArray | float) -> None:
        super().write(slots, np.where(np.greater(values, 0), np.negative(values), self._EMPTY))
