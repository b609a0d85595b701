"""Early stopping: when the rule ends training, in which words, and that it changes nothing before that."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.checkpoint import load_trainer_state
from engine.early_stopping import EarlyStoppingState, StopByEvaluation, after_evaluation
from engine.events import CheckpointSaved, Evaluated, Finished, RunEvent, StepDone
from engine.findings import findings_of
from tests.engine.running import quick_document, quick_spec, steps_of, train_here

EVALUATION = quick_document()["evaluation"]
assert isinstance(EVALUATION, dict)
# A difference of 5 nats is never reached, so that the first evaluation stays the best.
RULE = {"kind": "evaluation", "metric": "reverse_kl", "patience": 2, "min_delta": 5.0}
CHANGES = {
    "num_steps": 20,
    "evaluation": EVALUATION | {"every_steps": 2},
    "prefix": {"kind": "cosine", "start_tokens": 2, "end_tokens": 20, "over_steps": 20},
}


BY: dict[str, object] = {"kind": "evaluation"}


def ended_at(rule: StopByEvaluation, values: Sequence[float | None]) -> tuple[int | None, str]:
    """The evaluation (from 1) that ends training, and the reason; step n is the n-th evaluation."""
    state = EarlyStoppingState()
    for step, value in enumerate(values, 1):
        state = after_evaluation(rule, state, step, {rule.metric: value})
        if state.reason:
            return step, state.reason
    return None, ""


@pytest.mark.parametrize(
    ("rule", "values", "step"),
    [
        ({"patience": 2}, [0.1, 0.2, 0.2, 0.1], 4),
        ({"patience": 2}, [0.1, 0.1, 0.2, 0.2, 0.3], None),
        ({"patience": 1}, [0.1, 0.1], 2),
        ({"patience": 2, "min_delta": 0.1}, [0.1, 0.15, 0.19, 0.3], 3),
        ({"patience": 2, "min_delta": 0.125}, [0.125, 0.25, 0.375], None),
        ({"patience": 2, "metric": "reverse_kl"}, [0.5, 0.4, 0.3, 0.2], None),
        ({"patience": 2, "metric": "reverse_kl"}, [0.2, 0.3, 0.4], 3),
        ({"patience": None, "target": 0.5}, [0.1, 0.1, 0.1, 0.5], 4),
        ({"patience": 5, "target": 0.5}, [0.6], 1),
        ({"patience": None, "target": 0.5, "metric": "reverse_kl"}, [0.6, 0.5], 2),
        ({"patience": 2, "metric": "exact"}, [None, None], 2),
        ({"patience": 2}, [0.1, None, 0.2], None),
    ],
)
def test_the_rule_ends_training_at(rule: dict[str, object], values: list[float | None], step: int | None) -> None:
    assert ended_at(StopByEvaluation.model_validate(rule), values)[0] == step


def test_the_reason_says_what_was_measured_and_what_was_wanted() -> None:
    rule = StopByEvaluation(patience=2, min_delta=0.01)
    assert ended_at(rule, [0.62, 0.625, 0.6])[1] == (
        "Stopped early at step 3: accuracy has not improved by 0.01 in 2 evaluations in a row (best 0.62 at step 1)."
    )
    rule = StopByEvaluation(patience=None, target=0.9)
    assert ended_at(rule, [0.93])[1] == "Stopped early at step 1: accuracy reached 0.93, the target is 0.9."


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"early_stopping": BY | {"patience": None}}, "early_stopping", "patience and target are both empty"),
        ({"early_stopping": BY | {"metric": "avg_at_k"}}, "evaluation.samples_per_prompt", "early_stopping.metric is avg_at_k"),
        ({"early_stopping": BY | {"metric": "forward_kl_on_teacher_texts"}}, "evaluation.num_teacher_texts", "early_stopping.metric"),
        ({"early_stopping": BY | {"target": 5}}, "early_stopping.target", "is 5 but accuracy is a share and never above 1; lower it"),
        ({"early_stopping": BY | {"target": 1.01, "metric": "exact"}}, "early_stopping.target", "is 1.01 but exact is a share"),
        ({"early_stopping": BY | {"patience": 0}}, "early_stopping.patience", "is 0 but must be at least 1; raise it."),
    ],
)  # fmt: skip
def test_a_rule_that_could_end_nothing_is_refused(changes: dict[str, object], field: str, problem: str) -> None:
    document = quick_document(**changes)
    with pytest.raises(ValidationError) as caught:
        quick_spec(**changes)
    (finding,) = findings_of(caught.value, document)
    assert finding.field == field
    assert problem in finding.message


def test_a_target_may_be_the_largest_share_or_any_divergence() -> None:
    for rule in ({"target": 1}, {"target": 5, "metric": "reverse_kl"}):
        assert quick_spec(early_stopping=BY | rule)


def losses(events: list[RunEvent]) -> list[tuple[int, float | None]]:
    return [(event.horizon, event.metrics["loss"]) for event in events if isinstance(event, StepDone)]


def finish(events: list[RunEvent]) -> tuple[int, str, str]:
    finished = events[-1]
    assert isinstance(finished, Finished)
    return finished.step, finished.reason, finished.detail


def test_a_run_is_cut_off_and_otherwise_the_same(tmp_path: Path, home: Path) -> None:  # noqa: ARG001
    events = train_here(quick_spec(**CHANGES, early_stopping=RULE), tmp_path / "short")
    step, reason, detail = finish(events)
    assert (step, reason) == (6, "early_stopping")
    assert detail.startswith(
        "Stopped early at step 6: reverse kl has not improved by 5 in 2 evaluations in a row (best "
    )
    assert [one.step for one in events if isinstance(one, Evaluated) and one.subject == "student"] == [2, 4, 6]
    assert [one.step for one in events if isinstance(one, CheckpointSaved)][-1] == 6
    whole = train_here(quick_spec(**CHANGES), tmp_path / "whole")
    assert losses(whole)[:6] == losses(events)  # horizon and learning rate are those of the whole run
    assert finish(whole)[1:] == ("steps", "")


@pytest.mark.parametrize("start", [1, 2, 3, 4, 5, 6])
def test_a_resumed_run_ends_at_the_same_step(tmp_path: Path, home: Path, start: int) -> None:  # noqa: ARG001
    spec = quick_spec(**CHANGES, early_stopping=RULE, checkpoints={"every_steps": 1, "keep_last": 99})
    whole = train_here(spec, tmp_path / "run")
    resumed = train_here(
        spec, tmp_path / "run", attempt=2, resume=tmp_path / f"run/attempts/1/checkpoints/step-{start}"
    )
    assert steps_of(resumed) == list(range(start + 1, 7))
    assert finish(resumed) == finish(whole)


def test_an_evaluation_that_is_done_again_for_a_lost_best_is_not_counted_again(tmp_path: Path, home: Path) -> None:  # noqa: ARG001
    spec = quick_spec(
        num_steps=6,
        evaluation=EVALUATION | {"every_steps": 2, "primary_metric": "reverse_kl"},
        early_stopping=RULE | {"patience": 9},
        prefix={"kind": "validation", "start_tokens": 2, "patience_evaluations": 9, "min_improvement": 100},
        # So large that the student gets worse: the first evaluation stays the best.
        optimizer={"learning_rate": 0.05, "warmup_steps": 0, "eps": 1e-4},
        checkpoints={"every_steps": 1, "keep_last": 99},
    )
    checkpoints = tmp_path / "attempts" / "{}" / "checkpoints" / "step-4"
    train_here(spec, tmp_path)
    before = load_trainer_state(Path(str(checkpoints).format(1)))
    assert (before.best_step, before.prefix.waited, before.early_stopping.num_without) == (2, 1, 1)
    assert before.best_path is not None
    (tmp_path / before.best_path / "config.json").unlink()
    again = train_here(spec, tmp_path, attempt=2, resume=Path(str(checkpoints).format(1)))
    assert [one.step for one in again if isinstance(one, Evaluated) and one.split == "dev"] == [4, 6]
    after = load_trainer_state(Path(str(checkpoints).format(2)))
    assert (after.best_step, after.prefix, after.early_stopping) == (4, before.prefix, before.early_stopping)
