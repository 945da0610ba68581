"""A ring of frames, one for each step of each environment: as they are, or compressed."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

GROUP = 8  # frames compressed together: 3 times smaller than one by one, and one batch decoded in less time
CODE_OVERHEAD = 57  # bytes of a Python object, of its place in an array, and of rounding in the allocator


class FrameRing(Protocol):
    """
    The rows are written in their order, round and round; the last one may be written again before the next. The first
    one to be written, which may be any, is rewritten.
    """

    rows: int

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    @property
    def full_nbytes(self) -> float:
        """Bytes that a full ring takes, or the estimate so far."""

    def write(self, row: int, frames: Array) -> None:
        """
        :param row: row to write
        :param frames: one of each environment, shape (n_envs, \\*frame_shape)
        """

    def rewrite(self, row: int, env: int, frame: Array) -> None:
        """
        :param row: row that was written last
        :param env: environment
        :param frame: replaces its frame, shape (\\*frame_shape)
        """

    def read(self, rows: Array, envs: Array) -> Array:
        """
        :param rows: for each environment named, rows that follow each other or are the same, shape (batch, n)
        :param envs: environments, shape (batch,)
        :return: a copy of their frames, shape (batch, n, \\*frame_shape)
        """


class RawFrames:
    """
    One array.

    :param rows: number of rows, at least
    :param n_envs: number of environments
    :param shape: shape of a frame
    :param dtype: its dtype
    """

    def __init__(self, rows: int, n_envs: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.rows = rows
        self.written = 0  # rows, ever: the last one lies in row ``written % rows``
        self._frames = np.zeros((rows, n_envs, *shape), dtype=dtype)

    @property
    def nbytes(self) -> int:
        return self._frames.nbytes

    @property
    def full_nbytes(self) -> float:
        return self.nbytes

    def write(self, row: int, frames: Array) -> None:
        self._frames[row] = frames
        self.written += (row - self.written - 1) % self.rows + 1  # the first row may be any

    def rewrite(self, row: int, env: int, frame: Array) -> None:
        self._frames[row, env] = frame

    def read(self, rows: Array, envs: Array) -> Array:
        n_envs, *shape = self._frames.shape[1:]
        frames: Array = self._frames.reshape(-1, *shape).take(rows * n_envs + envs[:, None], axis=0)
        return frames


class CompressedFrames:
    """
    LZ4 codes of groups of successive frames of one environment; the group that is being written is not compressed yet.

    The ring is longer by a group, so that the oldest group is whole until none of its rows is asked for any more.

    :param rows: number of rows, at least
    :param n_envs: number of environments
    :param shape: shape of a frame
    :param dtype: its dtype
    """

    def __init__(self, rows: int, n_envs: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        groups = -(-rows // GROUP) + 1
        self.rows = groups * GROUP
        self._codes = np.empty((groups, n_envs), dtype=object)
        self._open = np.zeros((n_envs, GROUP, *shape), dtype=dtype)
        self._open_group = 0
        self._coded = 0  # groups
        self._code_nbytes = 0

    @property
    def nbytes(self) -> int:
        return self._open.nbytes + self._code_nbytes

    @property
    def full_nbytes(self) -> float:
        return self._open.nbytes + self._code_nbytes / max(self._coded, 1) * self._codes.size

    def write(self, row: int, frames: Array) -> None:
        group, place = divmod(row, GROUP)
        if group != self._open_group:
            self._close()
            self._open_group = group
        self._open[:, place] = frames

    def _close(self) -> None:
        codes, compress = self._codes[self._open_group], lz4().compress
        for env, frames in enumerate(self._open):
            if codes[env] is None:
                self._coded += 1
            else:
                self._code_nbytes -= len(codes[env]) + CODE_OVERHEAD
            codes[env] = compress(frames, store_size=False)
            self._code_nbytes += len(codes[env]) + CODE_OVERHEAD

    def rewrite(self, row: int, env: int, frame: Array) -> None:
        self._open_group = row // GROUP
        self._open[env, row % GROUP] = frame

    def read(self, rows: Array, envs: Array) -> Array:
        frames = np.empty((*rows.shape, *self._open.shape[2:]), dtype=self._open.dtype)
        decompress = lz4().decompress
        groups, places = np.divmod(rows, GROUP)
        # Where another group begins, in each line; groups are in the order of their rows
        begins = np.diff(groups, axis=1, prepend=-1) != 0
        lines, firsts = begins.nonzero()
        ends = np.append(np.where(np.diff(lines) == 0, firsts[1:], rows.shape[1]), rows.shape[1])
        for line, first, end in zip(lines.tolist(), firsts.tolist(), ends.tolist(), strict=True):
            group = self._group(groups[line, first], envs[line], decompress)
            group.take(places[line, first:end], axis=0, out=frames[line, first:end], mode="clip")
        return frames

    def _group(self, group: int, env: int, decompress: Callable[..., bytes]) -> Array:
        if group == self._open_group:
            open_group: Array = self._open[env]
            return open_group
        frames = decompress(self._codes[group, env], uncompressed_size=self._open[env].nbytes)
        return np.frombuffer(frames, dtype=self._open.dtype).reshape(self._open.shape[1:])


def lz4() -> Any:
    """
    :return: the module ``lz4.block``, of an optional package
    :raises ValueError: if it is not installed
    """
    try:
        return import_module("lz4.block")
    except ImportError as error:
        raise ValueError("compress_frames=True needs lz4: pip install 'sb3-per-dqn[compression]'.") from error
