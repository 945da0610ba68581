"""Schedules as values: endpoints over the elapsed fraction of a run, called as Stable-Baselines3 calls a schedule."""

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

Endpoint: TypeAlias = tuple[float, float]
ScheduleLike: TypeAlias = float | Sequence[Sequence[float]] | Callable[[float], float]


@dataclass(frozen=True)
class PiecewiseSchedule:
    """
    Piecewise linear schedule through ``(elapsed_fraction, value)`` endpoints.

    Called with SB3's ``progress_remaining`` (1 at the start of a run, 0 at its end; elapsed is one minus that).
    Instances are immutable, hashable, picklable, and equal when their endpoints and ``outside_value`` are.

    :param endpoints: pairs ``(elapsed_fraction, value)``, at least one; the fractions lie in [0, 1] and strictly
        increase. Plain lists, as YAML holds them, are as good as tuples.
    :param outside_value: value before the first and after the last endpoint; ``None`` holds the value
        of the nearest endpoint.
    :raises ValueError: for empty, malformed, non-finite, unsorted or out-of-range endpoints, showing the offending pair
    """

    endpoints: tuple[Endpoint, ...]
    outside_value: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoints", _checked_endpoints(self.endpoints))
        if self.outside_value is not None:
            object.__setattr__(self, "outside_value", _finite(self.outside_value, "outside_value"))

    @classmethod
    def from_timesteps(
        cls, endpoints: Iterable[Sequence[float]], total_timesteps: float, outside_value: float | None = None
    ) -> "PiecewiseSchedule":
        """
        Build the schedule from joints given in timesteps (or updates) of a run of known length.

        :param endpoints: pairs ``(timestep, value)``, with ``0 <= timestep <= total_timesteps``
        :param total_timesteps: length of the run, in the same unit as the joints
        :param outside_value: as in the constructor
        :return: the same schedule over elapsed fractions
        :raises ValueError: as the constructor, showing the offending pair in timesteps
        """
        total = _finite(total_timesteps, "total_timesteps")
        if total <= 0:
            raise ValueError(f"total_timesteps={total_timesteps} must be above 0: give the length of the run.")
        joints = _checked_endpoints(endpoints, "timestep", total)
        return cls(tuple((timestep / total, value) for timestep, value in joints), outside_value)

    def __call__(self, progress_remaining: float) -> float:
        """
        :param progress_remaining: what remains of the run, 1 (start) to 0 (end)
        :return: the value at that point, within the range of the endpoints' values (or ``outside_value``)
        """
        elapsed = 1.0 - _within_run(progress_remaining)
        # progress_remaining is 1 - fraction, rounded: rounded alike, each joint is met exactly
        joints = [1.0 - (1.0 - fraction) for fraction, _ in self.endpoints]
        right = bisect_left(joints, elapsed)
        if right < len(joints) and joints[right] == elapsed:
            return self.endpoints[right][1]
        if right == 0 or right == len(joints):
            return self.endpoints[max(right - 1, 0)][1] if self.outside_value is None else self.outside_value
        (_, y_left), (_, y_right) = self.endpoints[right - 1 : right + 1]
        # a convex combination, so that rounding cannot carry it outside [y_left, y_right] by more than the clip removes
        share = (elapsed - joints[right - 1]) / (joints[right] - joints[right - 1])
        value = (1.0 - share) * y_left + share * y_right
        return min(max(value, min(y_left, y_right)), max(y_left, y_right))


@dataclass(frozen=True)
class _CheckedSchedule:
    """A user's callable; only reading it can tell whether it keeps to its range."""

    schedule: Callable[[float], float]
    name: str

    def __call__(self, progress_remaining: float) -> float:
        value = _finite(self.schedule(_within_run(progress_remaining)), f"{self.name}={self.schedule!r}")
        _check_values([value], self.schedule, self.name)
        return value


def _within_run(progress_remaining: float) -> float:
    """A run may overshoot its length by part of a rollout: schedules are read as at its end then."""
    return min(max(progress_remaining, 0.0), 1.0)


def as_schedule(value: ScheduleLike, name: str) -> Callable[[float], float]:
    """
    Turn what a user may give for a schedule into a schedule of numbers in [0, 1], as epsilon and beta are.

    :param value: a number (held for the whole run), endpoints as in :class:`PiecewiseSchedule`, or a callable of
        ``progress_remaining`` (checked at both ends now, and whenever it is read)
    :param name: the argument's name, for error messages
    :return: a callable of ``progress_remaining``
    :raises ValueError: when the value is none of these or leaves [0, 1]
    """
    if callable(value) and not isinstance(value, PiecewiseSchedule):
        checked = _CheckedSchedule(value, name)
        checked(1.0), checked(0.0)
        return checked
    schedule = value if isinstance(value, PiecewiseSchedule) else _piecewise(value, name)
    values = [y for _, y in schedule.endpoints]
    if schedule.outside_value is not None:
        values.append(schedule.outside_value)
    _check_values(values, value, name)
    return schedule


def _piecewise(value: Any, name: str) -> PiecewiseSchedule:
    endpoints: Any = ((0.0, value),) if isinstance(value, Real) else value
    try:
        return PiecewiseSchedule(endpoints)
    except ValueError as error:
        raise ValueError(f"{name}={value!r} is no schedule: {error}") from None


def _check_values(values: Iterable[float], given: Any, name: str) -> None:
    for y in values:
        if not 0.0 <= y <= 1.0:
            raise ValueError(f"{name}={given!r} gives {y}, outside [0, 1]: keep every value within that range.")


def _checked_endpoints(endpoints: Any, unit: str = "elapsed fraction", end: float = 1.0) -> tuple[Endpoint, ...]:
    pairs = tuple(_pair(pair) for pair in _iterated(endpoints))
    if not pairs:
        raise ValueError(f"endpoints=[] is empty: give at least one ({unit}, value) pair.")
    for pair in pairs:
        if not 0.0 <= pair[0] <= end:
            hint = " (see from_timesteps for timesteps)" if end == 1.0 else ""
            raise ValueError(f"endpoint {pair}: the {unit} must lie in [0, {end:.15g}]{hint}.")
    for left, right in itertools.pairwise(pairs):
        if left[0] >= right[0]:
            raise ValueError(f"endpoint {right} follows {left}: each {unit} must be above the one before.")
    return pairs


def _iterated(endpoints: Any) -> list[Any]:
    if isinstance(endpoints, (str, bytes)) or not isinstance(endpoints, Iterable):
        raise ValueError(f"endpoints={endpoints!r} must be a list of (elapsed_fraction, value) pairs.")
    return list(endpoints)


def _pair(pair: Any) -> Endpoint:
    if isinstance(pair, (str, bytes, Mapping)) or not hasattr(pair, "__getitem__") or len(pair) != 2:
        raise ValueError(f"endpoint {pair!r} must be a pair (elapsed_fraction, value).")
    return _finite(pair[0], f"endpoint {pair!r}"), _finite(pair[1], f"endpoint {pair!r}")


def _finite(number: Any, what: str) -> float:
    try:
        value = float(number)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if isinstance(number, (bool, str, bytes)) or not math.isfinite(value):
        raise ValueError(f"{what}: {number!r} is not a finite number.")
    return value
