"""Sphinx's roles, which docstrings have for editors, become names: ``:class:`~a.b.C``` is C."""

import re
from typing import Any

ROLE = re.compile(r":(?:class|func|meth):<code>(?:~[\w.]*\.)?([\w.]+)</code>")


def on_page_content(content: str, **_: Any) -> str:
    """
    :param content: HTML of a page
    :return: the same with names in the place of roles
    """
    return ROLE.sub(r"<code>\1</code>", content)
