"""Studies of pairs: asked of real models, kept, and pages that nobody typed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.analysis_spec import AnalysisResult, AnalysisRow
from engine.locations import resolve
from incipit.cli import app
from incipit.pair_study import PairData, is_pair_study, read_pair_data, read_pair_study, write_pair_data
from incipit.pair_study_page import write_pair_page
from incipit.study import read_document

_ROOT = Path(__file__).parents[2]
_STUDIES = [
    path for path in sorted((_ROOT / "experiments" / "studies").glob("*.json")) if is_pair_study(read_document(path))
]


def study_document(**changes: object) -> dict[str, Any]:
    return json.loads((_ROOT / "experiments/studies/where-it-differs.json").read_text()) | changes  # type: ignore[no-any-return]


@pytest.mark.usefixtures("home")
def test_pairs_are_asked_and_their_page_made_again_from_what_was_kept(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(resolve("builtin:tiny/models/student-plan"), elsewhere / "models" / "student")
    (pair,) = study_document()["pairs"][:1]
    document = study_document(
        pairs=[pair | {"changes": {"student.path": "home:models/student"}}],
        analyses=[
            {"kind": "divergence_by_position", "num_prompts": 8},
            {"kind": "teacher_prefix", "num_prompts": 8, "prefix_tokens": [0, 8]},
        ],
    )
    file, page = tmp_path / "where.json", tmp_path / "page.md"
    file.write_text(json.dumps(document))
    done = CliRunner().invoke(app, ["study", str(file), "--out", str(page), "--home", str(elsewhere)])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert "Behind 8 tokens of the teacher, the student is right in 1.000" in text.splitlines()[2]
    found = read_pair_data(page.with_suffix(".parquet"))
    rows = found.results["plan", "divergence_by_position"].rows
    early = rows[0].value
    assert early > 5 * max(row.value for row in rows[4:8]), "the plan is decided by the first token"
    assert f"| 1 | {early:.3f}" in text
    behind = [row.value for row in rows if 128 <= row.start < 256 for _ in range(row.count)]
    assert f"| 129–256 | {sum(behind) / len(behind):.3f} |" in text
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert len(pictures) == 2
    done = CliRunner().invoke(app, ["study", str(file), "--out", str(page), "--report", "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert [(one["pair"], one["result"]["kind"]) for one in printed] == list(found.results)
    assert [AnalysisResult.model_validate(one["result"]) for one in printed] == list(found.results.values())
    assert page.read_text() == text
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")} == pictures


def test_results_are_kept_whole(tmp_path: Path) -> None:
    rows = [AnalysisRow(start=0, end=1, value=0.5, low=0.1, high=0.9, count=3, details={"eos_rate": None, "x": 0.1})]
    result = AnalysisResult(
        kind="teacher_prefix",
        axis="a",
        measure="m",
        interval="i",
        rows=rows,
        sentences=["One."],
        num_prompts=3,
        seconds=1.5,
    )
    data = PairData({("p", "teacher_prefix"): result}, {"commit": "c", "machine": "m", "date": "2026-01-01"})
    path = tmp_path / "data" / "x.parquet"
    with pytest.raises(ValueError, match="ask first"):
        read_pair_data(path)
    write_pair_data(path, data)
    assert read_pair_data(path) == data
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match="cannot be read as a study's results"):
        read_pair_data(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"analyses": [{"kind": "teacher_prefix"}, {"kind": "teacher_prefix"}]}, "analyses has 'teacher_prefix' 2 times"),
        ({"analyses": [{"kind": "teacher_prefix", "num_prompts": 0}]}, "num_prompts is 0 but must be at least 1"),
        ({"pairs": [{"name": "a", "changes": {"num_steps": 0}}]}, "num_steps is 0"),
        ({"pairs": []}, "pairs"),
    ],
)  # fmt: skip
def test_a_wrong_study_is_named_with_its_place(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text(json.dumps(study_document(**changes)))
    done = CliRunner().invoke(app, ["study", str(path)])
    assert done.exit_code == 1
    assert words in done.output.replace("\n", "")


@pytest.mark.parametrize("path", _STUDIES, ids=lambda path: path.stem)
def test_a_committed_page_is_what_its_results_make(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_ROOT)
    study = read_pair_study(read_document(path), path.stem)
    assert study.name == path.stem
    source = Path("docs/studies/data") / f"{path.stem}.parquet"
    page = Path("docs/studies") / f"{path.stem}.md"
    if not source.exists():
        assert not page.exists(), "a page without results"
        return
    made = tmp_path / page.name
    command = f"incipit study experiments/studies/{path.name} --report"
    write_pair_page(study, read_pair_data(source), made, command=command, source=source.as_posix())
    assert made.read_text() == page.read_text()
