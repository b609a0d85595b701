"""The documentation as the dashboard shows it: the Markdown files of docs/, of the source tree or packaged beside this file."""

import itertools
import re
from pathlib import Path
from textwrap import dedent
from urllib.parse import quote

import streamlit as st

_PACKAGED = Path(__file__).parent / "documentation"
FOLDER = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "docs"
_BLOCK = re.compile(r"^```\w*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}\S.*\n)+")
_CODE = re.compile(r"(`[^`\n]+`)")
_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]*\)\n*")
_LINK_TO_PAGE = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")
_LISTED = re.compile(r"\[[^\]]+\]\(([\w/-]+\.md)\)")


def pages() -> dict[str, str]:
    """Titles by the page's path below docs/: in the order of its first page, then the pages of studies."""
    listed = _LISTED.findall((FOLDER / "index.md").read_text())
    studies = sorted(f"studies/{path.name}" for path in (FOLDER / "studies").glob("*.md"))
    return {name: _title(name) for name in dict.fromkeys([*listed, *studies])}


def address(name: str) -> str:
    """Of a page, from another page of the dashboard: Help's list keeps what it shows in its address."""
    return f"help?page={quote(_title(name))}"


def show(name: str) -> None:
    """Draw a page below the title that the list has shown already. A link to another page is its name: that stands in the list."""
    _, _, text = (FOLDER / name).read_text().partition("\n")
    fenced = _INDENTED.sub(lambda found: f"```\n{dedent(found[0])}```\n", text)
    for number, part in enumerate(_BLOCK.split(fenced)):
        if number % 2:  # between two parts of prose
            # Without colours, which are too pale on the light theme, and wrapped, since a region that scrolls takes no focus.
            st.code(part.rstrip(), language=None, wrap_lines=True)
        elif part.strip():
            st.markdown("".join(one if one.startswith("`") else _as_shown(one) for one in _CODE.split(part)))


def verdicts(study: str) -> list[str]:
    """What a study confirmed and refuted, in Markdown: the first lines of its page; none where it was not trained."""
    path = FOLDER / "studies" / f"{study}.md"
    lines = path.read_text().splitlines()[2:] if path.is_file() else []
    return [
        _as_shown(line.removeprefix("* ")) for line in itertools.takewhile(lambda line: line.startswith("* **"), lines)
    ]


def _title(name: str) -> str:
    first, _, _ = (FOLDER / name).read_text().partition("\n")
    return first.removeprefix("# ")


def _as_shown(prose: str) -> str:
    without_images = _IMAGE.sub("", prose)
    # A dollar would begin a formula.
    return _LINK_TO_PAGE.sub(r"*\1*", without_images).replace("$", r"\$")
