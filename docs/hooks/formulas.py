"""LaTeX, as ``pymdownx.arithmatex`` marks it, becomes MathML, which browsers draw by themselves."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """
    :param content: HTML of a page
    :return: the same with its formulas in MathML
    :raises ValueError: for a command that is not known
    """
    return FORMULA.sub(_to_mathml, content)


def _to_mathml(formula: re.Match[str]) -> str:
    element, latex = formula.groups()
    mathml = convert(html.unescape(latex).strip(), display="inline" if element == "span" else "block")
    if "\\" in mathml:  # it leaves what it does not know
        raise ValueError(f"{latex}: there is a command that latex2mathml does not know.")
    return f'<{element} class="formula">{mathml}</{element}>'
