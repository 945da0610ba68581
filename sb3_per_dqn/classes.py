"""Classes that hyperparameters name as rl-zoo3 has them: wrappers, callbacks, policies. Found, or said why not."""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

KEYS = ("env_wrapper", "vec_env_wrapper", "callback", "policy")


def listed(given: Any) -> list[Any]:
    """
    :param given: of a key that takes none, one or a list
    :return: these in a list
    """
    return given if isinstance(given, list) else [] if given is None else [given]


def name_and_kwargs(given: Any) -> tuple[Any, dict[str, Any]]:
    """
    :param given: one of them
    :return: the class or its name, and its arguments
    """
    return next(iter(given.items())) if isinstance(given, dict) else (given, {})


def check_classes(hyperparams: Mapping[str, Any]) -> None:
    """
    :param hyperparams: of one environment, as in the zoo's YAML
    :raises ValueError: for a name of a class that is not there, and for arguments that it does not take, with its key
    """
    for key in KEYS:
        for given in listed(hyperparams.get(key)):
            if isinstance(given, dict) and len(given) != 1:
                raise ValueError(
                    f"hyperparameters: {key}={given!r} must be {{MODULE.CLASS: {{ARGUMENT: VALUE, ...}}}}."
                )
            name, kwargs = name_and_kwargs(given)
            what = f"hyperparameters: {key}={name!r}"
            if isinstance(name, str) and (key != "policy" or "." in name):  # MlpPolicy is an alias, and the algorithm's
                kind = _named_class(name, what)
                if key != "policy":
                    _check_arguments(kind, kwargs, () if key == "callback" else ("what it wraps",), what)


def _named_class(name: str, what: str) -> Any:
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        raise ValueError(f"{what} is no MODULE.CLASS.")
    module = imported(module_name, what)
    if not hasattr(module, class_name):
        near = difflib.get_close_matches(class_name, dir(module), n=1)
        hint = f"did you mean {near[0]}?" if near else "mend its name."
        raise ValueError(f"{what}: {module_name} has no {class_name}; {hint}")
    return getattr(module, class_name)


def _check_arguments(kind: Any, kwargs: Any, before: tuple[str, ...], what: str) -> None:
    if not isinstance(kwargs, dict):
        raise ValueError(f"{what}: its arguments, {kwargs!r}, must be a dictionary.")
    try:
        signature = inspect.signature(kind)
    except (TypeError, ValueError):  # of what is written in C
        return
    try:
        signature.bind_partial(*before, **kwargs)  # what is not known is said before what is missing
        signature.bind(*before, **kwargs)
    except TypeError as error:
        names = ", ".join([*signature.parameters][len(before) :])
        raise ValueError(f"{what}: {error}; its arguments are {names or 'none'}.") from None


def imported(name: str, what: str) -> ModuleType:
    """
    :param name: of a module
    :param what: asks for it, for the message
    :return: the module
    :raises ValueError: if it cannot be imported
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if f"{name}.".startswith(f"{missing}."):
            way_out = "mend its name, or set PYTHONPATH to the folder that it is in"
            raise ValueError(f"{what}: there is no module {missing!r}: {way_out}.") from None
        raise ValueError(f"{what}: {name} needs {missing!r}, which is not there: install it.") from None
    except Exception as error:  # it is the user's code
        raise ValueError(f"{what}: {name} cannot be imported: {type(error).__name__}: {error}.") from error
