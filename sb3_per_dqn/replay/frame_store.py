"""One copy of every frame of stacked observations, from which the stacks are rebuilt bit by bit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_per_dqn.replay.frame_ring import Array, CompressedFrames, FrameRing, RawFrames


@dataclass(frozen=True)
class FrameLayout:
    """
    How an observation is a stack of frames, oldest first: ``depth`` equal parts along one of its axes.

    :param axis: 0, or -1 for the last
    :param depth: number of frames in a stack, at least 2
    """

    axis: int
    depth: int

    def split(self, observations: Array) -> Array:
        """
        :param observations: shape (n, \\*obs_shape)
        :return: a view of them as frames, shape (n, depth, \\*frame_shape)
        """
        n, *shape = observations.shape
        if self.axis == 0:
            return observations.reshape(n, self.depth, shape[0] // self.depth, *shape[1:])
        return np.moveaxis(observations.reshape(n, *shape[:-1], self.depth, shape[-1] // self.depth), -2, 1)

    def join(self, frames: Array) -> Array:
        """
        :param frames: shape (n, depth, \\*frame_shape)
        :return: the observations, shape (n, \\*obs_shape): a view where the memory's order allows it, else a copy
        """
        if self.axis == 0:
            n, depth, channels, *rest = frames.shape
            return frames.reshape(n, depth * channels, *rest)
        frames = np.moveaxis(frames, 1, -2)
        return frames.reshape(*frames.shape[:-2], -1)

    def jumping(self, obs: Array, next_obs: Array) -> Array:
        """
        :param obs: observations before a step, shape (n, \\*obs_shape)
        :param next_obs: observations after it, likewise
        :return: where the older frames of one are not the newer frames of the other, bit by bit; shape (n,)
        """
        before, after = self._stack_last(obs), self._stack_last(next_obs)
        size = before.shape[-1]
        frame = size // self.depth
        if before.flags.c_contiguous and after.flags.c_contiguous:
            # Pixel by pixel, as VecFrameStack has them: one long comparison beats many of depth - 1 numbers
            differs: Array = np.empty((len(obs), before[0].size // size, size), dtype=bool)
            flat = differs.reshape(-1)
            np.not_equal(bits(before).reshape(-1)[frame:], bits(after).reshape(-1)[:-frame], out=flat[:-frame])
            differs[:, :, -frame:] = False  # where the newest frame stood beside the next pixel's oldest
        else:
            differs = bits(self.split(obs))[:, 1:] != bits(self.split(next_obs))[:, :-1]
        return any_of_each(differs)

    def _stack_last(self, observations: Array) -> Array:
        if self.axis == -1:
            return observations
        stack_last: Array = observations.transpose(0, *range(2, observations.ndim), 1)
        return stack_last


def frame_layouts(space: spaces.Space[Any]) -> list[FrameLayout]:
    """
    :param space: observation space
    :return: all that a stack in this space may be, the likeliest first: along the shorter of its outer axes, and with
        the smallest frames
    """
    if not isinstance(space, spaces.Box) or not space.shape or space.dtype.itemsize not in (1, 2, 4, 8):
        return []
    axes = [0] if len(space.shape) == 1 else sorted((0, -1), key=lambda axis: space.shape[axis])
    return [
        FrameLayout(axis, depth)
        for axis in axes
        for depth in range(space.shape[axis], 1, -1)
        if space.shape[axis] % depth == 0
    ]


def bits(array: Array) -> Array:
    """
    :param array: numbers
    :return: floating-point ones as unsigned integers of the same bits, so that NaN equals itself and 0.0 is not -0.0
    """
    return array.view(f"u{array.dtype.itemsize}") if array.dtype in (np.float16, np.float32, np.float64) else array


def any_of_each(array: Array) -> Array:
    """
    :param array: booleans, shape (n, ...)
    :return: whether any is true, for each of the n; shape (n,)
    """
    return np.asarray(array.any(axis=tuple(range(1, array.ndim))))


class FrameStore:
    """
    Keeps each frame once, for observations that are sliding stacks.

    The newest frame of the observation before step s of an environment lies in row s of a ring, and so does the newest
    frame of the observation after step s - 1, unless a segment (an episode, or a stream that broke off) ended between
    the two. The ring is at least ``depth`` rows longer than the buffer, so that every stored step finds its older
    frames. What does not fit in it is kept aside, by serial number: the older frames of a stack with which a segment
    begins (unless they repeat its newest one), and the last frame of a segment that is bootstrapped from.

    After a true termination, for which ``uses_next`` is ``False``, the next observation is arbitrary.

    :param rows: number of steps to hold
    :param n_envs: number of environments
    :param shape: shape of an observation
    :param dtype: dtype of the observations
    :param layout: how they are stacks
    :param compress: whether to compress the frames
    """

    def __init__(
        self,
        rows: int,
        n_envs: int,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        layout: FrameLayout,
        compress: bool = False,
    ) -> None:
        self._rows = rows
        self._n_envs = n_envs
        self.layout = layout
        frame_shape = layout.split(np.empty((1, *shape))).shape[2:]
        ring = CompressedFrames if compress else RawFrames
        self._frames: FrameRing = ring(rows + layout.depth, n_envs, frame_shape, dtype)
        # Steps since the segment began, at most depth - 1: more of its past no stack shows
        self._ages = np.zeros((rows, n_envs), dtype=np.min_scalar_type(layout.depth))
        self._uses_next = np.zeros((rows, n_envs), dtype=bool)
        self._older_frames: dict[int, Array] = {}  # at the start of a segment, (depth - 1, *frame_shape)
        self._last_frame: dict[int, Array] = {}  # at its end, (*frame_shape)
        self._blank = np.zeros((layout.depth - 1, *frame_shape), dtype=dtype)  # one for all
        self._steps = 0

    @staticmethod
    def nbytes_of(
        rows: int,
        n_envs: int,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        layout: FrameLayout,
        compress: bool = False,
    ) -> int:
        """
        :return: bytes that such a store takes, without what is kept aside; how small frames get by compression is not
            known beforehand, and not counted
        """
        frame_nbytes = 0 if compress else math.prod(shape) * np.dtype(dtype).itemsize // layout.depth
        return ((rows + layout.depth) * frame_nbytes + rows * 2) * n_envs

    @property
    def full_nbytes(self) -> float:
        """The same, or an estimate from the frames compressed so far."""
        return self._frames.full_nbytes + self._ages.nbytes + self._uses_next.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        older = [frames for frames in self._older_frames.values() if frames is not self._blank]
        arrays = (self._ages, self._uses_next, *older, *self._last_frame.values())
        return self._frames.nbytes + sum(array.nbytes for array in arrays)

    def add(self, step: int, obs: Array, next_obs: Array, follows: Array, uses_next: Array) -> None:
        row = step % self._rows
        self._forget(step - self._rows - self.layout.depth)
        self._ages[row] = np.where(follows, np.minimum(self._ages[row - 1] + 1, self.layout.depth - 1), 0)
        for env in np.flatnonzero(~follows).tolist():
            if step > 0 and self._uses_next[row - 1, env]:
                self._last_frame[self._serial(step - 1, env)] = self._newest_frame(step, env)
            self._begin_segment(step, env, self.layout.split(obs[env : env + 1])[0])
        self._frames.write((step + 1) % self._frames.rows, self.layout.split(next_obs)[:, -1])
        self._uses_next[row] = uses_next
        self._steps = step + 1

    def _newest_frame(self, step: int, env: int) -> Array:
        frame: Array = self._frames.read(np.array([[step % self._frames.rows]]), np.array([env]))[0, 0]
        return frame

    def _begin_segment(self, step: int, env: int, stack: Array) -> None:
        self._frames.rewrite(step % self._frames.rows, env, stack[-1])
        older = bits(stack[:-1])
        if not older.any():
            self._older_frames[self._serial(step, env)] = self._blank
        elif (older != bits(stack[-1])).any():
            self._older_frames[self._serial(step, env)] = stack[:-1].copy()

    def _forget(self, step: int) -> None:
        for serial in range(step * self._n_envs, (step + 1) * self._n_envs):
            self._older_frames.pop(serial, None)
            self._last_frame.pop(serial, None)

    def _serial(self, step: int, env: int) -> int:
        return int(step * self._n_envs + env)

    def get(self, steps: Array, envs: Array, last_steps: Array | None = None) -> tuple[Array, Array]:
        depth = self.layout.depth
        if last_steps is None and self._blank.dtype == np.uint8:
            # Both stacks are parts of one block, which costs 5 frames instead of 8. Networks make floats of bytes, so
            # none gets to see that the two overlap; other dtypes are handed out as arrays of their own
            block = self._block(steps, envs, np.arange(1 - depth, 2))
            return self.layout.join(block[:, :-1]), self.layout.join(block[:, 1:])
        obs = self._block(steps, envs, np.arange(1 - depth, 1))
        next_obs = self._block(steps if last_steps is None else last_steps, envs, np.arange(2 - depth, 2))
        return self.layout.join(obs), self.layout.join(next_obs)

    def _block(self, steps: Array, envs: Array, offsets: Array) -> Array:
        """
        :param steps: steps to read, shape (batch,)
        :param envs: environment of each, shape (batch,)
        :param offsets: consecutive frames to read for each, from the newest one before the step on; shape (n,)
        :return: frames, shape (batch, n, \\*frame_shape)
        """
        ages = self._ages[steps % self._rows, envs].astype(np.int64)
        # Frames from before the segment are taken for its first one, and replaced where they differ
        frame_rows = (steps[:, None] + np.maximum(offsets, -ages[:, None])) % self._frames.rows
        block = self._frames.read(frame_rows, envs)
        earlier = -offsets[0] - ages  # frames of the block from before the segment
        for i in np.flatnonzero(earlier > 0).tolist():
            older = self._older_frames.get(self._serial(steps[i] - ages[i], envs[i]))
            if older is not None:
                block[i, : earlier[i]] = older[-earlier[i] :]
        if offsets[-1] == 1 and self._last_frame:
            for i in range(len(steps)):
                last_frame = self._last_frame.get(self._serial(steps[i], envs[i]))
                if last_frame is not None:
                    block[i, -1] = last_frame
        return block

    def history(self) -> Iterator[tuple[int, Array, Array, Array, Array]]:
        """
        :return: the arguments of ``add`` for every step that is stored, the oldest first
        """
        envs = np.arange(self._n_envs)
        oldest = max(self._steps - self._rows, 0)
        for step in range(oldest, self._steps):
            steps, row = np.full(self._n_envs, step), step % self._rows
            yield step, *self.get(steps, envs), (self._ages[row] > 0) & (step > oldest), self._uses_next[row]
