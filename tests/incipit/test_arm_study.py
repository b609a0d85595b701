"""Studies with seeds: figures that are kept, and pages that nobody typed."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.spec import RunSpec
from incipit.arm_study import fingerprint, is_arm_study, read_arm_study
from incipit.arm_study_page import write_page
from incipit.cli import app
from incipit.findings_page import write_findings
from incipit.study import read_document
from incipit.study_data import StudyData, read_data, write_data
from incipit.study_readouts import curve, got_there, paired
from incipit.study_sitting import Sitting
from tests.incipit.study_figures import ROOT, T_95, figures, study_document

_STUDIES = [
    path for path in sorted((ROOT / "experiments" / "studies").glob("*.json")) if is_arm_study(read_document(path))
]


def test_seconds_of_two_machines_are_never_compared(tmp_path: Path) -> None:
    study = read_arm_study(study_document(), "here")
    data = StudyData(
        [
            *figures("full", 0, [0.4, 0.6], 4.0, machine="slow"), *figures("full", 1, [0.4, 0.7], 4.0, machine="quick"),
            *figures("prefix 8", 0, [0.4, 0.9], 1.0, machine="quick"), *figures("prefix 8", 1, [0.4, 0.8], 1.0, machine="quick"),
        ],
        ["c"], ["2026-01-01"],
    )  # fmt: skip
    compared = {at: paired(data, "prefix 8", "full", "accuracy", at, [0, 1]) for at in ("steps", "flops", "time")}  # type: ignore[arg-type]
    assert {at: found and found.seeds for at, found in compared.items()} == {
        "steps": [0, 1],
        "flops": [0, 1],
        "time": [1],
    }
    write_page(study, data, tmp_path / "x.md", command="c", source="x.parquet")
    assert "Training s is of runs on quick alone, not of those on slow." in (tmp_path / "x.md").read_text()


def test_figures_are_kept_and_replaced_by_those_of_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "data" / "x.parquet"
    assert read_data(path).figures == []
    first = StudyData([]).with_runs(figures("a", 0, [0.1, 0.2], 1.0), commit="c1", date="2026-01-01")
    write_data(path, first)
    second = read_data(path).with_runs(
        [*figures("a", 0, [0.1, 0.9], 1.0), *figures("b", 0, [0.1], 1.0)], commit="c2", date="2026-01-02"
    )
    write_data(path, second)
    again = read_data(path)
    assert [one.value for one in again.figures if one.arm == "a"] == [0.1, 0.9]
    assert (again.commits, again.machines, again.dates) == (["c1", "c2"], ["m"], ["2026-01-01", "2026-01-02"])
    assert again.of({("a", 0): "s", ("b", 0): "another spec"}).figures == [
        one for one in again.figures if one.arm == "a"
    ]
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match="cannot be read as a study's figures"):
        read_data(path)


def test_missing_seeds_are_shown_as_missing(tmp_path: Path) -> None:
    study = read_arm_study(study_document(), "here")
    data = StudyData(
        [*figures("full", 0, [0.4, 0.6], 4.0), *figures("prefix 8", 0, [0.4, 0.9], 1.0)], ["c"], ["2026-01-01"]
    )
    page = tmp_path / "x.md"
    write_page(study, data, page, command="incipit study", source="x.parquet")
    text = page.read_text()
    assert "* **Undecided:** A prefix of 8 tokens is as good" in text
    assert "* full: seeds 1, 2, 3, 4" in text
    assert "* prefix 64: seeds 0, 1, 2, 3, 4" in text
    assert "| full | 1 of 5 |" in text
    first = page.with_suffix(".svg").read_bytes()
    write_page(study, data, page, command="incipit study", source="x.parquet")
    assert page.with_suffix(".svg").read_bytes() == first
    with pytest.raises(ValueError, match="There are no figures of prefix-vs-full yet"):
        write_page(study, StudyData([]), page, command="incipit study", source="x.parquet")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": "half"}, "reference is 'half', which is no arm; name one of full, prefix 8"),
        ({"seeds": [1, 1]}, "seeds has one of them twice"),
        ({"hours": 5}, "hours is 5 but must be at most 4"),
        ({"arms": [{"name": "full"}, {"name": "full"}]}, "arms has 'full' 2 times"),
        ({"arms": [{"name": "full"}, {"name": "odd", "changes": {"prefix": {"kind": "constant", "tokens": 0}}}], "claims": []},
         "prefix.tokens is 0"),
    ],
)  # fmt: skip
def test_a_wrong_study_is_named_with_its_place(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text(json.dumps(study_document(**changes)))
    with pytest.raises(ValueError, match="study") as caught:
        read_arm_study(read_document(path), str(path))
    assert words in str(caught.value)
    done = CliRunner().invoke(app, ["study", str(path), "--report"])
    assert done.exit_code == 1
    assert words in done.output.replace("\n", "")


def test_a_changed_spec_is_another_run_and_a_name_is_not() -> None:
    study = read_arm_study(study_document(), "here")
    specs = study.specs(0)
    assert len({fingerprint(spec) for spec in specs.values()}) == len(specs)
    renamed = specs["full"].model_copy(update={"name": "another"})
    assert fingerprint(renamed) == fingerprint(specs["full"])
    assert fingerprint(study.specs(1)["full"]) != fingerprint(specs["full"])


def test_a_fingerprint_leaves_defaults_out_and_keeps_kinds_apart() -> None:
    base = read_arm_study(study_document(), "here").base.model_dump()
    lengths = {"start_tokens": 8, "increment_tokens": 16}
    prints = {
        fingerprint(RunSpec.model_validate(base | {"prefix": {"kind": kind, **lengths}}))
        for kind in ("linear", "staircase")
    }
    assert len(prints) == 2
    told = RunSpec.model_validate(
        base | {"prefix": {"kind": "staircase", **lengths, "every_steps": 20, "cap_tokens": None}}
    )
    assert fingerprint(told) in prints, "a default that is written out is no other run"
    other = RunSpec.model_validate(base | {"prefix": {"kind": "staircase", **lengths, "every_steps": 21}})
    assert fingerprint(other) not in prints


def test_a_claim_may_speak_of_another_measure(tmp_path: Path) -> None:
    ends = {"key": "eos_rate", "name": "EOS rate", "is_better_when": "higher", "margin": 0.1}
    claim = {"statement": "It ends less.", "arm": "prefix 8", "against": "full", "at": "steps", "says": "worse"}
    study = read_arm_study(study_document(claims=[claim | {"measure": ends}, claim]), "here")
    figures_of_it = [
        replace(one, key=key, value=value)
        for seed in (0, 1, 2)
        for arm, key, values in (("full", "eos_rate", (0.9, 0.9)), ("prefix 8", "eos_rate", (0.9, 0.1 + 0.01 * seed)),
                                 ("full", "accuracy", (0.4, 0.6)), ("prefix 8", "accuracy", (0.4, 0.9)))
        for one, value in zip(figures(arm, seed, [0.0, 0.0], 1.0), values, strict=True)
    ]  # fmt: skip
    page = tmp_path / "x.md"
    write_page(study, StudyData(figures_of_it, ["c"], ["2026-01-01"]), page, command="c", source="x.parquet")
    assert "* **Confirmed:** It ends less. (EOS rate of prefix 8 less that of full" in page.read_text()
    assert "* **Refuted:** It ends less. (exact match of prefix 8 less that of full" in page.read_text()


def test_what_it_cost_to_get_there_is_the_first_evaluation_as_good(tmp_path: Path) -> None:
    points = curve(StudyData(figures("a", 0, [0.4, 0.7, 0.6, 0.9], 3.0)), "a", 0, "accuracy")
    assert [p and p.step for p in (got_there(points, at, "higher") for at in (0.3, 0.65, 0.9, 0.95))] == [
        0,
        10,
        30,
        None,
    ]
    assert [p and p.step for p in (got_there(points, at, "lower") for at in (0.4, 0.3))] == [0, None]
    study = read_arm_study(study_document(), "here")
    data = StudyData(
        [
            one
            for seed in range(3)
            for one in (
                *figures("full", seed, [0.4, 0.5, 0.9], 4.0),
                *figures("prefix 8", seed, [0.4, 0.89 if seed else 0.5, 0.89 if seed else 0.5], 1.0),
            )
        ],
        ["c"], ["2026-01-01"],
    )  # fmt: skip
    write_page(study, data, tmp_path / "x.md", command="c", source="x.parquet")
    text = (tmp_path / "x.md").read_text()
    assert "Exact match of at least 0.880, the mean of full at its end less the margin of 0.02" in text
    assert "| full | 3 of 3 | 20 | 80 FLOP | 1.0 |" in text
    assert "| prefix 8 | 2 of 3 | 10 | 10 FLOP | 8.0 |" in text
    assert "| prefix 64 | 0 of 0 | – | – | – |" in text


def test_what_was_there_before_training_is_a_mean_over_seeds_too(tmp_path: Path) -> None:
    study = read_arm_study(study_document(), "here")
    data = StudyData(
        [one for seed, start in enumerate((0.3, 0.4, 0.5)) for one in figures("full", seed, [start, 0.9], 4.0)],
        ["c"], ["2026-01-01"],
    )  # fmt: skip
    write_page(study, data, tmp_path / "x.md", command="c", source="x.parquet")
    half = T_95[2] * 0.1 / math.sqrt(3)
    assert f"0.400 [{0.4 - half:.3f}, {0.4 + half:.3f}]" in (tmp_path / "x.md").read_text().split("| teacher |")[0]


@pytest.mark.parametrize(("short_end", "is_said"), [(0.39, True), (0.41, False)])
def test_a_page_says_first_that_nothing_was_gained(tmp_path: Path, short_end: float, is_said: bool) -> None:
    study = read_arm_study(study_document(), "here")
    figured = [*figures("full", 0, [0.4, 0.9, 0.2], 4.0), *figures("prefix 8", 0, [0.4, 0.1, short_end], 1.0)]
    data = StudyData(figured, ["c"], ["2026-01-01"])
    write_page(study, data, tmp_path / "x.md", command="c", source="x.parquet")
    _, _, first, *_ = (tmp_path / "x.md").read_text().splitlines()
    told = "* **Nothing was gained:** the untrained student's exact match, 0.400, is better than that of every arm"
    assert first.startswith(told) == is_said


@pytest.mark.parametrize("path", _STUDIES, ids=lambda path: path.stem)
def test_every_study_of_the_repository_can_be_submitted(path: Path) -> None:
    study = read_arm_study(read_document(path), path.stem)
    assert study.name == path.stem
    assert len(study.seeds) >= 3
    assert study.claims


@pytest.mark.parametrize(
    "data", [ROOT / "docs/studies/data" / f"{path.stem}.parquet" for path in _STUDIES], ids=lambda path: path.stem
)
def test_a_committed_page_is_what_its_figures_make(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not data.exists():
        assert not (ROOT / "docs/studies" / f"{data.stem}.md").exists(), "a page without figures"
        return
    monkeypatch.chdir(ROOT)
    path = Path("experiments/studies") / f"{data.stem}.json"
    study = read_arm_study(read_document(path), path.stem)
    made = tmp_path / f"{data.stem}.md"
    source = data.relative_to(ROOT).as_posix()
    kept = Sitting(study, data, commit="", say=print).data
    write_page(study, kept, made, command=f"incipit study {path.as_posix()} --report", source=source)
    assert made.read_text() == (ROOT / "docs/studies" / made.name).read_text()


def test_the_committed_findings_are_those_of_all_studies(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    shutil.copytree(ROOT / "docs/studies/data", tmp_path / "studies" / "data")
    page = write_findings(ROOT / "experiments/studies", tmp_path)
    assert page is not None
    assert page.read_text() == (ROOT / "docs/studies/findings.md").read_text()


def test_findings_warn_first_and_only_of_what_was_confirmed(tmp_path: Path) -> None:
    claim = {"statement": "It is worse.", "arm": "prefix 8", "against": "full", "at": "steps", "says": "worse"}
    document = study_document(
        seeds=[0, 1, 2], claims=[claim | {"warns_of": "the weak"}, claim | {"says": "better", "warns_of": "the idle"}]
    )
    studies = tmp_path / "experiments"
    studies.mkdir()
    (studies / "prefix-vs-full.json").write_text(json.dumps(document))
    (tmp_path / "studies").mkdir()
    assert write_findings(studies, tmp_path) is None
    study = read_arm_study(document, "here")
    data = [
        replace(one, spec=fingerprint(study.specs(seed)[arm]))
        for seed in (0, 1, 2)
        for arm, end in (("full", 0.9), ("prefix 8", 0.5 + seed / 100))
        for one in figures(arm, seed, [0.4, end], 1.0)
    ]
    write_data(tmp_path / "studies/data/prefix-vs-full.parquet", StudyData(data, ["c"], ["2026-01-01"]))
    page = write_findings(studies, tmp_path)
    assert page is not None
    lines = page.read_text().splitlines()
    assert lines[2].startswith("* **No prefix alone for the weak:** It is worse. (exact match of prefix 8")
    assert "the idle" not in "\n".join(lines)
    assert "Claims that were written down before the runs: 1 confirmed, 1 refuted, 0 undecided" in lines[4]
