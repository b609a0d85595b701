"""A chart of a long run has few points, and among them all that a person looks for."""

from typing import Any

from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, insert, select

from backend import migrate
from backend.database import Database
from backend.queries.metrics import MAX_POINTS, STRIDE, Point, highlights, stored_keys, thinned
from backend.records import Metric, MetricHighlight
from tests.backend.test_recording_limits import Recording
from tests.worker.sample_events import start_events, step_event

values = st.one_of(st.none(), st.floats(-1e6, 1e6))


@given(st.lists(st.tuples(st.integers(1, 50), values), min_size=1, max_size=400), st.sampled_from([10, 20, 100]))
def test_thinning_keeps_ends_extremes_and_gaps_and_invents_nothing(
    steps: list[tuple[int, float | None]], most: int
) -> None:
    points, step = [], 0
    for gap, value in steps:
        step += gap
        points.append(Point(step, value))
    kept = thinned(points, most)
    assert len(kept) <= max(most, len(points) if len(points) <= most else 0)
    assert set(kept) <= set(points)
    assert list(kept) == sorted(kept, key=lambda point: point.step)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    known = [point.value for point in points if point.value is not None]
    shown = [point.value for point in kept if point.value is not None]
    assert (min(known, default=None), max(known, default=None)) == (min(shown, default=None), max(shown, default=None))
    assert any(point.value is None for point in kept) == any(point.value is None for point in points)
    if len(points) > most:
        width = -(-(points[-1].step - points[0].step + 1) // (most // 5))
        ranges = {(point.step - points[0].step) // width for point in points}
        assert {(point.step - points[0].step) // width for point in kept} == ranges, "no range is empty that was not"
    assert set(highlights(kept)) >= {kept[0], kept[-1]}


class LongRun(Recording):
    """A run of 6 strides whose loss has a spike, a dip and a missing value."""

    num_steps = 6 * STRIDE + 100
    odd: dict[int, float | None] = {700: 50.0, 3000: -50.0, 5000: None}

    def steps(self, first: int, last: int) -> None:
        """Have these steps: those that end a stride are recorded as an engine's events are, the others are only rows."""
        begin = first
        for end in [*(step for step in range(first, last) if step % STRIDE == 0), last]:
            rows = [{"run_id": self.run_id, "key": "loss", "step": step, "value": self.loss(step), "fence": 1}
                    for step in range(begin, end)]  # fmt: skip
            with self.database.write() as session:
                session.execute(insert(Metric), rows)
            self.add(step_event(end).model_copy(update={"metrics": {"loss": self.loss(end)}}))
            begin = end + 1

    def loss(self, step: int) -> float | None:
        """What the loss is at a step."""
        return self.odd.get(step, 1 + 1 / step)


def _loss(client: TestClient, run_id: str, **query: int) -> dict[str, Any]:
    (loss,) = client.get(f"/api/v1/runs/{run_id}/metrics", params={"keys": "loss", **query}).json()
    return dict(zip(loss["steps"], loss["values"], strict=True))


def test_a_long_run_shows_its_spikes_whatever_is_read(client: TestClient, database: Database) -> None:
    run = LongRun(database)
    run.steps(1, run.num_steps)
    with database.read() as session:
        copied = session.scalar(select(func.max(MetricHighlight.step)))
        num_copied = session.scalar(select(func.count()).where(MetricHighlight.key == "loss"))
        assert stored_keys(session, run.run_id) == sorted(run.keys())
    assert (copied, num_copied) == (6 * STRIDE - 1, 6 * 2 + 3)
    shown = _loss(client, run.run_id)
    assert len(shown) <= MAX_POINTS
    assert {step: shown[step] for step in run.odd} == run.odd
    assert {1, run.num_steps} <= shown.keys()
    newest = _loss(client, run.run_id, after_step=run.num_steps - 1500)
    assert list(newest) == list(range(run.num_steps - 1499, run.num_steps + 1)), "few points are shown one by one"


def test_an_attempt_that_goes_back_replaces_what_was_copied(client: TestClient, database: Database) -> None:
    run = LongRun(database)
    run.steps(1, run.num_steps)
    run.add(*start_events(run.claim.fence, resumed_from_step=2 * STRIDE + 10))
    assert max(_loss(client, run.run_id)) == 2 * STRIDE + 10
    run.odd = {3500: 99.0}
    run.steps(2 * STRIDE + 11, run.num_steps)
    shown = _loss(client, run.run_id)
    assert shown[3500] == 99.0
    assert shown[700] == 50.0
    assert 3000 not in shown or shown[3000] == 1 + 1 / 3000
    assert {1, run.num_steps} <= shown.keys()


def test_runs_of_earlier_versions_are_copied_by_the_migration(
    client: TestClient, database: Database, database_url: str
) -> None:
    run = LongRun(database)
    run.steps(1, run.num_steps)
    expected = _loss(client, run.run_id)
    migrate.downgrade(database_url, "-1")
    migrate.upgrade(database_url)
    assert _loss(client, run.run_id) == expected


def test_a_run_without_metrics_has_no_chart(client: TestClient, run_id: str) -> None:
    assert client.get(f"/api/v1/runs/{run_id}/metrics").json() == []
    assert client.get(f"/api/v1/runs/{run_id}/metrics", params={"keys": "loss"}).json() == []
