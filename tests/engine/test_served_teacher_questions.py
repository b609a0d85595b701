"""Analyses and playground of runs whose teacher is served: no weights of it here, and the answers of a teacher in the engine."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.analysis_spec import AnalysisResult, AnalysisSpec
from engine.analyze import analyze
from engine.errors import RunError
from engine.locations import resolve
from engine.playground import ask
from engine.playground_spec import PlaygroundResult, PlaygroundSpec
from tests.engine.models import tiny_document, tiny_model
from tests.engine.stand_in_vllm import StandInVllm

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.xdist_group("served-teacher")]
TEACHER = "builtin:tiny/models/teacher"
Document = dict[str, Any]


@pytest.fixture
def server() -> Iterator[StandInVllm]:
    one = StandInVllm(TEACHER)
    yield one
    one.stop()


@pytest.fixture
def nameplate(tmp_path: Path) -> Path:
    """The teacher's folder without its weights."""
    folder = tmp_path / "nameplate"
    shutil.copytree(resolve(TEACHER), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def run_document(**changes: object) -> Document:
    evaluation = {
        "path": "builtin:tiny/data/dev.jsonl", "num_prompts": 6, "scorer": {"kind": "after_marker", "marker": "#"},
    }  # fmt: skip
    return tiny_document(student={"path": "builtin:tiny/models/student-plan"}, evaluation=evaluation, **changes)


def served(server: StandInVllm, folder: Path, **backend: object) -> Document:
    return {
        "teacher": {"path": str(folder)},
        "teacher_backend": {
            "kind": "vllm_servers", "servers": [{"address": server.address}], "patience_seconds": 1,
            "top_k": tiny_model("teacher").head.vocabulary,
        } | backend,
    }  # fmt: skip


def analyzed(kind: str, run: Document) -> AnalysisResult:
    # Each bin asks for its gradient three times: few of them are enough here.
    few: dict[str, Document] = {
        "gradient_by_position": {"bin_tokens": 32},
        "teacher_continues": {"prefix_tokens": [0, 4]},
    }
    analysis: Document = {"kind": kind, "num_prompts": 6} | few.get(kind, {})
    return analyze(AnalysisSpec.model_validate({"run": run, "analysis": analysis}), lambda done, detail: None)


@pytest.mark.parametrize(
    "kind", ["divergence_by_position", "gradient_by_position", "teacher_prefix", "teacher_continues"]
)
def test_an_analysis_says_the_same(kind: str, server: StandInVllm, nameplate: Path) -> None:
    here = analyzed(kind, run_document())
    there = analyzed(kind, run_document(**served(server, nameplate)))
    assert there.sentences[-1].startswith("The teacher is served: of each position its ")
    assert len(there.rows) == len(here.rows) > 1
    for mine, theirs in zip(here.rows, there.rows, strict=True):
        assert (theirs.start, theirs.end, theirs.count) == (mine.start, mine.end, mine.count)
        assert theirs.value == pytest.approx(mine.value, abs=1e-4)
        assert theirs.details == pytest.approx(mine.details, abs=1e-3)


def test_where_the_teacher_goes_on_the_prompts_tag_still_says_which(
    server: StandInVllm, nameplate: Path, tmp_path: Path
) -> None:
    other = StandInVllm("builtin:tiny/models/student-late")
    dev = [json.loads(line) for line in Path(resolve("builtin:tiny/data/dev.jsonl")).read_text().splitlines()[:6]]
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(row | {"tag": "plans"}) + "\n" for row in dev))
    servers = [{"address": other.address}, {"address": server.address, "tag": "plans"}]
    run = run_document(**served(server, nameplate, servers=servers))
    run["evaluation"]["path"] = str(path)
    try:
        there = analyzed("teacher_continues", run)
    finally:
        other.stop()
    here = analyzed("teacher_continues", run_document())
    assert [row.value for row in there.rows] == [row.value for row in here.rows]


def played(run: Document, folder: Path, **changes: object) -> PlaygroundResult:
    asked = {
        "run": run, "speakers": [{"kind": "base"}, {"kind": "teacher"}], "prompt": "k3 k0 c3 c2 c3 4 N13 |",
        "max_completion_tokens": 12, "temperature": 0,
    } | changes  # fmt: skip
    return ask(PlaygroundSpec.model_validate(asked), lambda done, detail: None, folder / "answers.parquet")


def test_in_the_playground_it_answers_and_scores(server: StandInVllm, nameplate: Path, tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    here = played(run_document(), tmp_path / "here")
    there = played(run_document(**served(server, nameplate)), tmp_path / "there")
    assert [one.text for one in there.answers] == [one.text for one in here.answers]
    for mine, theirs in zip(here.answers, there.answers, strict=True):
        assert theirs.mean_reverse_kl == pytest.approx(mine.mean_reverse_kl, abs=1e-4)
    assert there.notes[-1].startswith("The teacher is served: ")


def test_in_the_playground_one_of_several_teachers_answers_and_is_named(
    server: StandInVllm, nameplate: Path, tmp_path: Path
) -> None:
    servers = [{"address": server.address, "tag": "plans"}, {"address": "http://127.0.0.1:9", "tag": "sums"}]
    result = played(run_document(**served(server, nameplate, servers=servers)), tmp_path)
    assert result.notes[-1] == "Of the run's teachers, that of the tag 'plans' answers and scores."
    assert all(one.mean_reverse_kl is not None for one in result.answers)


def test_a_server_that_is_gone_is_named(server: StandInVllm, nameplate: Path, tmp_path: Path) -> None:
    run = run_document(**served(server, nameplate))
    server.stop()
    with pytest.raises(RunError, match="start one of them, then go on") as caught:
        played(run, tmp_path)
    assert caught.value.failure == "server_unreachable"
    with pytest.raises(RunError, match=r"No server of teacher_backend\.servers has answered for 1 s"):
        analyzed("divergence_by_position", run)
