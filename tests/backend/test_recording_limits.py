"""What an engine writes beyond the limits is left out, the rest is stored, and the run's history says so once."""

import pytest
from sqlalchemy import func, select

from backend.database import Database
from backend.limits import Limits
from backend.queries.history import events
from backend.queries.recording import AttemptEvents, record
from backend.records import Attempt, Metric, Rollout
from engine.events import RolloutSummary, RunEvent, StepDone, TailMeasured, TracesWritten
from engine.flops import FlopLedger
from tests.worker.runs import claim, queue_runs, short_spec
from tests.worker.sample_events import step_event

FIXED = 4  # metrics that each step has besides those of the engine: horizon, two of FLOPs, seconds.total


class Recording:
    """A claimed run whose events are recorded one after another."""

    def __init__(self, database: Database, **limits: int) -> None:
        self.database = database
        self.limits = Limits.model_validate(limits)
        (self.run_id,) = queue_runs(database, short_spec())
        self.claim = claim(database)
        self.offset = 0
        with database.read() as session:
            assert session.get(Attempt, (self.run_id, self.claim.fence)) is not None

    def add(self, *added: RunEvent) -> None:
        batch = AttemptEvents(
            run_id=self.run_id, fence=self.claim.fence, holder=self.claim.fence, events=added,
            start_offset=self.offset, end_offset=self.offset + 1, manifests={},
        )  # fmt: skip
        with self.database.write() as session:
            record(session, batch, self.limits)
        self.offset += 1

    def keys(self) -> set[str]:
        with self.database.read() as session:
            return set(session.scalars(select(Metric.key).where(Metric.run_id == self.run_id)))

    def rollouts(self) -> list[Rollout]:
        with self.database.read() as session:
            return list(session.scalars(select(Rollout).where(Rollout.run_id == self.run_id)))

    def warnings(self) -> list[dict[str, object]]:
        with self.database.read() as session:
            return [
                one.payload for one in events(session, self.run_id, after_seq=0, limit=99, kinds=("warning",)).items
            ]


def step_with(step: int, *names: str) -> StepDone:
    return step_event(step).model_copy(update={"metrics": dict.fromkeys(names, 1.0)})


def traces(num_tokens: int = 3, top_k: int = 8, prompt: str = "k", completion: str = "c") -> TracesWritten:
    rollout = RolloutSummary(
        row=0, prompt_index=0, prompt=prompt, completion=completion, num_prompt_tokens=1, num_tokens=num_tokens,
        finish_reason="eos", mean_reverse_kl=0.1, max_reverse_kl=0.2,
    )  # fmt: skip
    return TracesWritten(time=1.0, step=5, horizon=4, path="traces/x.parquet", top_k=top_k, rollouts=[rollout])


@pytest.mark.attack(26)
def test_a_metric_whose_name_is_longer_than_250_characters_is_left_out(database: Database) -> None:
    recording = Recording(database)
    recording.add(step_with(1, "é" * 250, "x" * 251, "__proto__", "../x"))
    assert recording.keys() >= {"é" * 250, "__proto__", "../x"}
    assert len(recording.keys()) == 3 + FIXED
    (warning,) = recording.warnings()
    assert warning["code"] == "limit_metric_name_characters"
    assert (
        warning["message"]
        == f"The metric {'x' * 40!r}… has a name of 251 characters and is left out: the limit is 250."
    )
    assert warning["advice"] == "Raise INCIPIT_LIMITS__METRIC_NAME_CHARACTERS of the workers, if this is meant."


def test_a_run_has_so_many_metrics_and_no_more(database: Database) -> None:
    recording = Recording(database, metric_keys=FIXED + 2)
    recording.add(step_with(1, "a"))
    recording.add(step_with(2, "b"))
    assert recording.warnings() == []
    recording.add(step_with(3, "a", "c"), step_with(4, "d"))
    recording.add(step_with(5, "e", "b"))
    tail = TailMeasured(
        time=1.0,
        step=5,
        horizon=1,
        num_rollouts=1,
        metrics={"x": 1.0},
        teacher_metrics={},
        flops=FlopLedger(),
        seconds=1.0,
    )
    recording.add(tail)
    assert {"a", "b"} <= recording.keys()
    assert len(recording.keys()) == FIXED + 2
    (warning,) = recording.warnings()
    assert (warning["value"], warning["limit"]) == (FIXED + 3, FIXED + 2)
    assert "6 different metrics; 'c' and further ones are left out: the limit is 6." in str(warning["message"])
    assert Limits().metric_keys == 2000


def test_a_metric_has_so_many_points_and_no_more(database: Database) -> None:
    recording = Recording(database, metric_points=10)
    recording.add(*(step_with(step, "a") for step in (9, 10, 11, 12)))
    with database.read() as session:
        assert session.scalar(select(func.max(Metric.step)).where(Metric.run_id == recording.run_id)) == 10
    (warning,) = recording.warnings()
    assert warning["message"] == "The metrics of step 11 and later ones are left out: the limit is 10."
    assert Limits().metric_points == 1_000_000


@pytest.mark.parametrize(
    ("limit", "within", "beyond", "message"),
    [
        ("rollout_tokens", {"num_tokens": 32_768}, {"num_tokens": 32_769}, "A rollout of step 5 has 32769 tokens"),
        ("rollout_top_k", {"top_k": 64}, {"top_k": 65}, "A trace of step 5 has 65 candidates per token"),
    ],
)
def test_rollouts_beyond_a_limit_are_left_out(
    database: Database, limit: str, within: dict[str, int], beyond: dict[str, int], message: str
) -> None:
    recording = Recording(database)
    recording.add(traces(**within))  # type: ignore[arg-type]
    assert len(recording.rollouts()) == 1
    assert recording.warnings() == []
    recording.add(traces(**beyond))  # type: ignore[arg-type]
    assert recording.rollouts() == []
    (warning,) = recording.warnings()
    assert warning["code"] == f"limit_{limit}"
    assert str(warning["message"]).startswith(f"{message} and is left out: the limit is")


def test_texts_of_rollouts_are_cut_at_64_kib_of_utf8(database: Database) -> None:
    recording = Recording(database)
    most = Limits().rollout_text_bytes
    recording.add(traces(prompt="é" * (most // 2), completion="x" * most))
    assert recording.warnings() == []
    recording.add(traces(prompt="x" + "é" * (most // 2), completion="x" * (most + 1)))
    (stored,) = recording.rollouts()
    assert stored.prompt == "x" + "é" * (most // 2 - 1)
    assert stored.completion == "x" * most
    (warning,) = recording.warnings()
    assert warning["message"] == "The prompt of a rollout of step 5 has 65537 bytes and is cut: the limit is 65536."
