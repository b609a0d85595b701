"""`incipit bench` passes what it is asked on, and its benchmarks say what is missing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import _GPU, _PEER, _SHAPES, _VLLM
from benchmarks.pairs import opened_pair
from benchmarks.paper_shapes import counted, measured
from incipit.cli import app

ROOT = Path(__file__).resolve().parents[2]


def test_two_benchmarks_at_once_are_refused() -> None:
    done = CliRunner().invoke(app, ["bench", "--profile", "--decode"])
    assert done.exit_code == 2
    assert "name one of them" in done.output
    done = CliRunner().invoke(app, ["bench", "--decode", "--vllm-python", "python"])
    assert done.exit_code == 2
    assert "--decode and --vllm-python are 2 benchmarks" in done.output


def test_the_comparison_with_vllm_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INCIPIT_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["bench", "--vllm-python", "/nowhere/python", "--rounds", "1"])
    assert done.exit_code == 1
    assert "incipit models fetch smollm2" in capfd.readouterr().err


def test_models_that_are_not_there_are_named_with_the_command_that_fetches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INCIPIT_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="incipit models fetch smollm2"):
        opened_pair("smollm2", tmp_path)


def test_each_table_has_a_column_for_every_cell() -> None:
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    values = {"seconds": 1.0, "reached": 0.5, "cpu": 1.0, "memory": 1e6}
    ratios = {
        f"{name}_ratio": 1.0
        for name in (
            "cpu",
            "wall",
            "rollout",
            "update",
            "memory",
            "decode",
            "decode_wall",
            "decode_cpu",
        )
    }
    rates = {f"{name}_tokens_per_second": 1.0 for name in ("incipit", "generate", "vllm")}
    phases = {"phases": {str(i): values for i in range(7)}, "matrix_rate": 1e9, "copy_bandwidth": 1e9}
    one = {"pair": "random", "dtype": "float32", "batch": 4, "tokens": 32, "incipit": values, "trl": values}
    synced = dict.fromkeys(("engine", "whole", "sync", "gap", "steps", "plain", "overlapped", "ratio"), 1.0)
    for heading, (_, rows_of) in (_PEER | _VLLM).items():
        titles = page.split(f"## {heading}\n")[1].split("\n| ")[1].splitlines()[0]
        (row,) = rows_of({"results": [one | ratios | rates | phases | synced]})
        assert len(row) + 3 == titles.count("|"), heading


def test_a_step_at_the_papers_shapes_is_counted_and_measured_alike() -> None:
    (told,) = counted("tiny", "tiny", [8])
    (found,) = measured("tiny", "tiny", [8], "cpu")
    # A tiny vocabulary ends some texts by chance.
    assert found["training_flops"] == pytest.approx(told["training_flops"], rel=0.03)
    assert found["seconds"] > 0
    assert found["peak_bytes"] > told["memory_bytes"] > 0
    assert sum(told["shares"].values()) == pytest.approx(1)
    longer = counted("Qwen3-1.7B", "Qwen3-8B", [512, 8192])
    assert longer[1]["training_flops"] > 16 * longer[0]["training_flops"], "attention grows with the square"
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    for heading, (_, rows_of) in {**_SHAPES, **_GPU}.items():
        one = told | found | {"student": "a", "teacher": "b", "trained": "c", "usual_bytes": 1, "least_bytes": 1}
        (row,) = rows_of({"student": "a", "teacher": "b", "results": [one]})
        head = page.split(f"## {heading}\n")[1].split("\n| date |")[1].splitlines()[0]
        assert head.count("|") == len(row) + 2, heading  # beside commit and load
