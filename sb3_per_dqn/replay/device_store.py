"""Observations on a device: a pool of frames, each there once, and for each transition the places of its frames."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_per_dqn.replay.frame_ring import Array
from sb3_per_dqn.replay.frame_store import FrameLayout, bits
from sb3_per_dqn.replay.memory import to_device
from sb3_per_dqn.replay.observation_store import AdaptiveStore

SPARE = 1 / 32  # of the pool, for frames beyond one a step: the last ones before time limits, first stacks of episodes
BLANK = -1  # serial number of the frame of zeros, which lies in place 0
IntArray = npt.NDArray[np.int64]


class PooledFrames:
    """
    Frames on a device, numbered as they come, in a ring: what is written last takes the place of the oldest.

    An observation that is no stack of frames counts as one frame. The observation after a step is mostly the one before
    the next step, and stands there once. What is uploaded are new frames; which of them make up an observation is for
    the host to know, and a few numbers for each transition.

    A step costs one frame of each environment, or none if it is a last one; a segment that begins costs one, and up to
    ``depth`` if its first stack is neither blank nor repetitions. If so much of that happens that the spare places do
    not suffice, the oldest steps' frames are overwritten before their time: ``first_step`` tells.

    :param rows: number of steps to hold
    :param n_envs: number of environments
    :param shape: shape of an observation
    :param dtype: dtype of the observations
    :param layout: how they are stacks; ``None`` if they are not
    :param device: where the frames lie
    """

    def __init__(
        self,
        rows: int,
        n_envs: int,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        layout: FrameLayout | None,
        device: th.device,
    ) -> None:
        self.layout = layout
        self.depth = depth = 1 if layout is None else layout.depth
        self._rows = rows
        self._n_envs = n_envs
        self._device = device
        frame_shape = self._split(np.empty((1, *shape))).shape[2:]
        self._length = pool_length(rows, n_envs, depth)
        self._dtype = th.from_numpy(np.empty(0, dtype=dtype)).dtype
        # As signed integers, for torch cannot gather all unsigned ones
        self._stored_as = np.dtype(dtype) if np.dtype(dtype).kind != "u" else np.dtype(f"i{np.dtype(dtype).itemsize}")
        blank = th.from_numpy(np.zeros((1, *frame_shape), dtype=self._stored_as))
        self._frames = th.zeros((1 + self._length, *frame_shape), dtype=blank.dtype, device=device)
        self._written = 0  # frames, ever
        self._window = np.full((n_envs, depth), BLANK)  # serial numbers of the newest stacks' frames, oldest first
        self._places = np.zeros((rows, n_envs, 2, depth), dtype=np.int32)  # of the frames before and after a step
        self._first_frames = np.zeros(rows, dtype=np.int64)  # serial number of the oldest frame of each row
        self._follows = np.zeros((rows, n_envs), dtype=bool)
        self._uses_next = np.zeros((rows, n_envs), dtype=bool)
        self._steps = 0
        self.first_step = 0  # oldest one that is stored with all its frames

    @staticmethod
    def nbytes_of(
        rows: int, n_envs: int, shape: tuple[int, ...], dtype: npt.DTypeLike, layout: FrameLayout | None
    ) -> int:
        """
        :return: bytes that such a pool takes on its device
        """
        depth = 1 if layout is None else layout.depth
        frame_nbytes = math.prod(shape) * np.dtype(dtype).itemsize // depth
        return (1 + pool_length(rows, n_envs, depth)) * frame_nbytes

    @property
    def nbytes(self) -> int:
        """Bytes held on the device and on the host."""
        return self._frames.nbytes + self._places.nbytes + self._follows.nbytes + self._uses_next.nbytes

    @property
    def full_nbytes(self) -> float:
        """Bytes on the device."""
        return self._frames.nbytes

    def _split(self, observations: Array) -> Array:
        return observations[:, None] if self.layout is None else self.layout.split(observations)

    def _join(self, frames: th.Tensor) -> th.Tensor:
        if self.layout is None:
            return frames[:, 0]
        if self.layout.axis == 0:
            return frames.flatten(1, 2)
        return frames.movedim(1, -2).flatten(-2)

    def add(self, step: int, obs: Array, next_obs: Array, follows: Array, uses_next: Array) -> None:
        """As for ``ObservationStore``."""
        if self._steps == 0:
            self.first_step = step  # if it is not 0, what came before was kept in another layout
        row = step % self._rows
        new: list[Array] = []
        for env in np.flatnonzero(~follows).tolist():
            self._window[env] = self._first_stack(self._split(obs[env : env + 1])[0], new)
        self._places[row, :, 0] = self._places_of(self._window)
        self._first_frames[row] = np.where(self._window == BLANK, self._written, self._window).min()

        bootstrapped = np.flatnonzero(uses_next)
        self._window = np.concatenate([self._window[:, 1:], self._window[:, -1:]], axis=1)
        self._window[bootstrapped, -1] = self._written + len(new) + np.arange(bootstrapped.size)
        new.extend(self._split(next_obs)[bootstrapped, -1])
        self._places[row, :, 1] = self._places_of(self._window)
        self._follows[row] = follows
        self._uses_next[row] = uses_next
        self._write(new)
        self._steps = step + 1
        self._forget_overwritten()

    def _first_stack(self, stack: Array, new: list[Array]) -> IntArray:
        """
        :param stack: with which a segment begins, shape (depth, \\*frame_shape)
        :param new: frames to be written, to which those of the stack are added, unless they are there already
        :return: their serial numbers, shape (depth,)
        """
        serials = np.full(self.depth, BLANK)
        for i in reversed(range(self.depth)):
            if not bits(stack[i]).any():
                continue
            if i < self.depth - 1 and np.array_equal(bits(stack[i]), bits(stack[-1])):
                serials[i] = serials[-1]
                continue
            serials[i] = self._written + len(new)
            new.append(stack[i])
        return serials

    def _places_of(self, serials: IntArray) -> IntArray:
        return np.where(serials == BLANK, 0, 1 + serials % self._length)

    def _write(self, new: list[Array]) -> None:
        if not new:
            return
        places = self._places_of(self._written + np.arange(len(new)))
        self._frames[to_device(places, self._device)] = to_device(np.stack(new).view(self._stored_as), self._device)
        self._written += len(new)

    def _forget_overwritten(self) -> None:
        first = max(self.first_step, self._steps - self._rows)
        # Frames of a row are never older than those of the row before
        while self._first_frames[first % self._rows] < self._written - self._length:
            first += 1
        self.first_step = first

    def places(self, steps: IntArray, envs: IntArray, last_steps: IntArray) -> npt.NDArray[np.int32]:
        """
        :param steps: numbers of stored steps, shape (n,)
        :param envs: environment in each of them, shape (n,)
        :param last_steps: last steps of the n-step windows that begin there, shape (n,)
        :return: places of the frames before the former and after the latter, shape (n, 2 * depth)
        """
        before = self._places[steps % self._rows, envs, 0]
        after = self._places[last_steps % self._rows, envs, 1]
        return np.concatenate([before, after], axis=1)

    def read(self, places: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param places: of frames, shape (batch, 2 * depth)
        :return: a copy of the observations before and after the steps, shape (batch, \\*obs_shape)
        """
        frames = self._frames[places.long()].view(self._dtype)
        return self._join(frames[:, : self.depth]), self._join(frames[:, self.depth :])

    def get(self, steps: Array, envs: Array, last_steps: Array | None = None) -> tuple[Array, Array]:
        """As for ``ObservationStore``, on the host."""
        places = self.places(steps, envs, steps if last_steps is None else last_steps)
        obs, next_obs = self.read(to_device(places, self._device))
        return obs.cpu().numpy(), next_obs.cpu().numpy()

    def history(self) -> Iterator[tuple[int, Array, Array, Array, Array]]:
        """As for ``FrameKeeper``."""
        envs = np.arange(self._n_envs)
        for step in range(self.first_step, self._steps):
            row = step % self._rows
            follows = self._follows[row] & (step > self.first_step)
            yield step, *self.get(np.full(self._n_envs, step), envs), follows, self._uses_next[row]


class DeviceStore(AdaptiveStore):
    """
    An ``AdaptiveStore`` on a device.

    :param args: as for ``AdaptiveStore``
    :param device: where the frames lie
    :param kwargs: as for ``AdaptiveStore``
    """

    def __init__(self, *args: Any, device: th.device, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._device = device

    @property
    def frames(self) -> PooledFrames:
        """The pool; there is one as soon as a step was added."""
        assert isinstance(self._store, PooledFrames)
        return self._store

    def _empty_store(self, layout: FrameLayout | None) -> PooledFrames:
        return PooledFrames(*self._size, layout, self._device)

    def _nbytes_in(self, layout: FrameLayout | None) -> float:
        return PooledFrames.nbytes_of(*self._size, layout)


def pool_length(rows: int, n_envs: int, depth: int) -> int:
    """
    :param rows: number of steps to hold
    :param n_envs: number of environments
    :param depth: frames in a stack
    :return: number of frames in the pool. However many segments begin, the newest step keeps its own
    """
    return math.ceil((rows + depth) * n_envs * (1 + SPARE)) + (depth + 1) ** 2 * n_envs
