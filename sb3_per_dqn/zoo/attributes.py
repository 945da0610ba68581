"""Attributes that are others for a while: rl-zoo3 has no hooks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(target: object, **attributes: Any) -> Iterator[None]:
    """
    Give an object other attributes for a while.

    :param target: an object, class or module
    :param attributes: which it has already
    """
    before = {name: getattr(target, name) for name in attributes}
    _set(target, attributes)
    try:
        yield
    finally:
        _set(target, before)


def _set(target: object, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        setattr(target, name, value)
