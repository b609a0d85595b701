"""The page of results: a table that each complete run replaces, and a list that each soak makes longer."""

from pathlib import Path

import pytest

from tests.faults import reliability
from tests.faults.reliability import Record, add_soak, write_faults

_SOAK = {"commit": "abc1234", "minutes": 1, "seed": 7, "num_runs": 5, "num_faults": 2, "lost": 3, "twice": 0}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "reliability.md"
    monkeypatch.setattr(reliability, "PAGE", path)
    return path


def test_faults_are_replaced_and_soaks_are_kept(page: Path) -> None:
    add_soak(**_SOAK, result="holds")  # type: ignore[arg-type]
    killed = Record(1, "engine killed", "kill -9", tried=2, steps_lost=9, seconds=[1.0, 7.55], outcomes=["passed"])
    frozen = Record(6, "engine frozen", "SIGSTOP", tried=1, outcomes=["passed", "failed"])
    write_faults([frozen, killed], 60.0, "abc1234")
    write_faults([frozen, killed], 90.0, "def5678")
    add_soak(**_SOAK | {"seed": 8}, result="holds")  # type: ignore[arg-type]
    told = page.read_text()
    assert "| 1 | engine killed | kill -9 | 2 | 9 | 0 | 7.5 s | holds |\n| 6 | engine frozen" in told
    assert "| 1 | 0 | 0 | – | **fails** |" in told
    assert "commit def5678" in told
    assert "1.5 minutes" in told
    assert [line.split(" | ")[3] for line in told.splitlines() if "abc1234" in line] == ["7", "8"]
