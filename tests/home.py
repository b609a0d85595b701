"""A home of its own for each test; it needs nothing but the engine's packages."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty INCIPIT_HOME, also for child processes; the developer's own settings are out of sight."""
    for name in [name for name in os.environ if name.startswith("INCIPIT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("INCIPIT_HOME", str(folder))
    return folder
