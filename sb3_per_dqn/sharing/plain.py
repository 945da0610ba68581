"""
A model's arguments as JSON and back. What is no plain data is named, by a name from a fixed list.

Nothing in the JSON names code to import: a name that is not in the list has to come with a class from the caller.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common import buffers, torch_layers
from stable_baselines3.dqn import policies as dqn_policies
from torch import nn

from sb3_per_dqn.checkpoint.state import KIND
from sb3_per_dqn.minatar import MinAtarCNN, MinAtarPolicy
from sb3_per_dqn.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_per_dqn.replay.device_buffer import DeviceReplayBuffer
from sb3_per_dqn.replay.prioritized_buffer import PrioritizedReplayBuffer
from sb3_per_dqn.schedules import PiecewiseSchedule

Plain = Any  # None, bool, int, float, str, or a list or dict (by str) of these, as JSON has them

POLICIES = (MlpPolicy, CnnPolicy, MultiInputPolicy, MinAtarPolicy)
SB3_POLICIES = (dqn_policies.MlpPolicy, dqn_policies.CnnPolicy, dqn_policies.MultiInputPolicy)
EXTRACTORS = (torch_layers.FlattenExtractor, torch_layers.NatureCNN, torch_layers.CombinedExtractor, MinAtarCNN)
BUFFERS = (
    *(PrioritizedReplayBuffer, DeviceReplayBuffer, HerReplayBuffer),
    *(buffers.ReplayBuffer, buffers.DictReplayBuffer, buffers.NStepReplayBuffer),
)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Softsign, nn.Identity),
)
OPTIMIZERS = (
    *(th.optim.Adam, th.optim.AdamW, th.optim.Adamax, th.optim.NAdam, th.optim.RAdam),
    *(th.optim.SGD, th.optim.RMSprop, th.optim.Adagrad, th.optim.Adadelta),
)
KNOWN: dict[str, type] = {
    **{known.__name__: known for known in (*POLICIES, *EXTRACTORS, *BUFFERS, *ACTIVATIONS, *OPTIMIZERS)},
    **{f"stable_baselines3.dqn.{known.__name__}": known for known in SB3_POLICIES},
}
NAMES = {known: name for name, known in KNOWN.items()}
SCHEDULE_POINTS = 100  # into which a callable schedule is cut


class ModelFolderError(ValueError):
    """A model folder that cannot be written or read: what is wrong, and what to do."""


def to_plain(thing: Any, what: str) -> Plain:
    """
    :param thing: an argument
    :param what: its name, for messages
    :return: the same as JSON can hold it
    :raises ModelFolderError: if it is not made of plain data, schedules and classes
    """
    if isinstance(thing, np.generic):
        thing = thing.item()
    if thing is None or type(thing) in (bool, int, str) or (type(thing) is float and math.isfinite(thing)):
        return thing
    if type(thing) is float:
        return {KIND: "float", "value": repr(thing)}
    if type(thing) is list:
        return [to_plain(item, f"{what}[{i}]") for i, item in enumerate(thing)]
    if type(thing) is tuple:
        return {KIND: "tuple", "items": to_plain(list(thing), what)}
    if isinstance(thing, dict) and KIND not in thing and all(isinstance(key, str) for key in thing):
        return {key: to_plain(value, f"{what}[{key!r}]") for key, value in thing.items()}
    if isinstance(thing, PiecewiseSchedule):
        endpoints = [list(pair) for pair in thing.endpoints]
        return {KIND: "schedule", "endpoints": endpoints, "outside_value": thing.outside_value}
    if isinstance(thing, type):
        return {KIND: "class", "name": _name_of(thing, what)}
    raise ModelFolderError(f"{what}={thing!r} is no plain data, and cannot be written into a model folder.")


def _name_of(given: type, what: str) -> str:
    name = NAMES.get(given, given.__name__)
    if KNOWN.get(name, given) is not given:
        raise ModelFolderError(f"{what}={given!r} has the name of another class, {KNOWN[name]!r}: rename it.")
    return name


def from_plain(plain: Plain, classes: Mapping[str, type], what: str) -> Any:
    """
    :param plain: from :func:`to_plain`
    :param classes: what may be named in it, from :func:`nameable`
    :param what: the argument's name, for messages
    :return: the argument
    :raises ModelFolderError: for an unknown name
    :raises ValueError: (or another exception) for what did not come from there
    """
    if isinstance(plain, list):
        return [from_plain(item, classes, f"{what}[{i}]") for i, item in enumerate(plain)]
    if not isinstance(plain, dict):
        return plain
    kind = plain.get(KIND)
    if kind is None:
        return {key: from_plain(value, classes, f"{what}[{key!r}]") for key, value in plain.items()}
    if kind == "float" and plain["value"] in ("inf", "-inf", "nan"):
        return float(plain["value"])
    if kind == "tuple":
        return tuple(from_plain(plain["items"], classes, what))
    if kind == "schedule":
        return PiecewiseSchedule(plain["endpoints"], plain["outside_value"])
    if kind != "class":
        raise ModelFolderError(f"{what}={plain!r} is nothing that this package writes.")
    if plain["name"] not in classes:
        raise ModelFolderError(
            f"{what} is the class {plain['name']!r}, which this package does not have: if you have it and trust it, "
            "load_model(..., classes=[it])."
        )
    return classes[plain["name"]]


def nameable(classes: Iterable[type]) -> dict[str, type]:
    """
    :param classes: the caller's
    :return: these and our own by name
    :raises ModelFolderError: if one has the name of one of ours
    """
    return {**KNOWN, **{_name_of(given, "classes"): given for given in classes}}


def foreign_names(plain: Plain) -> set[str]:
    """
    :param plain: from :func:`to_plain`
    :return: names of classes in it that are none of ours
    """
    if isinstance(plain, dict) and plain.get(KIND) == "class":
        return {plain["name"]} - KNOWN.keys()
    parts = plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ()
    return set().union(*map(foreign_names, parts))


def as_endpoints(schedule: Any, what: str) -> Any:
    """
    :param schedule: a value, endpoints, or a callable of ``progress_remaining``
    :param what: the argument's name, for messages
    :return: the same; a callable as its value, if it is constant, or else as a :class:`PiecewiseSchedule` through
        its values at ``SCHEDULE_POINTS`` + 1 points, with a warning if that differs from it between them
    :raises ModelFolderError: if it gives something else than finite numbers
    """
    if isinstance(schedule, (list, tuple)):
        return [list(pair) for pair in schedule]  # JSON has no other
    if isinstance(schedule, PiecewiseSchedule) or not callable(schedule):
        return schedule
    try:
        values = [float(schedule(1 - i / SCHEDULE_POINTS)) for i in range(SCHEDULE_POINTS + 1)]
        piecewise = PiecewiseSchedule(tuple(_without_needless(values)))
    except Exception as error:  # it is the user's code
        raise ModelFolderError(f"{what}={schedule!r} cannot be written as endpoints: {error!r}.") from error
    if len(set(values)) == 1 and _agree(piecewise, schedule):
        return values[0]
    if not _agree(piecewise, schedule):
        warnings.warn(
            f"{what}: {schedule!r} is written as straight lines through its values at {SCHEDULE_POINTS + 1} points.",
            stacklevel=4,
        )
    return piecewise


def _without_needless(values: list[float]) -> list[tuple[float, float]]:
    """
    :param values: at equal distances
    :return: endpoints, without those on the straight line between their neighbours
    """
    last = len(values) - 1
    small = 1e-9 * max(map(abs, values))
    kept = [i for i in range(1, last) if abs(values[i - 1] - 2 * values[i] + values[i + 1]) > small]
    return [(i / last, values[i]) for i in (0, *kept, last)]


def _agree(piecewise: PiecewiseSchedule, schedule: Callable[[float], float]) -> bool:
    middles = [(i + 0.5) / SCHEDULE_POINTS for i in range(SCHEDULE_POINTS)]
    return all(math.isclose(piecewise(at), schedule(at), rel_tol=1e-6, abs_tol=1e-12) for at in middles)
