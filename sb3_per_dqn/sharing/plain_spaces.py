"""Observation and action spaces as JSON and back."""

import math
from collections import OrderedDict
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_per_dqn.sharing.plain import ModelFolderError, Plain, from_plain, to_plain

MOST_VALUES = 2**24  # of one observation
DTYPES = (
    *(
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
        "bool",
    ),
)


def space_to_plain(space: spaces.Space[Any]) -> Plain:
    """
    :param space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these
    :return: the same as JSON can hold it
    :raises ModelFolderError: for another
    """
    kind = type(space).__name__
    if type(space) is spaces.Dict:
        return {"type": kind, "spaces": {key: space_to_plain(part) for key, part in space.spaces.items()}}
    if type(space) is spaces.Box:
        bounds = {"low": _compact(space.low), "high": _compact(space.high)}
        return {"type": kind, "shape": list(space.shape), "dtype": _dtype(space), **bounds}
    if type(space) is spaces.Discrete:
        return {"type": kind, "n": int(space.n), "start": int(space.start), "dtype": _dtype(space)}
    if type(space) is spaces.MultiDiscrete:
        return {"type": kind, "nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": _dtype(space)}
    if type(space) is spaces.MultiBinary:
        return {"type": kind, "n": space.n if isinstance(space.n, int) else list(space.shape)}
    raise ModelFolderError(f"{space} cannot be written into a model folder: it is no space of SB3's.")


def _dtype(space: spaces.Space[Any]) -> str:
    return str(np.dtype(space.dtype))


def _compact(bounds: np.ndarray) -> Plain:
    """
    :return: one number where all are the same, and else all of them, row by row
    """
    numbers = bounds.ravel().tolist()
    return to_plain(numbers[0] if len(set(numbers)) == 1 else numbers, "bounds")


def space_from_plain(plain: Plain) -> spaces.Space[Any]:
    """
    :param plain: from :func:`space_to_plain`
    :return: the space
    :raises ModelFolderError: if it is larger than any observation, or unknown
    :raises ValueError: (or another exception) for what did not come from there
    """
    kind = plain["type"]
    if kind == "Dict":
        return spaces.Dict(OrderedDict((key, space_from_plain(part)) for key, part in plain["spaces"].items()))
    if kind == "MultiBinary":
        n = plain["n"]
        _checked_shape(n if isinstance(n, list) else [n])
        return spaces.MultiBinary(n)
    if plain.get("dtype") not in DTYPES:
        raise ModelFolderError(f"a space of dtype {plain.get('dtype')!r} is nothing that this package writes.")
    dtype: Any = np.dtype(plain["dtype"])
    if kind == "Box":
        shape = _checked_shape(plain["shape"])
        low, high = (_bounds(plain[name], shape, dtype) for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        _check_size(plain["n"])
        return spaces.Discrete(plain["n"], start=plain["start"], dtype=dtype.type)
    if kind == "MultiDiscrete":
        nvec = np.array(plain["nvec"], dtype)
        _check_size(int(nvec.astype(float).sum()))
        return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=np.array(plain["start"], dtype))
    raise ModelFolderError(f"a space {kind!r} is nothing that this package writes.")


def _checked_shape(shape: list[int]) -> tuple[int, ...]:
    if not all(type(size) is int and size >= 1 for size in shape):
        raise ModelFolderError(f"a space of shape {shape!r} is none.")
    _check_size(math.prod(shape))
    return tuple(shape)


def _check_size(size: int) -> None:
    if size > MOST_VALUES:
        raise ModelFolderError(f"an observation of {size} values is larger than this package takes ({MOST_VALUES}).")


def _bounds(plain: Plain, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    numbers = from_plain(plain, {}, "bounds")
    if isinstance(numbers, list):
        return np.array(numbers, dtype).reshape(shape)
    return np.full(shape, numbers, dtype)
