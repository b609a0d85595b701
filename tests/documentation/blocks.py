"""The documentation as tests read it: its pages and the fenced blocks in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^(```+)(\w*)[^\n]*\n(.*?)^\1[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    code: str
    section: str
    """The heading of level 2 that it stands under."""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    return [Block(found[2], found[3], section) for section, text in sections(page) for found in _FENCE.finditer(text)]


def sections(page: Path) -> Iterator[tuple[str, str]]:
    """Heading and text of each part of level 2; what stands before the first has an empty heading."""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    yield "", parts[0]
    yield from zip(parts[1::2], parts[2::2], strict=True)


def prose(page: Path) -> str:
    """A page without its fenced blocks and without code in lines."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text()))
