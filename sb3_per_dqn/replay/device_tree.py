"""The trees of ``sum_tree`` for a device: tensors in, tensors out, and nothing that makes the host wait."""

import math

import numpy as np
import numpy.typing as npt
import torch as th


class DeviceTree:
    """
    One number for each slot, float64, and over all of them the sum with its inverse running sum, the smallest above 0,
    and the largest. Every slot starts empty, which is to say with the value 0.

    The slots lie in blocks; what is known of a block is always derived from its numbers. There is one level of blocks
    only: a device scans a thousand numbers in the time of one. Shapes depend on arguments' shapes alone, so that all of
    it can be recorded as a CUDA graph.

    :param capacity: number of slots, at least 1
    :param device: where the numbers lie
    :param fan_out: slots per block; ``None`` takes about the square root of the capacity
    :raises ValueError: if the capacity is too small
    """

    def __init__(self, capacity: int, device: th.device, fan_out: int | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: a tree needs at least one slot")
        self.capacity = capacity
        self.fan_out = fan_out or max(math.isqrt(capacity), 2)
        blocks = capacity // self.fan_out + 1  # one slot to spare, at least: see nowhere
        self._leaves = th.zeros((blocks, self.fan_out), dtype=th.float64, device=device)
        self._sums = th.zeros(blocks, dtype=th.float64, device=device)
        self._smallest = th.full((blocks,), math.inf, dtype=th.float64, device=device)
        self._largest = th.zeros(blocks, dtype=th.float64, device=device)

    @property
    def nowhere(self) -> int:
        """A slot beyond the last, always empty, for what is to be written nowhere (as 0): shapes stay as they are."""
        return self.capacity

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.nbytes for part in (self._leaves, self._sums, self._smallest, self._largest))

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """All values, by slot, shape (capacity,), copied to the host."""
        values: npt.NDArray[np.float64] = self._leaves.flatten()[: self.capacity].cpu().numpy()
        return values

    @property
    def total(self) -> th.Tensor:
        """The sum of all values, a scalar."""
        return self._sums.sum()

    @property
    def smallest(self) -> th.Tensor:
        """The smallest value above 0, a scalar; infinity if all slots are empty."""
        return self._smallest.min()

    @property
    def largest(self) -> th.Tensor:
        """The largest value, a scalar; 0 if all slots are empty."""
        return self._largest.max()

    def __getitem__(self, slots: th.Tensor) -> th.Tensor:
        """
        :param slots: int64, shape (n,)
        :return: their values, float64, shape (n,)
        """
        return self._leaves.view(-1)[slots]

    def __setitem__(self, slots: th.Tensor, values: th.Tensor | float) -> None:
        """
        Write values. Nothing is checked, which would make the host wait.

        :param slots: int64, shape (n,), from 0 to ``capacity`` - 1, or ``nowhere``; a slot that is named twice gets any
            of its values
        :param values: finite and not negative, shape (n,), or one for all; 0 where the slot is ``nowhere``
        """
        if isinstance(values, th.Tensor):
            self._leaves.view(-1)[slots] = values
        else:
            self._leaves.view(-1).index_fill_(0, slots, values)
        if len(slots) >= len(self._leaves):  # every block once
            blocks = th.arange(len(self._leaves), device=slots.device)
        else:
            blocks = slots // self.fan_out
        below = self._leaves[blocks]  # (n, fan_out)
        self._sums[blocks] = below.sum(dim=1)
        self._smallest[blocks] = below.masked_fill(below == 0, math.inf).amin(dim=1)
        self._largest[blocks] = below.amax(dim=1)

    def find(self, prefix_sums: th.Tensor) -> th.Tensor:
        """
        Find for each prefix sum the first slot at which the running sum of the values exceeds it. If any value is above
        0, so is that of the slot.

        :param prefix_sums: numbers in [0, total], float64, shape (n,)
        :return: slots, int64, shape (n,)
        """
        blocks, remaining = _find(self._sums.expand(len(prefix_sums), -1), prefix_sums)
        children, _ = _find(self._leaves[blocks], remaining)
        return blocks * self.fan_out + children


def _find(values: th.Tensor, targets: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param values: not negative, shape (n, m)
    :param targets: shape (n,)
    :return: in each row, the first place whose running sum exceeds the target, and how far the target lies beyond what
        comes before that place; both of shape (n,)
    """
    running = values.cumsum(dim=1)
    filled = values > 0
    # Parallel sums are rounded in any order, so an empty place may seem to make the sum grow, or the last sum may miss
    # the target: it is a filled place that is looked for, and the last of these where there is no other
    exceeding = filled & (running > targets[:, None])
    first = exceeding.to(th.uint8).argmax(dim=1)
    last = values.shape[1] - 1 - filled.flip(1).to(th.uint8).argmax(dim=1)
    places = th.where(exceeding.any(dim=1), first, last)
    before = (running - values).gather(1, places[:, None])[:, 0]
    return places, (targets - before).clamp(min=0.0)
