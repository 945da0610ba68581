"""Objects as plain data, and back."""

import random
from collections import defaultdict, deque
from dataclasses import dataclass, replace
from enum import Enum, IntFlag
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sb3_per_dqn.checkpoint.files import CheckpointFolder
from sb3_per_dqn.checkpoint.state import KIND, NotThereError, StateError, captured, restored


class Holder:
    """An object of plain Python."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


NUMBERS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
DTYPES = st.sampled_from([np.bool_, np.uint8, np.int16, np.uint32, np.int64, np.float16, np.float32, np.float64])
ARRAYS = npst.arrays(DTYPES, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
LEAVES = st.one_of(
    NUMBERS, ARRAYS, st.binary(), ARRAYS.filter(lambda array: array.size).map(lambda array: array.flat[0])
)
THINGS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=4),
        st.lists(inner, max_size=4).map(lambda items: deque(items, maxlen=7)),
        st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2).map(lambda names: Holder(**names)),
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal in type and in every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, th.Tensor):
        return one.dtype == other.dtype and th.equal(one, other)
    if isinstance(one, Holder):
        return same(vars(one), vars(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def blank(thing: Any) -> Any:
    """What was built as ``thing`` was, and holds nothing yet: namespaces are there, with others' attributes."""
    if isinstance(thing, Holder):
        return Holder(**{name: blank(value) for name, value in vars(thing).items()})
    if isinstance(thing, (list, tuple)):
        return type(thing)(blank(item) for item in thing)
    if isinstance(thing, deque):
        return deque((blank(item) for item in thing), thing.maxlen)
    if isinstance(thing, dict):
        return {key: blank(value) for key, value in thing.items()}
    return None


@given(thing=THINGS)
@settings(max_examples=200, deadline=None)
def test_what_is_captured_is_restored(thing: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also after it was written to files and read from them."""
    folder = CheckpointFolder(tmp_path_factory.mktemp("state"))
    folder.write(0, captured(thing))
    _, tree = folder.read()
    assert same(restored(blank(thing), tree), thing)
    assert same(restored(blank(thing), captured(thing)), thing)


def test_arrays_and_containers_stay_the_same_objects() -> None:
    """Others may hold them too."""
    array, items, names = np.zeros(3), [1, 2], {"a": 1}
    tensor = th.zeros(2)
    holder = Holder(array=array, items=items, names=names, tensor=tensor, queue=deque([1], maxlen=3))
    queue = holder.queue
    tree = captured(
        Holder(array=np.ones(3), items=[5], names={"b": 2}, tensor=th.ones(2), queue=deque([7, 8], maxlen=3))
    )
    restored(holder, tree)
    assert holder.array is array
    assert array.tolist() == [1, 1, 1]
    assert holder.items is items
    assert items == [5]
    assert holder.names is names
    assert names == {"b": 2}
    assert holder.tensor is tensor
    assert tensor.tolist() == [1, 1]
    assert holder.queue is queue
    assert list(queue) == [7, 8]


FIRST_LEVEL = np.zeros(3)


class Walker:
    """It begins where others begin as well, and is elsewhere then."""

    START = np.zeros(2)
    ITEMS: ClassVar[list[int]] = []
    here = np.zeros(4)

    def __init__(self) -> None:
        self.home = Holder(at=np.zeros(5))
        self.reset()

    def reset(self) -> None:
        self.place = self.START
        self.level = FIRST_LEVEL
        self.items = self.ITEMS
        self.guest = self.home
        self.at = self.home.at

    def step(self) -> None:
        self.place = self.place + 1
        self.level = self.level + 1
        self.items = [*self.items, 7]
        self.guest = Holder(at=np.ones(5))
        self.at = self.at + 3
        self.here = self.here + 2


def test_what_a_new_object_shares_is_not_written_to() -> None:
    """An array that it begins with would begin as another from then on, for all that share it."""
    walkers, others = [Walker(), Walker()], [Walker(), Walker()]
    walkers[0].step()
    walkers[1].step()
    walkers[1].step()
    restored(others, captured(walkers))
    for walker, other in zip(walkers, others, strict=True):
        for name in ("place", "level", "here", "at"):
            assert same(getattr(other, name), getattr(walker, name))
        assert other.items == walker.items
        assert same(other.guest, walker.guest)
        assert same(other.home.at, np.zeros(5))
    for array in (FIRST_LEVEL, Walker.START, Walker.here, np.array(Walker.ITEMS)):
        assert not array.any()


def test_what_is_shared_is_shared_again() -> None:
    """MinAtar's games, say, draw from a generator that two objects hold, once they were seeded."""
    generator = np.random.RandomState(5)
    generator.rand(10)
    shared = Holder(one=generator, two=generator, inner=Holder())
    shared.inner.outer = shared
    fresh = Holder(one=np.random.RandomState(0), two=np.random.RandomState(1), inner=Holder(outer=0))
    restored(fresh, captured(shared))
    assert fresh.one is fresh.two
    assert fresh.inner.outer is fresh
    assert fresh.two.rand() == generator.rand()


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (np.random.default_rng, lambda generator: generator.random()),
        (lambda seed: np.random.Generator(np.random.MT19937(seed)), lambda generator: generator.random()),
        (np.random.RandomState, lambda generator: generator.normal()),
        (random.Random, lambda generator: generator.gauss(0, 1)),
    ],
)
def test_random_generators_go_on(make: Any, draw: Any) -> None:
    generator, other = make(3), make(4)
    draw(generator)
    tree = captured(generator)
    assert restored(other, tree) is other
    assert [draw(other) for _ in range(5)] == [draw(generator) for _ in range(5)]


def test_what_cannot_be_read_is_named() -> None:
    holder = Holder(fine=1, inner=[0, Holder(file=open(__file__))])  # noqa: SIM115
    with holder.inner[1].file, pytest.raises(StateError, match=r"^\.inner\[1\]\.file is a TextIOWrapper"):
        captured(holder)
    with pytest.raises(StateError, match="has a key that is a tuple"):
        captured({(1, 2): 3})


class WithSlots:
    __slots__ = ("hidden",)


@pytest.mark.parametrize("thing", [WithSlots(), SimpleNamespace(), object(), Fraction(1, 2), iter([])])
def test_what_holds_more_than_python_shows_is_refused(thing: Any) -> None:
    """Slots, and whatever is written in C: to believe their attributes would be to lose the rest."""
    with pytest.raises(StateError, match="whose state cannot be read"):
        captured(thing)


def test_spaces_go_on_drawing() -> None:
    """Some environments draw from them."""
    one, other = (
        gym.spaces.Dict({"a": gym.spaces.Discrete(1000), "b": gym.spaces.Tuple([gym.spaces.Box(0, 1, (2,))])})
        for _ in range(2)
    )
    one.seed(3)
    other.seed(4)
    one.sample()
    restored(other, captured(one))
    assert same(one.sample(), other.sample())


class Colour(Enum):
    RED = 1
    BLUE = 2


class Rule(IntFlag):
    ICE = 1
    FIRE = 2


class Point(NamedTuple):
    x: int


def counter() -> Any:
    count = [0]

    def counted() -> int:
        count[0] += 1
        return count[0] if counted else 0  # holds itself

    return counted


@pytest.mark.parametrize(
    ("thing", "fresh"),
    [
        (Colour.BLUE, Colour.RED),
        (Rule.ICE | Rule.FIRE, Rule.ICE),
        (np.array(["a", "bcd"]), None),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), None),
        (np.array([1 + 2j]), np.zeros(1, complex)),
        (np.array([1.5], dtype=">f4"), None),
        (np.str_("word"), np.str_("")),
        (Point(3), Point(1)),
    ],
)
def test_what_is_rarer_is_restored(thing: Any, fresh: Any, tmp_path: Path) -> None:
    """Also after it was written to files and read from them."""
    folder = CheckpointFolder(tmp_path)
    folder.write(0, captured(Holder(t_start=thing)))
    assert same(restored(Holder(t_start=fresh), folder.read()[1]).t_start, thing)


@dataclass(frozen=True)
class Rules:
    """They are replaced, and never written to."""

    lives: int
    goal: np.ndarray


FIRST_RULES = Rules(1, np.zeros(2))


def test_what_is_frozen_is_restored() -> None:
    """Also where a new object holds a constant, which stays as it is."""
    rules = replace(FIRST_RULES, lives=2, goal=np.ones(2))
    holder = restored(Holder(rules=FIRST_RULES, again=FIRST_RULES), captured(Holder(rules=rules, again=rules)))
    assert holder.rules is holder.again
    for mine, lives, goal in ((holder.rules, 2, np.ones(2)), (FIRST_RULES, 1, np.zeros(2))):
        assert mine.lives == lives
        np.testing.assert_array_equal(mine.goal, goal)


def test_what_a_function_holds_is_restored() -> None:
    holder, fresh = Holder(next=counter()), Holder(next=counter())
    holder.next()
    restored(fresh, captured(holder))
    assert fresh.next() == 2


def test_what_is_nested_too_deeply_is_said() -> None:
    chain: Any = None
    for _ in range(5000):
        chain = Holder(next=chain)
    with pytest.raises(StateError, match="a Holder is nested too deeply"):
        captured(chain)


@pytest.mark.parametrize("thing", [np.ma.masked_array([1, 2], [True, False]), np.zeros(2, "i4,f8")])
def test_an_array_that_is_more_than_numbers_is_refused(thing: Any) -> None:
    with pytest.raises(StateError, match="which is not written"):
        captured(thing)


@pytest.mark.parametrize("thing", [Holder(), Point(1), defaultdict(int), Colour.RED, counter(), int])
def test_what_is_not_there_yet_is_told_apart(thing: Any) -> None:
    """An environment may hold more than a new one: that is no sign of another environment."""
    with pytest.raises(NotThereError):
        restored(Holder(item=None), captured(Holder(item=thing)))


def test_constants_are_left_as_they_are() -> None:
    space = gym.spaces.Discrete(3)
    holder = Holder(space=space, colour=Colour.RED, kind=int, function=len, device=th.device("cpu"), number=1)
    tree = captured(holder)
    holder.number = 2
    restored(holder, tree)
    assert (holder.number, holder.space, holder.colour) == (1, space, Colour.RED)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({KIND: "object", "class": "dict", "attributes": {}}, "is a Holder, and the state is of a dict"),
        ({KIND: "object", "class": "Holder", "attributes": {"__class__": 1}}, "no attribute that a state may"),
        ({KIND: "object", "class": "Holder", "attributes": {"a b": 1}}, "no attribute that a state may"),
        ({KIND: "object", "class": "Holder"}, "does not fit"),
        ({KIND: "object", "attributes": {}}, "does not fit"),
        ({KIND: "raw", "dtype": "O", "shape": [1], "value": np.zeros(8, np.uint8)}, "an array of object"),
        ({KIND: "eval", "value": "1"}, "no kind of state"),
        ({KIND: ["x"]}, "no kind of state"),
        ({KIND: "same", "as": "elsewhere"}, "does not fit"),
        ({KIND: "handled", "class": "ALEInterface", "value": 1}, "the state is of a ALEInterface"),
        ({KIND: "Generator", "value": {KIND: "dict", "keys": [], "items": []}}, "does not fit"),
        ({"no kind": 1}, "no kind of state"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tree: Any, message: str) -> None:
    with pytest.raises(StateError, match=message):
        restored(Holder(), tree)
