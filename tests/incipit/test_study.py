"""The study of all choices: complete, valid, and each proved by a test that exists."""

import ast
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from backend.expansion import planned_runs
from backend.schemas import Evaluation, Run
from engine.spec import RunSpec
from incipit.methods_page import methods_page
from incipit.study import Choice, Study, dotted, read_study

ROOT = Path(__file__).parents[2]
FILE = ROOT / "experiments" / "studies" / "methods.json"


@cache
def study() -> Study:
    return read_study(FILE)


def union_members(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> set[tuple[str, str]]:
    """(dotted path, kind) of every member of every union of a schema."""
    found: set[tuple[str, str]] = set()
    for name, inner in schema.get("properties", {}).items():
        here = path + name
        for kind, reference in inner.get("discriminator", {}).get("mapping", {}).items():
            found.add((here, kind))
            found |= union_members(definitions[reference.rpartition("/")[2]], definitions, here + ".")
        if "$ref" in inner:
            found |= union_members(definitions[inner["$ref"].rpartition("/")[2]], definitions, here + ".")
    return found


def test_every_choice_makes_a_valid_run_of_at_least_20_steps() -> None:
    planned = planned_runs(study().experiment)
    assert len(planned) == len(study().choices)
    assert min(run.spec.num_steps for run in planned) >= 20


def test_every_kind_of_every_union_of_the_spec_is_trained_by_the_study() -> None:
    schema = RunSpec.model_json_schema()
    wanted = union_members(schema, schema["$defs"])
    assert ("prefix", "constant") in wanted
    trained: set[tuple[str, str]] = set()
    for run in planned_runs(study().experiment):
        trained |= kinds_in(run.spec.model_dump(mode="json"))
    # A scorer only marks texts; the tiny pair's answers suit one of them. Servers are those of tests/vllm.
    left_out = {("rollouts", "vllm_servers"), ("teacher_backend", "vllm_servers")}  # each needs a server
    left_out |= {("rollouts", "vllm_colocated")}  # an environment of its own
    left_out |= {("parallelism", kind) for kind in ("data_parallel", "fully_sharded")}  # and these two free cores
    assert {(path, kind) for path, kind in wanted - trained - left_out if path != "evaluation.scorer"} == set()


def kinds_in(document: dict[str, Any], path: str = "") -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for name, value in document.items():
        if isinstance(value, dict):
            if "kind" in value:
                found.add((path + name, value["kind"]))
            found |= kinds_in(value, f"{path}{name}.")
    return found


@pytest.mark.parametrize("choice", study().choices, ids=lambda choice: choice.name)
def test_the_test_that_proves_a_choice_exists_and_asserts(choice: Choice) -> None:
    path, _, name = choice.test.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert name.partition("[")[0] in functions, f"{path} has no test {name}"
    body = ast.unparse(functions[name.partition("[")[0]])
    assert any(word in body for word in ("assert", "raises", "gradcheck")), f"{choice.test} asserts nothing"
    assert choice.source.strip()
    assert choice.cost.strip()


def test_an_object_with_a_kind_is_replaced_whole_and_others_are_merged() -> None:
    change = {"prefix": {"kind": "constant", "tokens": 4}, "optimizer": {"schedule": {"kind": "cosine"}, "eps": 1e-8}}
    assert dict(dotted(change)) == {
        "prefix": {"kind": "constant", "tokens": 4},
        "optimizer.schedule": {"kind": "cosine"},
        "optimizer.eps": 1e-8,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "The spec is"),
        ('{"name": "a"}', "title is missing"),
    ],
)
def test_a_wrong_study_file_is_refused_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "study.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"\.$") as caught:
        read_study(path)
    assert says in str(caught.value)


def test_an_absent_study_file_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_study(Path("nowhere.json"))


def test_the_page_has_a_line_for_each_choice_and_names_what_is_missing() -> None:
    first, second = study().choices[:2]
    small = Study(file=study().file, choices=[first, second])
    now = datetime.now(UTC)
    run = Run.model_construct(state="succeeded", step=24, flops=None, failure_message=None, created_at=now)
    base = Evaluation.model_construct(
        subject="base", step=0, num_prompts=64, metrics={"accuracy": 0.25, "reverse_kl": 0.5}
    )
    last = Evaluation.model_construct(subject="student", step=24, num_prompts=64, metrics={"accuracy": 0.75})
    odd = Evaluation.model_construct(subject="base", step=0, num_prompts=64, metrics={"accuracy": 0.5})
    three = {"odd": (run, [odd]), first.name: (run, [base, last]), "same": (run, [base])}
    page = methods_page(small, three, file="f.json", commit="abc")
    assert f"| {first.choice} |" in page
    assert "| 24 | – | 0.750 | – | – |" in page
    assert "training they are 0.250 and 0.500" in page
    assert f"Missing, without a recorded run: {second.choice}." in page
    with pytest.raises(ValueError, match="has measured the untrained student"):
        methods_page(small, {first.name: (run, [last])}, file="f.json", commit="abc")
