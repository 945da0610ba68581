"""Values on the command line that rl-zoo3 evaluates as Python."""

import argparse
import ast
from collections.abc import Sequence
from typing import Any

from rl_zoo3 import utils


class StoreValues(utils.StoreDict):
    """The zoo's ``StoreDict`` (``NAME:VALUE ...``), which says which value is no Python. Each is evaluated once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """
        :param parser: that found the flag
        :param namespace: where to leave a dictionary
        :param values: of the flag
        :param option_string: the flag
        :raises ValueError: for a value that is no Python, or a word without quotes, which Python takes for a name
        """
        setattr(namespace, self.dest, dict(_named_value(argument, option_string) for argument in values or ()))


def _named_value(argument: str, flag: str | None) -> tuple[str, Any]:
    name, separator, text = argument.partition(":")
    if not name.isidentifier() or not separator:  # NAME=VALUE, say
        name, _, text = argument.partition("=")
        separator = ""
    try:
        value = eval(text, dict(vars(utils)))  # whose names the zoo's values may use
        is_value = not isinstance(ast.parse(text.strip(), mode="eval").body, ast.Name)  # max is Python, too
    except Exception:
        is_value = False
    if not (is_value and separator):
        right = text if is_value else f"'{text or 'word'}'"
        raise ValueError(
            f'{flag} {argument}: it is NAME:VALUE, with the value as in Python, and words in quotes: "{name}:{right}".'
        )
    return name, value
