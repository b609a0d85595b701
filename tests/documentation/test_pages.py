"""What the documentation names exists: links, anchors, pictures, commands, targets, failures."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml

from dashboard import doc_pages
from dashboard.failure_panel import ADVICE
from engine.events import FailureKind
from incipit.cli import app
from tests.documentation.blocks import DOCS, PAGES, ROOT, blocks, prose

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(
    r"`((?:engine|backend|worker|dashboard|incipit|experiments|benchmarks|tests|docs|deploy)/[\w./-]+\.\w+)(?:::(\w+))?`"
)
_COMMAND = re.compile(
    r"^(?:\$ )?(?:docker compose run .* (?:api|worker) )?incipit ([a-z][a-z-]*)(?: ([a-z]+)\b)?", re.MULTILINE
)
_TARGET = re.compile(r"^make ([a-z][a-z-]*)", re.MULTILINE)


@every_page
def test_each_link_leads_somewhere(page: Path) -> None:
    lost = []
    for target in _LINK.findall(prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            lost.append(target)
    assert lost == []


@every_page
def test_each_file_that_is_named_exists(page: Path) -> None:
    named = [found for found in _PATH.findall(page.read_text()) if "NAME" not in found[0]]
    lost = [path for path, _ in named if not (ROOT / path).is_file()]
    lost += [f"{path}::{test}" for path, test in named if test and f"def {test}(" not in (ROOT / path).read_text()]
    assert lost == []


@every_page
def test_each_command_in_a_block_exists(page: Path) -> None:
    known: Any = typer.main.get_command(app)
    targets = make_targets()
    lost = []
    for block in blocks(page):
        lost += [f"make {target}" for target in _TARGET.findall(block.code) if target not in targets]
        for name, second in _COMMAND.findall(block.code):
            command = known.commands.get(name)
            if command is None or (second and hasattr(command, "commands") and second not in command.commands):
                lost.append(f"incipit {name} {second}")
    assert lost == []


def test_the_check_of_commands_reads_them() -> None:
    assert _COMMAND.findall("incipit runs list\n  x\nincipit train SPEC.json") == [("runs", "list"), ("train", "")]
    assert {"demo", "test", "docs", "vllm"} <= make_targets()


def test_each_kind_of_failure_has_its_heading() -> None:
    headings = set(re.findall(r"^### (\w+)$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE))
    assert headings == {*get_args(FailureKind), *ADVICE}


def test_the_site_has_every_page_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "index.html").read_text()
    navigation = first[first.index("md-nav--primary") :]
    for page in DOCS.rglob("*.md"):
        assert f'href="{page.relative_to(DOCS).with_suffix(".html")}"' in navigation, f"{page} is not in mkdocs.yml"
    for built in tmp_path.rglob("*.html"):
        text = built.read_text()
        assert re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', text) == [], built
        assert str(ROOT) not in text


def test_the_dashboard_lists_every_page() -> None:
    listed = doc_pages.pages()
    assert set(listed) == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"index.md"}
    assert listed["quick-start.md"] == "Quick start: your models, your prompts"


def test_the_citation_has_what_the_format_asks_for_and_the_version_that_is_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license", "references"} <= set(citation)
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", project["version"])
    assert citation["license"] == project["license"]
    assert "2602.15260" in str(citation["references"])
    assert f"[{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def anchors(page: Path) -> set[str]:
    """What mkdocs and GitHub call the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def make_targets() -> set[str]:
    """The targets of the Makefile that are called by name."""
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(phony.split())
