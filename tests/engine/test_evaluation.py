"""What an evaluation measures beside accuracy: k samples, fixed teacher texts, calibration, and which figure decides."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from engine.answer_samples import answer_samples
from engine.calibration import calibration_metrics
from engine.errors import RunError
from engine.evaluate import text_divergence
from engine.evaluation_spec import EvaluationSpec
from engine.events import Evaluated, RunEvent
from engine.locations import resolve
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from engine.scorers import Mark
from engine.scoring import score_rollouts
from engine.truncation import Truncation
from engine.verdicts import Verdicts, verdicts_of
from tests.engine.models import random_model
from tests.engine.running import quick_document, quick_spec, train_here

pytestmark = pytest.mark.usefixtures("home")
DEV = {
    "path": "builtin:tiny/data/dev.jsonl", "num_prompts": 3, "num_sampled": 2, "every_steps": 1,
    "scorer": {"kind": "after_marker", "marker": "#"},
}  # fmt: skip


def evaluated(events: list[RunEvent], subject: str = "student") -> list[Evaluated]:
    return [event for event in events if isinstance(event, Evaluated) and event.subject == subject]


def test_the_figures_of_k_samples_are_those_of_their_marks() -> None:
    right, wrong, none = Mark(True, "7"), Mark(False, "3"), Mark(False, None)
    found = answer_samples([[right, right, wrong, none], [wrong, none, none, none], [right] * 4], seed=0)
    assert found.num_right == [2, 0, 4]
    expected = {
        "avg_at_k": 0.5,
        "avg_at_k_standard_error": np.std([0.5, 0, 1], ddof=1) / np.sqrt(3),
        "maj_at_k": 2 / 3,
        "pass_at_1": 0.5,
        "pass_at_2": (5 / 6 + 0 + 1) / 3,
        "pass_at_4": 2 / 3,
        # Confidence 0.5 with outcome 1, 0.25 with 0, 1 with 1.
        "answer_calibration_error": (0.5 + 0.25 + 0) / 3,
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected)
    assert found.metrics["avg_at_k_low"] == pytest.approx(0.0)
    assert found.metrics["avg_at_k_high"] == pytest.approx(1.0)


def test_top_1_sampling_is_greedy_and_top_k_draws_k_tokens_only() -> None:
    model = random_model()
    requests = [RolloutRequest(index, [3, 4, 5 + index], 8, 0) for index in range(3)]
    greedy = Sampler(model, 0, 0.0).sample(requests, 6)
    top_1 = Sampler(model, 0, 1.0, truncation=Truncation(top_k=1)).sample(requests, 6)
    assert [r.completion_token_ids for r in top_1] == [r.completion_token_ids for r in greedy]
    many = Sampler(model, 0, 1.0, truncation=Truncation(top_k=2)).sample([RolloutRequest(0, [3, 4, 5], 64, 0)], 1)
    counts = Counter(r.completion_token_ids[0] for r in many)
    assert len(counts) == 2
    assert all(math.isfinite(r.completion_logprobs[0]) for r in many)


def test_a_student_equal_to_its_teacher_is_calibrated_and_a_sharper_one_is_overconfident() -> None:
    teacher = random_model(1)
    rollouts = Sampler(teacher, 0, 1.0).sample([RolloutRequest(i, [3, 4 + i], 1, 0) for i in range(4)], 20)
    same = calibration_metrics(score_rollouts(teacher, teacher, rollouts, temperature=1.0, top_k=2, micro_batch=4))
    assert same == pytest.approx({"calibration_error": 0.0, "overconfidence": 0.0}, abs=1e-6)
    columns = score_rollouts(random_model(2), teacher, rollouts, temperature=1.0, top_k=2, micro_batch=4)
    confidence = torch.cat([c.candidate_student_logprob[:, 0] for c in columns]).exp()
    outcome = torch.cat([c.candidate_teacher_logprob[:, 0] for c in columns]).exp()
    found = calibration_metrics(columns)
    bins = (confidence * 10).long().clamp(max=9)
    error = sum(
        float(abs(confidence[bins == b].mean() - outcome[bins == b].mean()) * (bins == b).double().mean())
        for b in bins.unique()
    )
    assert found["calibration_error"] == pytest.approx(error, abs=1e-6)
    assert found["overconfidence"] == pytest.approx(float((confidence - outcome).mean()), abs=1e-6)
    assert found["overconfidence"] > 0.05, "two random models do not agree by chance"


def test_verdicts_name_their_problems_and_stay_small() -> None:
    mine = verdicts_of([("p", "1"), ("q", "2")], [True, False], [3, 0], 4)
    assert mine == Verdicts(
        problems=mine.problems if mine else "", right="10", samples_per_problem=4, samples_right=[3, 0]
    )
    assert mine is not None
    assert mine.greedy() == [True, False]
    other = verdicts_of([("p", "1"), ("q", "3")], [True, False])
    assert other is not None
    assert other.problems != mine.problems
    assert verdicts_of([], [True] * 20_001) is None


def test_a_run_measures_samples_and_teacher_texts_once_and_again(tmp_path: Path) -> None:
    more = DEV | {"samples_per_prompt": 3, "answer_sampling": {"temperature": 0.7, "top_p": 0.9, "top_k": 20}}
    spec = quick_spec(evaluation=more | {"num_teacher_texts": 2}, num_steps=2)
    first = evaluated(train_here(spec, tmp_path / "a"))
    again = evaluated(train_here(spec, tmp_path / "b"))
    assert [e.metrics for e in first] == [e.metrics for e in again], "texts from the cache are those that were written"
    for event in first:
        assert event.verdicts is not None
        assert event.verdicts.samples_per_problem == 3
        assert len(event.verdicts.samples_right) == len(event.verdicts.right) == 3
        assert event.metrics["pass_at_1"] == pytest.approx(event.metrics["avg_at_k"])
        assert event.metrics["forward_kl_on_teacher_texts"] is not None
        by_position = np.average(event.position_teacher_entropy, weights=event.position_count)
        assert event.metrics["sampled_teacher_entropy"] == pytest.approx(by_position, rel=1e-5)
        assert event.metrics["sampled_student_entropy"] != event.metrics["sampled_teacher_entropy"]
    assert first[0].metrics["forward_kl_on_teacher_texts"] != first[1].metrics["forward_kl_on_teacher_texts"]


def test_the_divergence_on_texts_is_told_by_quarter_of_the_longest_completion() -> None:
    texts = [torch.arange(1.0, 8.0), torch.tensor([100.0, 200.0])]  # of at most 10 tokens: 0-2, 3-4, 5-7, 8-9
    found = text_divergence(texts, 10)
    name = "forward_kl_on_teacher_texts"
    assert found == {
        name: pytest.approx((28 + 300) / 9), f"{name}_quarter_1": pytest.approx((1 + 2 + 3 + 100 + 200) / 5),
        f"{name}_quarter_2": 4.5, f"{name}_quarter_3": 6.5, f"{name}_quarter_4": None,
    }  # fmt: skip
    assert set(text_divergence([], 10).values()) == {None}


def test_a_sample_more_does_not_change_what_was_measured_before(tmp_path: Path) -> None:
    plain = evaluated(train_here(quick_spec(evaluation=DEV, num_steps=2), tmp_path / "a"))[0]
    more = evaluated(train_here(quick_spec(evaluation=DEV | {"samples_per_prompt": 2}, num_steps=2), tmp_path / "b"))[0]
    assert {name: more.metrics[name] for name in plain.metrics} == plain.metrics


def test_baselines_of_other_settings_are_measured_anew(tmp_path: Path) -> None:
    for folder, k in (("a", 1), ("b", 1), ("c", 2)):
        events = train_here(quick_spec(evaluation=DEV | {"samples_per_prompt": k}, num_steps=2), tmp_path / folder)
        (teacher,) = evaluated(events, "teacher")
        assert teacher.is_cached is (folder == "b")
        assert teacher.verdicts is not None
        assert teacher.verdicts.samples_per_problem == k


@pytest.mark.parametrize("corrected", ["student", "teacher", "vocabulary"])
def test_baselines_are_measured_anew_when_the_files_beside_the_weights_were_corrected(
    tmp_path: Path, corrected: str
) -> None:
    models = {"student": tmp_path / "student", "teacher": tmp_path / "teacher"}
    for field, name in (("student", "student-plan"), ("teacher", "teacher")):
        shutil.copytree(resolve(f"builtin:tiny/models/{name}"), models[field])
    paths = {field: {"path": str(folder)} for field, folder in models.items()}

    def is_cached(folder: str) -> bool:
        (teacher,) = evaluated(
            train_here(quick_spec(**paths, evaluation=DEV, num_steps=2), tmp_path / folder), "teacher"
        )
        return teacher.is_cached

    assert [is_cached("first"), is_cached("again")] == [False, True]
    if corrected == "vocabulary":
        file = models["teacher"] / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        words = tokenizer["model"]["vocab"]
        words.pop(max(words, key=words.get))
        file.write_text(json.dumps(tokenizer))
    else:
        file = models[corrected] / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2, 40]}))
    assert not is_cached("corrected")


@pytest.mark.parametrize(
    ("primary", "metrics", "score"),
    [
        ("accuracy", {"accuracy": 0.5, "reverse_kl": 0.2}, (0.5, -0.2)),
        ("accuracy", {"accuracy": None, "reverse_kl": None}, (0.0, 0.0)),
        ("exact", {"exact": 0.25, "accuracy": 0.5, "reverse_kl": 0.2}, (0.25, -0.2)),
        ("avg_at_k", {"avg_at_k": 0.75, "reverse_kl": 0.2}, (0.75, -0.2)),
        ("reverse_kl", {"accuracy": 0.5, "reverse_kl": 0.2}, (-0.2, 0.5)),
        ("forward_kl_on_teacher_texts", {"accuracy": 0.5, "forward_kl_on_teacher_texts": 0.3}, (-0.3, 0.5)),
    ],
)
def test_the_primary_metric_decides_the_best(primary: str, metrics: dict[str, float | None], score: object) -> None:
    assert EvaluationSpec.model_validate({"path": "p", "primary_metric": primary}).score(metrics) == score


def test_the_best_checkpoint_is_that_of_the_primary_metric(tmp_path: Path) -> None:
    document = quick_document(evaluation=DEV | {"primary_metric": "reverse_kl"}, num_steps=3)
    events = evaluated(train_here(quick_spec(**document), tmp_path))
    values = [event.metrics["reverse_kl"] or 0.0 for event in events]
    assert [event.is_best for event in events] == [value == min(values[: at + 1]) for at, value in enumerate(values)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"primary_metric": "avg_at_k"}, "samples_per_prompt is 0 but evaluation.primary_metric is avg_at_k"),
        ({"primary_metric": "forward_kl_on_teacher_texts"}, "num_teacher_texts is 0 but evaluation.primary_metric is"),
    ],
)
def test_a_primary_metric_that_is_not_measured_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        quick_spec(evaluation=DEV | changes)


def test_exact_decides_only_where_there_are_texts_to_compare(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(resolve("builtin:tiny/data/dev.jsonl")).read_text().splitlines()[:2]]
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps({key: row[key] for key in ("prompt", "answer")}) + "\n" for row in rows))
    with pytest.raises(RunError, match=r"none of the 2 prompts of .* has a whole text to compare with") as caught:
        train_here(quick_spec(evaluation=DEV | {"path": str(path), "primary_metric": "exact"}), tmp_path / "run")
    assert caught.value.findings[0].field == "evaluation.primary_metric"
    stopping = {"kind": "evaluation", "metric": "exact"}
    with pytest.raises(RunError, match=r"^early_stopping\.metric is exact but none of the 2 prompts") as caught:
        train_here(quick_spec(evaluation=DEV | {"path": str(path)}, early_stopping=stopping), tmp_path / "stopping")
    assert [finding.field for finding in caught.value.findings] == ["early_stopping.metric"]
