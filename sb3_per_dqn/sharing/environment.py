"""How an environment was made, beyond its id, as plain data."""

import keyword
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sb3_per_dqn.checkpoint.state import KIND
from sb3_per_dqn.sharing.plain import ModelFolderError, Plain, from_plain, to_plain

Wrapper = tuple[str, Mapping[str, Any]]  # its full name (module.Class), and its arguments beside the environment


@dataclass(frozen=True)
class EnvironmentSettings:
    """
    What someone needs, beside the id, to make the environment again. Names are text: reading them imports nothing.

    :param packages: modules that register the environment when they are imported
    :param kwargs: arguments for ``gymnasium.make``, in training
    :param evaluation_kwargs: likewise in evaluation; if there are none, those of training
    :param wrappers: around each environment, the innermost first: the class's full name and its further arguments
    :param vec_wrappers: around the vectorized environment, likewise, without ``VecNormalize`` and ``VecFrameStack``
    :param frame_stack: frames in an observation, by ``VecFrameStack`` around all of that; ``None``: no such stacks
    """

    packages: tuple[str, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    evaluation_kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[Wrapper, ...] = ()
    vec_wrappers: tuple[Wrapper, ...] = ()
    frame_stack: int | None = None

    def to_plain(self) -> dict[str, Plain]:
        """
        :return: the same as JSON can hold it
        :raises ModelFolderError: for a name that is none, and for arguments that are no plain data
        """
        if isinstance(self.packages, str):
            raise ModelFolderError(f"packages={self.packages!r} must be a sequence of names: [{self.packages!r}].")
        if self.frame_stack is not None and (not isinstance(self.frame_stack, int) or self.frame_stack < 1):
            raise ModelFolderError(f"frame_stack={self.frame_stack!r} must be None or a whole number, 1 or more.")
        return {
            "packages": [_checked_name(name, "packages") for name in self.packages],
            "kwargs": _data(self.kwargs, "env_kwargs"),
            "evaluation_kwargs": _data(self.evaluation_kwargs, "eval_env_kwargs"),
            "wrappers": _wrappers_to_plain(self.wrappers, "env_wrapper"),
            "vec_wrappers": _wrappers_to_plain(self.vec_wrappers, "vec_env_wrapper"),
            "frame_stack": self.frame_stack,
        }

    @classmethod
    def from_plain(cls, plain: Plain) -> "EnvironmentSettings":
        """
        :param plain: from :meth:`to_plain`, or whatever else somebody may have written
        :return: the settings; nothing is imported
        :raises ModelFolderError: if :meth:`to_plain` would not write it like that
        """
        try:
            settings = cls(
                packages=tuple(plain["packages"]),
                kwargs=from_plain(plain["kwargs"], {}, "env_kwargs"),
                evaluation_kwargs=from_plain(plain["evaluation_kwargs"], {}, "eval_env_kwargs"),
                wrappers=_wrappers_from_plain(plain["wrappers"], "env_wrapper"),
                vec_wrappers=_wrappers_from_plain(plain["vec_wrappers"], "vec_env_wrapper"),
                frame_stack=plain["frame_stack"],
            )
            is_ours = settings.to_plain() == plain and type(settings.frame_stack) in (int, type(None))
        except ModelFolderError:
            raise
        except Exception as error:  # whatever somebody may have written
            raise ModelFolderError(f"environment is nothing that this package writes: {error!r}.") from error
        if not is_ours:
            raise ModelFolderError("environment is nothing that this package writes.")
        return settings


def _wrappers_to_plain(wrappers: Iterable[Wrapper], what: str) -> Plain:
    plain: list[Plain] = []
    for wrapper in wrappers:
        if isinstance(wrapper, str) or len(wrapper) != 2:
            raise ModelFolderError(f"{what}: {wrapper!r} must be a pair of the class's full name and its arguments.")
        name, kwargs = wrapper
        plain.append({"name": _checked_name(name, what), "kwargs": _data(kwargs, f"{what} {name}")})
    return plain


def _wrappers_from_plain(wrappers: Plain, what: str) -> tuple[Wrapper, ...]:
    return tuple((wrapper["name"], from_plain(wrapper["kwargs"], {}, what)) for wrapper in wrappers)


def _data(arguments: Mapping[str, Any], what: str) -> Plain:
    plain = to_plain(dict(arguments), what)
    other = set(_kinds(plain)) - {"tuple", "float"}
    if other:
        raise ModelFolderError(f"{what}={dict(arguments)!r} is no plain data: there is a {other.pop()} in it.")
    return plain


def _kinds(plain: Plain) -> Iterator[str]:
    if isinstance(plain, dict) and KIND in plain:
        yield plain[KIND]
    for part in plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else ():
        yield from _kinds(part)


def _checked_name(name: str, what: str) -> str:
    if not all(map(is_name, name.split("."))):
        raise ModelFolderError(f"{what}: {name!r} is no name of a module or a class.")
    return name


def is_name(word: str) -> bool:
    """
    :param word: any text
    :return: whether Python takes it for a name
    """
    return word.isidentifier() and not keyword.iskeyword(word)
