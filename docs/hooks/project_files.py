"""The project's own files as pages: links within README.md lead to pages, and its pictures come along."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
README = "readme.md"
PAGES = {"SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+\.png)\)")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """
    :param files: of the site
    :param config: of the site
    :return: these and the README's pictures
    """
    for picture in PICTURE.findall((ROOT / "README.md").read_text()):
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """
    :param markdown: of a page
    :param page: it
    :return: the README behind it, where its page stands
    """
    if page.file.src_uri != README:
        return markdown
    text = (ROOT / "README.md").read_text()
    for name, uri in PAGES.items():
        text = text.replace(f"]({name})", f"]({uri})")
    return text
