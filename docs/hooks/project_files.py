"""The project's own files as pages: links between them lead to pages, and their pictures come along."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "readme.md",
    "benchmarks/README.md": "tried.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
IN_THE_SITE = {PAGES[source]: source for source in ("README.md", "benchmarks/README.md")}  # whose links are changed
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#]+)")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+\.png)\)")


def _from_root(source: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """
    :param files: of the site
    :param config: of the site
    :return: these and the pictures of the project's files
    """
    for source in IN_THE_SITE.values():
        for picture in PICTURE.findall((ROOT / source).read_text()):
            path = _from_root(source, picture)
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """
    :param markdown: of a page
    :param page: it
    :return: the project's file behind it, where its page stands
    """
    source = IN_THE_SITE.get(page.file.src_uri)
    if source is None:
        return markdown

    def in_the_site(link: re.Match[str]) -> str:
        path = _from_root(source, link[0])
        return PAGES.get(path, path)

    return LINK.sub(in_the_site, (ROOT / source).read_text())
