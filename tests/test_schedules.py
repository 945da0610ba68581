"""PiecewiseSchedule and as_schedule() against exact arithmetic, NumPy's interpolation, the seed's rule and SB3."""

import itertools
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_per_dqn.schedules import PiecewiseSchedule, as_schedule

VALUES = st.floats(-1e6, 1e6, allow_subnormal=False)
# the experiment's own schedules, over its million updates
UPDATES = 1_000_000
SEED_EPSILON = ([(0, 1.0), (25_000, 0.1), (UPDATES / 2, 0.01)], 0.01)
SEED_BETA = ([(0, 0.4), (UPDATES, 1.0)], 1.0)


def progress_at(timestep: int, total: int) -> float:
    """What SB3 hands to a schedule, by SB3's own line of code."""
    model = SimpleNamespace()
    BaseAlgorithm._update_current_progress_remaining(model, timestep, total)  # type: ignore[arg-type]
    progress: float = model._current_progress_remaining
    return progress


def seed_value(endpoints: list[tuple[float, float]], outside_value: float | None, x: Fraction) -> Fraction | None:
    """The seed's rule in exact arithmetic: interpolate between two neighbouring endpoints, else ``outside_value``."""
    for (x_left, y_left), (x_right, y_right) in itertools.pairwise(endpoints):
        if x_left <= x < x_right:
            share = (x - Fraction(x_left)) / (Fraction(x_right) - Fraction(x_left))
            return Fraction(y_left) + share * (Fraction(y_right) - Fraction(y_left))
    return None if outside_value is None else Fraction(outside_value)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[tuple[int, float]], int]:
    """Joints in timesteps, and the length of the run."""
    total = draw(st.integers(1, 50_000_000))
    steps = draw(st.sets(st.integers(0, total), min_size=1, max_size=6))
    return [(step, draw(VALUES)) for step in sorted(steps)], total


def test_holds_the_nearest_value_outside_its_endpoints() -> None:
    schedule = PiecewiseSchedule(((0.25, 3.0), (0.5, 1.0)))
    assert [schedule(1 - x) for x in (0, 0.25, 0.375, 0.5, 1)] == [3.0, 3.0, 2.0, 1.0, 1.0]


def test_takes_outside_value_outside_its_endpoints_and_not_at_them() -> None:
    schedule = PiecewiseSchedule(((0.25, 3.0), (0.5, 1.0)), outside_value=-7.0)
    assert [schedule(1 - x) for x in (0, 0.25, 0.375, 0.5, 0.625, 1)] == [-7.0, 3.0, 2.0, 1.0, -7.0, -7.0]


@pytest.mark.parametrize("outside_value", [None, 0.9])
def test_a_single_endpoint(outside_value: float | None) -> None:
    schedule = PiecewiseSchedule(((0.5, 0.3),), outside_value)
    outside = 0.3 if outside_value is None else outside_value
    assert [schedule(1.0), schedule(0.5), schedule(0.0)] == [outside, 0.3, outside]


@given(runs(), st.one_of(st.none(), VALUES))
@example(([(0, 1.0), (25_000, 0.1), (500_000, 0.01)], UPDATES), 0.5)
@example(([(0, 0.4), (1, 0.5), (2, 0.6), (3, 1.0)], 3), 0.0)
def test_each_joint_is_met_exactly(run: tuple[list[tuple[int, float]], int], outside_value: float | None) -> None:
    """TRAPS 14: start, joints and end, at the very float that SB3 makes of the timestep."""
    joints, total = run
    schedule = PiecewiseSchedule.from_timesteps(joints, total, outside_value)
    assert [schedule(progress_at(step, total)) for step, _ in joints] == [value for _, value in joints]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6, unique=True), st.data())
@example([0.0, 1e-300, 1.0], None)
def test_start_and_end_are_exact_however_close_the_fractions(
    fractions: list[float], data: st.DataObject | None
) -> None:
    """TRAPS 14: 1 - x rounds tiny fractions away, and the first of them is still the start."""
    fractions = sorted({0.0, 1.0, *fractions})
    values = [float(i) if data is None else data.draw(VALUES) for i in range(len(fractions))]
    schedule = PiecewiseSchedule(tuple(zip(fractions, values, strict=True)), outside_value=1e9)
    assert schedule(1.0) == values[0]
    assert schedule(0.0) == values[-1]


@given(runs(), st.floats(0, 1))
def test_equals_exact_arithmetic_everywhere(run: tuple[list[tuple[int, float]], int], where: float) -> None:
    joints, total = run
    step = round(where * total)
    expected = seed_value(list(joints), None, Fraction(step))
    if expected is None:  # the seed has no holding of the nearest value
        expected = Fraction(joints[0][1] if step < joints[0][0] else joints[-1][1])
    value = PiecewiseSchedule.from_timesteps(joints, total)(progress_at(step, total))
    gaps = [right - left for (left, _), (right, _) in itertools.pairwise(joints)]
    # progress_remaining itself is rounded by 2**-53, and the steepest piece multiplies that
    steepest = 2e6 * total / min(gaps, default=total)
    assert abs(value - expected) <= 1e-9 + 4 * 2**-53 * steepest


@given(st.dictionaries(st.integers(0, 1000), VALUES, min_size=1, max_size=8), st.floats(0, 1))
def test_equals_numpys_interpolation(thousandths: dict[int, float], progress: float) -> None:
    fractions = [place / 1000 for place in sorted(thousandths)]
    values = [thousandths[place] for place in sorted(thousandths)]
    value = PiecewiseSchedule(tuple(zip(fractions, values, strict=True)))(progress)
    assert value == pytest.approx(np.interp(1 - progress, fractions, values), rel=1e-9, abs=1e-6)


@given(runs(), st.floats(-0.5, 1.5), st.one_of(st.none(), VALUES))
def test_never_leaves_its_range_and_reading_changes_nothing(
    run: tuple[list[tuple[int, float]], int], progress: float, outside_value: float | None
) -> None:
    """TRAPS 14; SB3's last rollout may overshoot the run, so that ``progress_remaining`` falls below 0."""
    joints, total = run
    schedule = PiecewiseSchedule.from_timesteps(joints, total, outside_value)
    before = repr(schedule)
    value = schedule(progress)
    allowed = [value for _, value in joints] + ([] if outside_value is None else [outside_value])
    assert min(allowed) <= value <= max(allowed)
    assert schedule(progress) == value
    assert repr(schedule) == before


@pytest.mark.parametrize(("endpoints", "outside_value"), [SEED_EPSILON, SEED_BETA])
def test_the_seeds_schedules(endpoints: list[tuple[float, float]], outside_value: float) -> None:
    schedule = PiecewiseSchedule.from_timesteps(endpoints, UPDATES, outside_value)
    joints = (0, 25_000, 500_000, UPDATES)
    for update in (*joints, 1, 12_500, 24_999, 25_001, 262_500, 499_999, 500_001, 750_000, UPDATES - 1):
        expected = seed_value(endpoints, outside_value, Fraction(update))
        assert expected is not None
        assert schedule(progress_at(update, UPDATES)) == pytest.approx(float(expected), abs=1e-14)


@given(runs(), VALUES, st.floats(0, 1))
def test_outside_value_is_the_seeds(
    run: tuple[list[tuple[int, float]], int], outside_value: float, where: float
) -> None:
    """The one difference: at its last endpoint the seed already gives ``outside_value``, and this the endpoint's."""
    joints, total = run
    step = round(where * total)
    assume(step != joints[-1][0])
    value = PiecewiseSchedule.from_timesteps(joints, total, outside_value)(progress_at(step, total))
    if joints[0][0] <= step < joints[-1][0]:
        held = PiecewiseSchedule.from_timesteps(joints, total)(progress_at(step, total))
        assert value == held
    else:
        assert seed_value(list(joints), outside_value, Fraction(step)) == outside_value == value


def test_timesteps_are_fractions_of_the_run() -> None:
    from_steps = PiecewiseSchedule.from_timesteps([(0, 1), (100, 0.1)], 400, outside_value=0.1)
    assert from_steps == PiecewiseSchedule(((0.0, 1.0), (0.25, 0.1)), 0.1)


def test_is_a_value() -> None:
    schedule = PiecewiseSchedule([[0, 1], [0.5, 0.1]], outside_value=0)  # type: ignore[arg-type]
    same = PiecewiseSchedule(((0.0, 1.0), (0.5, 0.1)), 0.0)
    assert schedule == same
    assert hash(schedule) == hash(same)
    assert schedule != PiecewiseSchedule(((0.0, 1.0), (0.5, 0.2)), 0.0)
    assert schedule != PiecewiseSchedule(((0.0, 1.0), (0.5, 0.1)))
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert repr(schedule) == "PiecewiseSchedule(endpoints=((0.0, 1.0), (0.5, 0.1)), outside_value=0.0)"
    with pytest.raises(AttributeError):
        schedule.outside_value = 1.0  # type: ignore[misc]


@given(runs(), st.one_of(st.none(), VALUES))
def test_repr_evaluates_back(run: tuple[list[tuple[int, float]], int], outside_value: float | None) -> None:
    schedule = PiecewiseSchedule.from_timesteps(*run, outside_value)
    assert eval(repr(schedule)) == schedule


def test_lists_from_yaml_and_numpys_numbers() -> None:
    expected = PiecewiseSchedule(((0.0, 1.0), (0.025, 0.5)))
    assert PiecewiseSchedule(yaml.safe_load("[[0, 1.0], [0.025, 0.5]]")) == expected
    from_numpy = PiecewiseSchedule(((np.int64(0), np.float32(1)), (np.float64(0.025), np.float32(0.5))))
    assert from_numpy == expected
    assert "np" not in repr(from_numpy)


MALFORMED: list[tuple[Any, str]] = [
    ([], r"endpoints=\[\] is empty"),
    ([(0, 1), (0.5, 0.1), (0.25, 0.2)], r"\(0\.25, 0\.2\) follows \(0\.5, 0\.1\)"),
    ([(0, 1), (0, 0.1)], r"\(0\.0, 0\.1\) follows \(0\.0, 1\.0\)"),
    ([(0, 1), (0.5, math.nan)], r"\(0\.5, nan\)"),
    ([(math.nan, 1)], r"\(nan, 1\)"),
    ([(0, math.inf)], r"\(0, inf\)"),
    ([(-math.inf, 0)], r"\(-inf, 0\)"),
    ([(0, 10**400)], r"\(0, 1000"),
    ([(0, 1), (1.5, 0.1)], r"\(1\.5, 0\.1\).*\[0, 1\]"),
    ([(-0.1, 1)], r"\(-0\.1, 1\.0\)"),
    ([(25_000, 0.1)], r"\(25000\.0, 0\.1\).*from_timesteps"),
    ([(0, 1), (0.5, "0.1")], r"\(0\.5, '0\.1'\)"),
    ([(0, b"1")], r"\(0, b'1'\)"),
    ([(0, None)], r"\(0, None\)"),
    ([(0, True)], r"\(0, True\)"),
    ([(False, 1)], r"\(False, 1\)"),
    ([(0, 1j)], r"\(0, 1j\)"),
    ([(0, [1])], r"\(0, \[1\]\)"),
    ([0, 1], "endpoint 0 must be a pair"),
    ([(0,)], r"endpoint \(0,\) must be a pair"),
    ([(0, 1, 2)], r"endpoint \(0, 1, 2\) must be a pair"),
    ([[[0, 1], [1, 0]]], "pair|finite"),
    (["01"], "endpoint '01' must be a pair"),
    ("01", "endpoints='01' must be a list"),
    (b"01", "must be a list"),
    (0.5, "endpoints=0.5 must be a list"),
    (None, "endpoints=None must be a list"),
    ({0: 1}, "endpoint 0 must be a pair"),
]


@pytest.mark.parametrize(("endpoints", "message"), MALFORMED)
def test_malformed_endpoints(endpoints: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PiecewiseSchedule(endpoints)
    if endpoints != [(25_000, 0.1)]:
        with pytest.raises(ValueError, match="endpoint"):
            PiecewiseSchedule.from_timesteps(endpoints, 1)


@pytest.mark.parametrize("outside_value", [math.nan, math.inf, "1", True, [1]])
def test_malformed_outside_value(outside_value: Any) -> None:
    with pytest.raises(ValueError, match="outside_value"):
        PiecewiseSchedule(((0.0, 1.0),), outside_value)


@pytest.mark.parametrize("total", [0, -5, math.nan, math.inf, "1e6", None, True])
def test_malformed_total(total: Any) -> None:
    with pytest.raises(ValueError, match="total_timesteps"):
        PiecewiseSchedule.from_timesteps([(0, 1)], total)


@pytest.mark.parametrize(
    ("joints", "message"),
    [
        ([(0, 1), (2000, 0.1)], r"\(2000\.0, 0\.1\).*1000"),
        ([(-1, 1)], r"\(-1\.0, 1\.0\)"),
        ([(500, 1), (400, 0.1)], r"\(400\.0, 0\.1\) follows \(500\.0, 1\.0\)"),
        ([(500, 1), (500, 0.1)], r"\(500\.0, 0\.1\) follows \(500\.0, 1\.0\)"),
    ],
)
def test_malformed_timesteps_are_shown_as_given(joints: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        PiecewiseSchedule.from_timesteps(joints, 1000)
    assert "fraction" not in str(caught.value)


@pytest.mark.parametrize("number", [0, 1, 0.4, np.float64(0.4), np.float32(0.5), np.int64(1)])
def test_a_number_is_held(number: Any) -> None:
    schedule = as_schedule(number, "beta")
    assert [schedule(progress) for progress in (1.0, 0.3, 0.0, -0.1)] == [float(number)] * 4


def test_endpoints_and_schedules() -> None:
    schedule = PiecewiseSchedule(((0.0, 0.4), (1.0, 1.0)))
    assert as_schedule([[0, 0.4], [1, 1.0]], "beta") == schedule
    assert as_schedule(schedule, "beta") == schedule


@pytest.mark.parametrize(
    "callable_",
    [LinearSchedule(1.0, 0.05, 0.3), ConstantSchedule(0.4), FloatSchedule(0.4), lambda p: 1 - p, np.square],
)
def test_a_callable_is_read_as_it_is(callable_: Callable[[float], float]) -> None:
    schedule = as_schedule(callable_, "exploration")
    for progress in (1.0, 0.9, 0.7, 0.5, 0.123, 0.0):
        assert schedule(progress) == callable_(progress)
    assert schedule(0.5) == schedule(0.5)


def test_what_as_schedule_gives_is_picklable() -> None:
    for value in (0.4, [[0, 0.4], [1, 1.0]], LinearSchedule(1.0, 0.05, 0.3)):
        schedule = as_schedule(value, "beta")
        assert pickle.loads(pickle.dumps(schedule))(0.85) == schedule(0.85)


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        -0.1,
        [[0, 0.4], [0.5, 1.5], [1, 0.4]],
        PiecewiseSchedule(((0.0, 0.0), (0.5, 2.0), (1.0, 0.0))),
        PiecewiseSchedule(((0.0, 0.0), (0.5, 1.0)), outside_value=-1.0),
        ConstantSchedule(1.5),
        lambda progress: 2 * progress,  # too high at the start
        lambda progress: -1 + progress,  # too low at the end
    ],
)
def test_a_value_out_of_range_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"prioritized_replay_beta=.* outside \[0, 1\]"):
        as_schedule(value, "prioritized_replay_beta")


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, True, "0.4", None, [], [[0, "1"]], [0.4, 1.0], lambda _: math.nan, lambda _: None],
)
def test_what_is_no_schedule_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^exploration="):
        as_schedule(value, "exploration")


def test_numpy_rows_are_endpoints_too() -> None:
    endpoints = np.array([[0.0, 1.0], [0.5, 0.1]])
    assert as_schedule(endpoints, "exploration") == PiecewiseSchedule(((0.0, 1.0), (0.5, 0.1)))  # type: ignore[arg-type]


def test_beyond_the_end_is_the_end() -> None:
    """A run overshoots its length by part of a rollout: every kind of schedule is read as at its end there."""
    assert PiecewiseSchedule(((0.0, 1.0), (1.0, 0.5)), outside_value=0.9)(-0.12) == 0.5
    assert as_schedule(lambda progress: progress, "exploration")(-0.12) == 0.0


@pytest.mark.parametrize("midway", [1.5, -0.5, math.nan, None])
def test_a_callable_that_leaves_the_range_midway_is_noticed_when_read(midway: Any) -> None:
    """TRAPS 14: never out of range. Both ends are in range, so only reading it can tell."""
    schedule = as_schedule(lambda progress: 0.5 if progress in (0.0, 1.0) else midway, "exploration")
    assert schedule(1.0) == schedule(0.0) == 0.5
    with pytest.raises(ValueError, match=r"^exploration="):
        schedule(0.5)
