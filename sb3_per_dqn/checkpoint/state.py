"""
What an object holds, as plain data, and back into an object that was built in the same way.

Plain data are ``None``, booleans, numbers and text, lists and dicts of these, and arrays: a tree that can be written
without pickle. Nothing in a tree names code to run, and no object is built from it: attributes of objects that are
there already get other values.
"""

import random
import sys
from abc import ABCMeta
from collections import OrderedDict, deque
from collections.abc import Callable
from copy import copy
from enum import Enum, Flag
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecEnv

Tree = Any  # None, bool, int, float, str, np.ndarray, or a list or dict (by str) of these

KIND = "~"  # marks a dict that stands for something else than a dict
# What does not change while something runs, or is no part of its state
CONSTANT: list[type] = [
    *(EnvSpec, VecEnv, ResultsWriter, np.dtype, th.dtype, th.device),
    *(FunctionType, MethodType, BuiltinFunctionType, ModuleType, type),
]
CONSTANT_NAMES = {"_saved_kwargs", "class_attributes", "metadata", "render_mode"}
NAMED = FunctionType, MethodType, type  # of which an attribute may hold now one and now another
RAW = "cfSUmM"  # kinds of numbers (and texts, and times) that are written as bytes where nothing else holds them

HEAP_TYPE = 1 << 9  # flag of a class that was made by a class statement
PLAIN_SIZE = type("Plain", (), {}).__basicsize__

IN_PLACE = ("array", "raw", "tensor", "list", "deque", "dict", "object")  # kinds that are written to where they are
HOLDERS = (np.ndarray, th.Tensor, list, dict, deque)

Capture = Callable[[Any], Tree]
Restore = Callable[[Any, Tree], None]
_HANDLERS: dict[type, tuple[Capture, Restore]] = {}


class StateError(ValueError):
    """A state that cannot be captured, or does not fit where it is to go."""


def handle(kind: type, capture: Capture, restore: Restore) -> None:
    """
    Say how the state of objects is read that hold it where Python does not see it.

    :param kind: their class
    :param capture: object to tree
    :param restore: puts what a tree says into an object
    """
    _HANDLERS[kind] = capture, restore


def captured(thing: Any) -> Tree:
    """
    :param thing: any object made of plain data, arrays, tensors, containers, random generators, and objects of such
    :return: its state. Objects that occur twice are captured once
    :raises StateError: if it holds something else, naming where
    """
    try:
        return _Capture().tree(thing, "")
    except RecursionError:
        raise StateError(f"a {type(thing).__qualname__} is nested too deeply") from None


def restored(thing: Any, tree: Tree) -> Any:
    """
    :param thing: an object that was built as the captured one was
    :param tree: from ``captured``
    :return: the same object in that state; where there can be no same one (a number, say), another
    :raises StateError: if the two do not fit together, naming where
    """
    return _Restore().value(thing, tree, "")


class NotThereError(StateError):
    """A state of something that came to be after the start: nothing is there yet to put it into."""


class _Capture:
    def __init__(self) -> None:
        self.seen: dict[int, tuple[str, Any]] = {}  # keeps what it has seen, so that no id is used twice

    def tree(self, thing: Any, path: str) -> Tree:
        if thing is None or (isinstance(thing, (bool, int, float, str)) and type(thing) in (bool, int, float, str)):
            return thing
        if isinstance(thing, Enum):
            item = thing.value if isinstance(thing, Flag) else thing.name
            return {KIND: "enum", "class": type(thing).__qualname__, "item": item}
        if isinstance(thing, tuple(CONSTANT)):
            return self._constant(thing, path)
        if isinstance(thing, np.generic):
            return {KIND: "number", "value": self._array(np.asarray(thing), path)}
        if isinstance(thing, (bytes, bytearray)):
            return {KIND: type(thing).__name__, "value": np.frombuffer(thing, dtype=np.uint8)}
        if id(thing) in self.seen:
            return {KIND: "same", "as": self.seen[id(thing)][0]}
        self.seen[id(thing)] = path, thing
        return self._container(thing, path)

    def _container(self, thing: Any, path: str) -> Tree:
        for kind, (capture, _) in _HANDLERS.items():
            if isinstance(thing, kind):
                return {KIND: "handled", "class": kind.__qualname__, "value": capture(thing)}
        for kinds, read in self._READERS:
            if isinstance(thing, kinds):
                return read(self, thing, path)
        if not (hasattr(thing, "__dict__") and _is_plain(type(thing))):
            raise StateError(f"{path or 'state'} is a {type(thing).__qualname__}, whose state cannot be read")
        attributes = {
            name: self.tree(value, f"{path}.{name}")
            for name, value in vars(thing).items()
            if name not in CONSTANT_NAMES
        }
        return {KIND: "object", "class": type(thing).__qualname__, "attributes": attributes}

    def _constant(self, thing: Any, path: str) -> Tree:
        if not isinstance(thing, NAMED):
            return {KIND: "constant"}
        cells = (thing.__closure__ or ()) if isinstance(thing, FunctionType) else ()
        if cells:  # it may hold itself
            if id(thing) in self.seen:
                return {KIND: "same", "as": self.seen[id(thing)][0]}
            self.seen[id(thing)] = path, thing
        try:
            held = self._items([cell.cell_contents for cell in cells], f"{path}()")
        except ValueError as error:  # "Cell is empty"; or a StateError
            raise StateError(str(error)) from None
        return {KIND: "constant", "name": thing.__qualname__, "cells": held}

    def _array(self, thing: np.ndarray, path: str) -> Tree:
        if type(thing) not in (np.ndarray, np.memmap) or thing.dtype.kind == "V":
            raise StateError(
                f"{path or 'state'} is a {type(thing).__qualname__} of {thing.dtype}, which is not written"
            )
        if thing.dtype.kind in "biu" or thing.dtype.str in ("<f2", "<f4", "<f8"):
            return thing
        if thing.dtype.kind in RAW:
            value = np.frombuffer(thing.tobytes(), dtype=np.uint8)
            return {KIND: "raw", "dtype": thing.dtype.str, "shape": list(thing.shape), "value": value}
        return {KIND: "array", "shape": list(thing.shape), "items": self._items(thing.ravel(), path)}

    def _tensor(self, thing: th.Tensor, path: str) -> Tree:
        return {KIND: "tensor", "value": thing.detach().cpu().numpy()}

    def _sequence(self, thing: Any, path: str) -> Tree:
        kind = next(kind.__name__ for kind in (list, tuple, set, frozenset) if isinstance(thing, kind))
        return {KIND: kind, **_own_class(thing), "items": self._items(thing, path)}

    def _deque(self, thing: deque[Any], path: str) -> Tree:
        return {KIND: "deque", **_own_class(thing), "maxlen": thing.maxlen, "items": self._items(thing, path)}

    def _dict(self, thing: dict[Any, Any], path: str) -> Tree:
        for key in thing:
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise StateError(f"{path or 'state'} has a key that is a {type(key).__qualname__}")
        return {KIND: "dict", **_own_class(thing), "keys": list(thing), "items": self._items(thing.values(), path)}

    def _generator(self, thing: np.random.Generator, path: str) -> Tree:
        return {KIND: "Generator", "value": self.tree(thing.bit_generator.state, f"{path}!")}

    def _random_state(self, thing: np.random.RandomState, path: str) -> Tree:
        return {KIND: "RandomState", "value": self.tree(thing.get_state(legacy=False), f"{path}!")}

    def _python_random(self, thing: random.Random, path: str) -> Tree:
        return {KIND: "Random", "value": self.tree(thing.getstate(), f"{path}!")}

    _READERS: ClassVar[list[tuple[Any, Callable[..., Tree]]]] = [
        (np.ndarray, _array),
        (th.Tensor, _tensor),
        ((list, tuple, set, frozenset), _sequence),
        (deque, _deque),
        (dict, _dict),
        (np.random.Generator, _generator),
        (np.random.RandomState, _random_state),
        (random.Random, _python_random),
    ]

    def _items(self, things: Any, path: str) -> list[Tree]:
        return [self.tree(thing, f"{path}[{i}]") for i, thing in enumerate(things)]


def _own_class(thing: Any) -> dict[str, str]:
    """
    :param thing: a container
    :return: its class if it is not Python's own, as a plain one could not take its place
    """
    is_own = type(thing) in (list, tuple, set, frozenset, deque, dict, OrderedDict)
    return {} if is_own else {"class": type(thing).__qualname__}


def _is_plain(kind: type) -> bool:
    """
    :param kind: class of an object
    :return: whether all that its objects hold stands in their ``__dict__``: no slots, and nothing in C
    """
    bases = [base for base in kind.__mro__ if base is not object]
    made_by_python = all(base.__flags__ & HEAP_TYPE and not vars(base).get("__slots__") for base in bases)
    return made_by_python and type(kind) in (type, ABCMeta) and kind.__basicsize__ <= PLAIN_SIZE


def _check_class(current: Any, tree: Tree, path: str) -> None:
    """
    :raises StateError: if the state is of an object of another class
    """
    theirs = tree["class"] if tree[KIND] in ("object", "enum", "handled") else tree.get("class")
    classes = type(current).__mro__ if tree[KIND] == "handled" else (type(current),)
    if theirs is not None and theirs not in [kind.__qualname__ for kind in classes]:
        wrong = f"{path or 'state'} is a {type(current).__qualname__}, and the state is of a {theirs}"
        raise NotThereError(wrong) if current is None else StateError(wrong)


class _Restore:
    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.taken: dict[int, Any] = {}  # what is not to be written to: it holds another state already, or is shared
        self.known: set[type] = set()

    def value(self, current: Any, tree: Tree, path: str) -> Any:
        value = self._value(self._own(current, tree), tree, path)
        self.seen[path] = value
        return value

    def _own(self, current: Any, tree: Tree) -> Any:
        """
        :return: what may be written to. Something new may hold one array twice (``self.place = self.start``), where
            there are two by now
        """
        kind = tree.get(KIND) if isinstance(tree, dict) else "array" if isinstance(tree, np.ndarray) else None
        if kind not in IN_PLACE or not (isinstance(current, HOLDERS) or kind == "object"):
            return current
        if getattr(getattr(current, "__dataclass_params__", None), "frozen", False):
            # Another took its place in what was captured: it may be a constant of a module's, as what it holds
            self.taken.update({id(shared): shared for shared in (current, *getattr(current, "__dict__", {}).values())})
        if current is None or id(current) not in self.taken:
            self.taken[id(current)] = current
            return current
        try:
            return current.clone() if isinstance(current, th.Tensor) else copy(current)
        except Exception as error:  # an object may do what it likes then
            raise StateError(f"a {type(current).__qualname__} cannot be copied: {error!r}") from error

    def _leave_alone(self, kind: type) -> None:
        """
        :param kind: of an object, whose attributes may be, at its start, arrays that others share: those of its classes
            and of their modules
        """
        if kind in self.known:
            return
        self.known.add(kind)
        for base in kind.__mro__:
            for namespace in (vars(base), vars(sys.modules.get(base.__module__, object))):
                for value in [value for value in namespace.values() if isinstance(value, HOLDERS)]:
                    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
                    arrays = [part for part in parts if isinstance(part, np.ndarray)]
                    self.taken.update({id(shared): shared for shared in (value, *arrays)})

    def _value(self, current: Any, tree: Tree, path: str) -> Any:
        if isinstance(tree, np.ndarray):
            if not (isinstance(current, np.ndarray) and current.flags.writeable):
                return tree.copy()
            if (current.shape, current.dtype) != (tree.shape, tree.dtype):
                return tree.copy()
            np.copyto(current, tree)
            return current
        if not isinstance(tree, dict):
            return tree
        kind = tree.get(KIND)
        restore = getattr(self, f"_restore_{kind}", None) if isinstance(kind, str) else None
        if restore is None:
            raise StateError(f"{path or 'state'}: {kind!r} is no kind of state")
        try:
            _check_class(current, tree, path)
            return restore(current, tree, path)
        except StateError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError, ValueError) as error:
            raise StateError(f"{path or 'state'} does not fit: {error!r}") from error

    def _restore_same(self, current: Any, tree: Tree, path: str) -> Any:
        return self.seen[tree["as"]]

    def _restore_constant(self, current: Any, tree: Tree, path: str) -> Any:
        name = getattr(current, "__qualname__", None)
        if tree.get("name", name) != name:
            raise NotThereError(f"{path or 'state'} is {name}, and was {tree['name']}")
        self.seen[path] = current
        cells = (current.__closure__ or ()) if isinstance(current, FunctionType) else ()
        held = self._items([cell.cell_contents for cell in cells], {"items": tree.get("cells", [])}, f"{path}()")
        for cell, value in zip(cells, held, strict=True):
            cell.cell_contents = value
        return current

    def _restore_enum(self, current: Any, tree: Tree, path: str) -> Any:
        kind = type(current)
        return kind(tree["item"]) if issubclass(kind, Flag) else kind[tree["item"]]

    def _restore_number(self, current: Any, tree: Tree, path: str) -> Any:
        return self._value(None, tree["value"], path)[()]

    def _restore_raw(self, current: Any, tree: Tree, path: str) -> Any:
        dtype = np.dtype(tree["dtype"])
        if dtype.kind not in RAW:
            raise StateError(f"{path or 'state'}: an array of {dtype}")
        array = np.frombuffer(tree["value"].tobytes(), dtype=dtype).reshape(tree["shape"])
        return self._value(current, array, path)

    def _restore_bytes(self, current: Any, tree: Tree, path: str) -> Any:
        return tree["value"].tobytes()

    def _restore_bytearray(self, current: Any, tree: Tree, path: str) -> Any:
        return bytearray(tree["value"].tobytes())

    def _restore_tensor(self, current: Any, tree: Tree, path: str) -> Any:
        value = th.from_numpy(np.array(tree["value"]))
        if isinstance(current, th.Tensor) and (current.shape, current.dtype) == (value.shape, value.dtype):
            with th.no_grad():
                return current.copy_(value)
        return value.to(current.device) if isinstance(current, th.Tensor) else value

    def _restore_array(self, current: Any, tree: Tree, path: str) -> Any:
        array = np.empty(len(tree["items"]), dtype=object)
        array[:] = self._items([None] * array.size, tree, path)
        return array.reshape(tree["shape"])

    def _restore_list(self, current: Any, tree: Tree, path: str) -> Any:
        items = self._items(current, tree, path)
        if isinstance(current, list):
            current[:] = items
            return current
        return items

    def _restore_tuple(self, current: Any, tree: Tree, path: str) -> Any:
        items = self._items(current, tree, path)
        named = isinstance(current, tuple) and hasattr(current, "_fields") and len(current._fields) == len(items)
        return type(current)(*items) if named else tuple(items)

    def _restore_set(self, current: Any, tree: Tree, path: str) -> Any:
        return set(self._items((), tree, path))

    def _restore_frozenset(self, current: Any, tree: Tree, path: str) -> Any:
        return frozenset(self._items((), tree, path))

    def _restore_deque(self, current: Any, tree: Tree, path: str) -> Any:
        items = self._items(current, tree, path)
        if isinstance(current, deque) and current.maxlen == tree["maxlen"]:
            current.clear()
            current.extend(items)
            return current
        return deque(items, tree["maxlen"])

    def _restore_dict(self, current: Any, tree: Tree, path: str) -> Any:
        before = current if isinstance(current, dict) else {}
        values = [before.get(key) for key in tree["keys"]]
        items = dict(zip(tree["keys"], self._items(values, tree, path), strict=True))
        if isinstance(current, dict):
            current.clear()
            current.update(items)
            return current
        return items

    def _restore_Generator(self, current: Any, tree: Tree, path: str) -> Any:
        generator = current if isinstance(current, np.random.Generator) else np.random.default_rng(0)
        generator.bit_generator.state = self.value(None, tree["value"], f"{path}!")
        return generator

    def _restore_RandomState(self, current: Any, tree: Tree, path: str) -> Any:
        generator = current if isinstance(current, np.random.RandomState) else np.random.RandomState(0)
        generator.set_state(self.value(None, tree["value"], f"{path}!"))
        return generator

    def _restore_Random(self, current: Any, tree: Tree, path: str) -> Any:
        generator = current if isinstance(current, random.Random) else random.Random()
        generator.setstate(self.value(None, tree["value"], f"{path}!"))
        return generator

    def _restore_handled(self, current: Any, tree: Tree, path: str) -> Any:
        for kind, (_, restore) in _HANDLERS.items():
            if isinstance(current, kind) and kind.__qualname__ == tree["class"]:
                restore(current, tree["value"])
                return current
        raise StateError(f"{path} is a {type(current).__qualname__}, and the state is of a {tree['class']}")

    def _restore_object(self, current: Any, tree: Tree, path: str) -> Any:
        self.seen[path] = current  # what it holds may refer to it
        self._leave_alone(type(current))
        for name, of_attribute in tree["attributes"].items():
            if not name.isidentifier() or name.startswith("__"):
                raise StateError(f"{path}.{name} is no attribute that a state may set")
            value = self.value(getattr(current, name, None), of_attribute, f"{path}.{name}")
            vars(current)[name] = value  # as it was read: a class (a frozen dataclass's) may refuse to be written to
        return current

    def _items(self, currents: Any, tree: Tree, path: str) -> list[Any]:
        currents = list(currents) if isinstance(currents, (list, tuple, deque)) else []
        currents += [None] * (len(tree["items"]) - len(currents))
        return [self.value(currents[i], item, f"{path}[{i}]") for i, item in enumerate(tree["items"])]


def _captured_space(space: spaces.Space[Any]) -> Tree:
    """
    :return: state of its random numbers, of which some environments draw, and of those of its parts
    """
    parts = getattr(space, "spaces", ())
    return {
        "random": captured(space._np_random),
        "parts": [_captured_space(part) for part in (parts.values() if isinstance(parts, dict) else parts)],
    }


def _restore_space(space: spaces.Space[Any], tree: Tree) -> None:
    space._np_random = restored(space._np_random, tree["random"])
    parts = getattr(space, "spaces", ())
    parts = list(parts.values() if isinstance(parts, dict) else parts)
    if len(parts) != len(tree["parts"]):
        raise StateError(f"{space} has {len(parts)} parts, and the state is of {len(tree['parts'])}")
    for part, of_part in zip(parts, tree["parts"], strict=True):
        _restore_space(part, of_part)


handle(spaces.Space, _captured_space, _restore_space)
