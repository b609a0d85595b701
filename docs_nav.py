"""A hook of mkdocs: pages that `incipit study` has written stand in the navigation behind the studies' first page."""

from pathlib import Path
from typing import Any

_FIRST = "studies/index.md"


def on_config(config: Any) -> Any:
    """The configuration with every page of a study in its `nav`."""
    folder = Path(config["docs_dir"]) / "studies"
    pages = [f"studies/{page.name}" for page in sorted(folder.glob("*.md")) if page.name != "index.md"]
    for section in config["nav"]:
        if isinstance(section, dict):
            for entries in section.values():
                if _FIRST in entries:
                    entries.extend(pages)
    return config
