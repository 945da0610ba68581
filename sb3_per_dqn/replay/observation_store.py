"""Where a replay buffer keeps its observations: each whole, one copy of each frame, or a dict of such stores."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_per_dqn.replay.frame_ring import Array
from sb3_per_dqn.replay.frame_store import FrameLayout, FrameStore, any_of_each, bits, frame_layouts

Observations: TypeAlias = Array | dict[str, Array]

WORTH_A_WARNING = 10**8  # bytes that whole arrays take more


class ObservationStore(Protocol):
    """
    The observations before and after each of the last steps of all environments.

    Steps are numbered from 0 on, for ever, and added in this order. Adding has two parts, so that a refused step leaves
    no trace in any of several stores: ``prepare`` may raise, ``add`` writes; what is not added is withdrawn.
    """

    @property
    def full_nbytes(self) -> float:
        """Bytes that it takes when full, by what is known so far; ``prepare`` and ``add`` may change this."""

    @property
    def moves(self) -> bool:
        """Whether the next ``add`` moves all that is stored to another layout."""

    @property
    def nbytes(self) -> int:
        """Bytes held (reserved, before the ring is full)."""

    @property
    def layouts(self) -> Any:
        """How observations are stacks of frames, by what is known so far."""

    def allocate(self, layouts: Any) -> None:
        """
        Make room, for contents that come from a file.

        :param layouts: that a store of the same size and space had
        """

    def prepare(self, step: int, obs: Any, next_obs: Any, uses_next: Array) -> Array:
        """
        Find out how to store a step, and whether it may be stored. Stores nothing and allocates nothing.

        :param step: number of the step
        :param obs: observations before the step, shape (n_envs, \\*obs_shape), or a dict of such
        :param next_obs: observations after the step, likewise
        :param uses_next: whether the next observation will be bootstrapped from, shape (n_envs,)
        :return: whether ``obs`` is bit by bit the observation after the last step that was added, shape (n_envs,)
        :raises ValueError: if the observations do not fit what was demanded, or the space
        """

    def withdraw(self) -> None:
        """Forget a step that was prepared, or refused, and will not be added."""

    def add(self, step: int, obs: Any, next_obs: Any, follows: Array, uses_next: Array) -> None:
        """
        Copy one step of all environments into the store, in place of the oldest one.

        :param step: number of the step
        :param obs: observations before the step, shape (n_envs, \\*obs_shape), or a dict of such
        :param next_obs: observations after the step, likewise
        :param follows: whether the observation is the one after the environment's last step, shape (n_envs,)
        :param uses_next: whether the next observation will be bootstrapped from, shape (n_envs,)
        """

    def get(self, steps: Array, envs: Array, last_steps: Array | None = None) -> tuple[Observations, Observations]:
        """
        :param steps: numbers of stored steps, shape (batch,)
        :param envs: environment in each of these steps, shape (batch,)
        :param last_steps: last steps of the n-step windows that begin there, shape (batch,); ``None`` if n is 1
        :return: the observations before ``steps`` and after ``last_steps``, shape (batch, \\*obs_shape), or dicts of
            such. No part of the store; bytes (uint8) of the two may share memory with each other
        """


class ArrayStore:
    """
    Keeps both observations of each step whole.

    :param rows: number of steps to hold
    :param n_envs: number of environments
    :param shape: shape of an observation
    :param dtype: dtype of the observations
    """

    layout = None

    def __init__(self, rows: int, n_envs: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._rows = rows
        # zeros_like() would write all pages, where zeros() takes each when it is first written to
        self._observations = np.zeros((rows, n_envs, *shape), dtype=dtype)
        self._next_observations = np.zeros((rows, n_envs, *shape), dtype=dtype)

    @staticmethod
    def nbytes_of(rows: int, n_envs: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> int:
        """
        :return: bytes that such a store takes
        """
        return 2 * rows * n_envs * math.prod(shape) * np.dtype(dtype).itemsize

    @property
    def nbytes(self) -> int:
        return self._observations.nbytes + self._next_observations.nbytes

    @property
    def full_nbytes(self) -> float:
        return self.nbytes

    def add(self, step: int, obs: Array, next_obs: Array, follows: Array, uses_next: Array) -> None:
        self._observations[step % self._rows] = obs
        self._next_observations[step % self._rows] = next_obs

    def get(self, steps: Array, envs: Array, last_steps: Array | None = None) -> tuple[Array, Array]:
        last_rows = (steps if last_steps is None else last_steps) % self._rows
        return self._observations[steps % self._rows, envs], self._next_observations[last_rows, envs]


class FrameKeeper(Protocol):
    """A store in one layout, which can be left for another."""

    @property
    def layout(self) -> FrameLayout | None:
        """How observations are stacks of frames, if they are."""

    @property
    def full_nbytes(self) -> float:
        """As for ``ObservationStore``."""

    @property
    def nbytes(self) -> int:
        """As for ``ObservationStore``."""

    def add(self, step: int, obs: Array, next_obs: Array, follows: Array, uses_next: Array) -> None:
        """As for ``ObservationStore``."""

    def get(self, steps: Array, envs: Array, last_steps: Array | None = None) -> tuple[Array, Array]:
        """As for ``ObservationStore``."""

    def history(self) -> Iterator[tuple[int, Array, Array, Array, Array]]:
        """
        :return: the arguments of ``add`` for every step that is stored, the oldest first
        """


class AdaptiveStore:
    """
    Keeps each frame once for as long as the observations prove to be sliding stacks, and whole arrays otherwise.

    It begins with the likeliest of the layouts that the first step agrees with. When a later step contradicts it (still
    pictures look like stacks of anything), all that is stored moves to the next one. Nothing is allocated before the
    first step is added.

    :param rows: number of steps to hold
    :param n_envs: number of environments
    :param space: any observation space of SB3's but Dict
    :param single_frames: ``None`` decides as above, ``True`` forbids whole arrays, ``False`` single frames
    :param compress: whether to compress single frames
    :param name: what to call the observations in messages
    """

    def __init__(
        self,
        rows: int,
        n_envs: int,
        space: spaces.Space[Any],
        single_frames: bool | None = None,
        compress: bool = False,
        name: str = "observation",
    ) -> None:
        self._size = rows, n_envs, obs_shape(space), np.dtype(space.dtype)
        self._is_discrete = isinstance(space, spaces.Discrete)
        self._single_frames = single_frames
        self._compress = compress
        self._name = name
        self._layouts = [] if single_frames is False else frame_layouts(space)  # those that nothing contradicts yet
        self._layouts_left: list[FrameLayout] | None = None  # after a step that is prepared, and not yet added
        self._store: ArrayStore | FrameKeeper | None = None
        self._last_next_obs: Array | None = None
        if single_frames and not self._layouts:
            raise ValueError(
                f"single_frames=True, but the {name} space {space} has no room for a stack of frames: "
                "pass single_frames=None."
            )

    @property
    def _layout(self) -> FrameLayout | None:
        layouts = self._layouts if self._layouts_left is None else self._layouts_left
        return layouts[0] if layouts else None

    @property
    def layouts(self) -> list[list[int]]:
        """Axis and depth of the layouts that nothing contradicts yet, that of the store first; none of whole arrays."""
        return [[layout.axis, layout.depth] for layout in self._layouts]

    def allocate(self, layouts: list[list[int]]) -> None:
        self._layouts = [FrameLayout(axis, depth) for axis, depth in layouts]
        self._store = self._empty_store(self._layout)

    @property
    def full_nbytes(self) -> float:
        if self._store is not None and self._store.layout == self._layout:
            return self._store.full_nbytes
        return self._nbytes_in(self._layout)

    @property
    def moves(self) -> bool:
        return self._store is not None and self._store.layout != self._layout

    @property
    def nbytes(self) -> int:
        return 0 if self._store is None else self._store.nbytes

    def prepare(self, step: int, obs: Any, next_obs: Any, uses_next: Array) -> Array:
        obs, next_obs = self._arrays(obs, next_obs)
        if self._store is None and not self._single_frames:
            uses_next = np.ones_like(uses_next)  # the first step must prove something, even if it is a last one
        layouts = self._layouts
        while layouts and not self._agrees(layouts[0], obs, next_obs, uses_next):
            layouts = layouts[1:]
        if self._single_frames and not layouts:
            jumps = _jumps(self._layouts[0], obs, next_obs, uses_next)
            raise ValueError(
                f"single_frames=True, but at step {step} of the buffer the {self._name} of environment "
                f"{np.flatnonzero(jumps)[0]} is no sliding stack of frames (the next one must repeat all of its frames "
                "but the oldest): pass single_frames=None to keep whole arrays in such a case."
            )
        self._layouts_left = layouts
        if self._last_next_obs is None:
            return np.zeros(len(obs), dtype=bool)
        follows: Array = ~any_of_each(bits(obs) != bits(self._last_next_obs))
        return follows

    def withdraw(self) -> None:
        self._layouts_left = None

    def _warn_of_whole_arrays(self, step: int) -> None:
        more = 0.0 if self._store is None else self._nbytes_in(None) - self._store.full_nbytes
        if more >= WORTH_A_WARNING:
            warnings.warn(
                f"At step {step} an {self._name} is no sliding stack of frames any more: from now on they are kept "
                f"whole, which takes {more / 1e9:.3g} GB more.",
                stacklevel=4,
            )
        elif self._store is None and self._compress:
            warnings.warn(
                f"compress_frames=True is without effect: an {self._name} is no sliding stack of frames.", stacklevel=4
            )

    def add(self, step: int, obs: Any, next_obs: Any, follows: Array, uses_next: Array) -> None:
        if self._layouts and self._layout is None:
            self._warn_of_whole_arrays(step)
        if self._store is None or self.moves:
            self._store = self._moved()
        if self._layouts_left is not None:
            self._layouts, self._layouts_left = self._layouts_left, None
        obs, next_obs = self._arrays(obs, next_obs)
        self._store.add(step, obs, next_obs, follows, uses_next)
        self._last_next_obs = np.copy(next_obs, order="K")  # in memory as given, and so soon compared

    def get(self, steps: Array, envs: Array, last_steps: Array | None = None) -> tuple[Array, Array]:
        assert self._store is not None
        return self._store.get(steps, envs, last_steps)

    def _arrays(self, *observations: Any) -> Iterator[Array]:
        _, n_envs, shape, dtype = self._size
        for given in observations:
            array = np.asarray(given, dtype=dtype)
            if self._is_discrete:  # they come as (n_envs,) and are kept, as in SB3, as (n_envs, 1)
                array = array.reshape(-1, 1)
            if array.shape != (n_envs, *shape):
                raise ValueError(f"{self._name} has the shape {array.shape}: it must be {(n_envs, *shape)}.")
            yield array

    def _agrees(self, layout: FrameLayout, obs: Array, next_obs: Array, uses_next: Array) -> bool:
        if _jumps(layout, obs, next_obs, uses_next).any():
            return False
        if self._store is not None and layout != self._store.layout:
            return not any(_jumps(layout, *stored[1:3], stored[4]).any() for stored in self._history())
        return True

    def _moved(self) -> ArrayStore | FrameKeeper:
        """
        :return: a store in the current layout that holds all that is stored already
        """
        store = self._empty_store(self._layout)
        for stored in self._history():
            store.add(*stored)
        return store

    def _history(self) -> Iterable[tuple[int, Array, Array, Array, Array]]:
        # whole arrays can be contradicted by nothing, and are left for nothing
        return () if self._store is None or isinstance(self._store, ArrayStore) else self._store.history()

    def _empty_store(self, layout: FrameLayout | None) -> ArrayStore | FrameKeeper:
        return ArrayStore(*self._size) if layout is None else FrameStore(*self._size, layout, self._compress)

    def _nbytes_in(self, layout: FrameLayout | None) -> float:
        if layout is None:
            return ArrayStore.nbytes_of(*self._size)
        return FrameStore.nbytes_of(*self._size, layout, self._compress)


def _jumps(layout: FrameLayout, obs: Array, next_obs: Array, uses_next: Array) -> Array:
    jumps: Array = layout.jumping(obs, next_obs) & uses_next
    return jumps


class DictStore:
    """
    One store for each entry of a Dict observation.

    :param stores: store by key
    """

    def __init__(self, stores: Mapping[str, AdaptiveStore]) -> None:
        self._stores = dict(stores)

    @property
    def stores(self) -> dict[str, AdaptiveStore]:
        """Store by key."""
        return self._stores

    @property
    def layouts(self) -> dict[str, list[list[int]]]:
        """Of each entry."""
        return {key: store.layouts for key, store in self._stores.items()}

    def allocate(self, layouts: dict[str, list[list[int]]]) -> None:
        for key, store in self._stores.items():
            store.allocate(layouts[key])

    @property
    def full_nbytes(self) -> float:
        return sum(store.full_nbytes for store in self._stores.values())

    @property
    def moves(self) -> bool:
        return any(store.moves for store in self._stores.values())

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self._stores.values())

    def prepare(self, step: int, obs: Mapping[str, Array], next_obs: Mapping[str, Array], uses_next: Array) -> Array:
        missing = self._stores.keys() - (obs.keys() & next_obs.keys())
        if missing:
            raise ValueError(f"the observation lacks {', '.join(sorted(missing))}, which the observation space has.")
        follows = [store.prepare(step, obs[key], next_obs[key], uses_next) for key, store in self._stores.items()]
        result: Array = np.logical_and.reduce(follows)
        return result

    def withdraw(self) -> None:
        for store in self._stores.values():
            store.withdraw()

    def add(
        self, step: int, obs: Mapping[str, Array], next_obs: Mapping[str, Array], follows: Array, uses_next: Array
    ) -> None:
        for key, store in self._stores.items():
            store.add(step, obs[key], next_obs[key], follows, uses_next)

    def get(
        self, steps: Array, envs: Array, last_steps: Array | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        pairs = {key: store.get(steps, envs, last_steps) for key, store in self._stores.items()}
        return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}


def obs_shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    """
    :param space: any observation space of SB3's but Dict
    :return: shape of an observation, as SB3's buffers keep it
    """
    shape = get_obs_shape(space)
    assert isinstance(shape, tuple)
    return shape


def make_observation_store(
    rows: int,
    n_envs: int,
    space: spaces.Space[Any],
    single_frames: bool | None = None,
    compress: bool = False,
    make: Callable[..., AdaptiveStore] = AdaptiveStore,
) -> ObservationStore:
    """
    :param rows: number of steps to hold
    :param n_envs: number of environments
    :param space: any observation space that SB3's DQN takes
    :param single_frames: ``None`` keeps each frame once where observations prove to be sliding stacks, ``True`` demands
        it (of a Dict's entries: of those with three dimensions or more), ``False`` keeps whole arrays
    :param compress: whether to compress single frames (of a Dict's entries: of the same)
    :param make: what makes the store of observations that are no Dict, or of an entry
    :return: an empty store
    :raises ValueError: if single frames are demanded of a space that has none
    """
    if not isinstance(space, spaces.Dict):
        return make(rows, n_envs, space, single_frames, compress)
    images = [key for key, part in space.spaces.items() if len(obs_shape(part)) >= 3]
    if single_frames and not images:
        raise ValueError(f"single_frames=True, but no entry of {space} is an image: pass single_frames=None.")
    if compress and not images:
        warnings.warn(f"compress_frames=True is without effect: no entry of {space} is an image.", stacklevel=2)
    demands = {key: None if single_frames and key not in images else single_frames for key in space.spaces}
    return DictStore(
        {
            key: make(rows, n_envs, part, demands[key], compress and key in images, f"observation[{key!r}]")
            for key, part in space.spaces.items()
        }
    )
