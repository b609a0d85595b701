"""What a failed run offers: changes that fit its spec, and a form that has them."""

import json
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
from streamlit.testing.v1 import AppTest

from backend.expansion import with_changes
from dashboard.failure_panel import ADVICE, fixes
from engine.events import FailureKind
from engine.spec import RunSpec

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def opened(changes: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params.update({"from": "r-failed", "set": changes})
    return app.switch_page("views/new_run.py").run()


def typed(app: AppTest, label: str) -> object:
    return next(one.value for one in app.text_input if one.label == label)


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_every_failure_has_advice_and_its_fixes_make_valid_specs(kind: str, records: ModuleType) -> None:
    assert kind in ADVICE
    spec = records.run("r-failed").spec
    for _, changes in fixes(kind, spec):
        changed = RunSpec.model_validate(with_changes(spec.model_dump(mode="json"), changes))
        assert changed != spec


def test_nothing_is_offered_that_is_done_already(records: ModuleType) -> None:
    spec = records.run("r-failed").spec
    least = RunSpec.model_validate(
        spec.model_dump(mode="json")
        | {"micro_batch_rollouts": 1, "gradient_checkpointing": "always", "prefix": {"kind": "constant", "tokens": 1}}
    )
    assert fixes("oom_host", least) == []
    assert [label for label, _ in fixes("oom_host", spec)] == [
        "Micro-batches of 8",
        "Recompute activations",
        "A prefix of 4",
    ]
    on_gpu = [label for label, _ in fixes("gpu_error", spec)]
    assert on_gpu == ["Micro-batches of 8", "Recompute activations", "Offload the teacher"]
    waiting = spec.model_copy(update={"teacher_offload": "always"})
    assert fixes("gpu_error", waiting) == fixes("oom_host", spec), "a CPU's failure is never offered it"


@pytest.mark.usefixtures("scene")
def test_a_fix_opens_the_form_with_its_change_and_says_so() -> None:
    app = opened(json.dumps({"micro_batch_rollouts": 4}))
    assert not app.exception
    assert typed(app, "Micro batch rollouts") == "4"
    assert any("1 field differs from run r" in one.label for one in app.expander)
    assert "set" not in app.query_params


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize(
    "changes", ["{", "[]", '{"num_steps": -1}', '{"": 1}', '{"prefix.tokens.deeper": 1}', '{"trust_remote_code": true}', "[" * 9000]
)  # fmt: skip
def test_an_address_with_changes_that_do_not_fit_changes_nothing(changes: str) -> None:
    app = opened(changes)
    assert not app.exception
    assert any("do not fit the run" in one.value for one in app.warning)
    assert typed(app, "Micro batch rollouts") == "16"
