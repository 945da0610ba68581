"""Where a replay buffer keeps its observations: each whole, or a dict of such stores."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

Array: TypeAlias = npt.NDArray[Any]
Observations: TypeAlias = Array | dict[str, Array]


class ObservationStore(Protocol):
    """A ring of rows; each holds one step of every environment: the observation before and the one after."""

    @property
    def nbytes(self) -> int:
        """Bytes that a full store takes."""

    def add(self, row: int, obs: Any, next_obs: Any) -> None:
        """
        Copy one step of all environments into a row.

        :param row: row to overwrite
        :param obs: observations before the step, shape (n_envs, \\*obs_shape), or a dict of such
        :param next_obs: observations after the step, likewise
        """

    def get(self, rows: Array, envs: Array) -> tuple[Observations, Observations]:
        """
        :param rows: rows to read, shape (batch,)
        :param envs: environment in each of these rows, shape (batch,)
        :return: copies of the observations before and after the steps, shape (batch, \\*obs_shape), or dicts of such
        """


class ArrayStore:
    """
    Keeps both observations of each step whole.

    :param rows: number of rows
    :param n_envs: number of environments
    :param space: any observation space of SB3's but Dict
    """

    def __init__(self, rows: int, n_envs: int, space: spaces.Space[Any]) -> None:
        shape = get_obs_shape(space)
        assert isinstance(shape, tuple)
        self._observations = np.zeros((rows, n_envs, *shape), dtype=space.dtype)
        self._next_observations = np.zeros_like(self._observations)
        self._is_discrete = isinstance(space, spaces.Discrete)

    @property
    def nbytes(self) -> int:
        return self._observations.nbytes + self._next_observations.nbytes

    def add(self, row: int, obs: Array, next_obs: Array) -> None:
        if self._is_discrete:  # they come as (n_envs,) and are kept, as SB3 does, as (n_envs, 1)
            obs, next_obs = np.reshape(obs, (-1, 1)), np.reshape(next_obs, (-1, 1))
        self._observations[row] = obs
        self._next_observations[row] = next_obs

    def get(self, rows: Array, envs: Array) -> tuple[Array, Array]:
        return self._observations[rows, envs], self._next_observations[rows, envs]


class DictStore:
    """
    One store for each entry of a Dict observation.

    :param stores: store by key
    """

    def __init__(self, stores: Mapping[str, ObservationStore]) -> None:
        self._stores = dict(stores)

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self._stores.values())

    def add(self, row: int, obs: Mapping[str, Array], next_obs: Mapping[str, Array]) -> None:
        for key, store in self._stores.items():
            store.add(row, obs[key], next_obs[key])

    def get(self, rows: Array, envs: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        pairs = {key: store.get(rows, envs) for key, store in self._stores.items()}
        return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}  # type: ignore[misc]


def make_observation_store(rows: int, n_envs: int, space: spaces.Space[Any]) -> ObservationStore:
    """
    :param rows: number of rows
    :param n_envs: number of environments
    :param space: any observation space that SB3's DQN takes
    :return: an empty store for it
    """
    if isinstance(space, spaces.Dict):
        return DictStore({key: make_observation_store(rows, n_envs, part) for key, part in space.spaces.items()})
    return ArrayStore(rows, n_envs, space)
