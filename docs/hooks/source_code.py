"""
Includes functions by name, as they stand in the package: what a page shows is what runs.

    ```source
    sb3_per_dqn.policies.DuelingQNetwork.forward
    q_values: th.Tensor =
    ```

The first line names a function, the others the lines to highlight, by a part of each. The build fails if there is no
such function, or not exactly one such line.
"""

import ast
import inspect
import pydoc
import re
import textwrap
from typing import Any

FENCE = re.compile(r"^```source\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """
    :param markdown: of a page
    :return: the same with the sources in the place of their names
    :raises ValueError: if a name or a line is not there, naming it
    """
    return FENCE.sub(lambda fence: included(*fence[1].splitlines()), markdown)


def included(name: str, *parts: str) -> str:
    """
    :param name: of a function, method or property, with its module
    :param parts: of the lines to highlight
    :return: a block of Python: the function without its docstring
    :raises ValueError: if a name or a line is not there, naming it
    """
    lines = body_of(name)
    marked = []
    for part in parts:
        found = [number for number, line in enumerate(lines, 1) if part in line]
        if len(found) != 1:
            raise ValueError(f"{name} has {len(found)} lines with {part!r}: name one line.")
        marked += found
    highlighted = f' hl_lines="{" ".join(map(str, marked))}"' if marked else ""
    return "\n".join([f'``` {{ .python title="{name}"{highlighted} }}', *lines, "```"])


def body_of(name: str) -> list[str]:
    """
    :param name: of a function, method or property, with its module
    :return: its lines, without the docstring
    :raises ValueError: if there is none of this name
    """
    found: Any = pydoc.locate(name)
    found = found.fget if isinstance(found, property) else found
    if not inspect.isfunction(inspect.unwrap(found)):
        raise ValueError(f"{name} is no function of this package any more: mend the page.")
    source = textwrap.dedent(inspect.getsource(found))
    lines = source.splitlines()
    function: Any = ast.parse(source).body[0]
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        del lines[docstring.lineno - 1 : docstring.end_lineno]
    return lines
