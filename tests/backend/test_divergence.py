"""What the traced rollouts of a run say together, asked of the API on both databases."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.database import Database
from backend.queries.step_profiles import write_profile
from engine.events import TracesWritten
from engine.trace_profile import BinValues, TokenType, TraceProfile

LENGTH = 130  # three positions to a cell of the map
STEPS = (0, 20, 40)


def _profile(scale: float, num_rollouts: int = 8, reach: int = 100) -> TraceProfile:
    """Rollouts of which half end at position 50: nats fall from `scale` by 1 / (position + 1)."""
    positions = range(reach)
    counts = [num_rollouts if at < 50 else num_rollouts // 2 for at in positions]
    mean = [scale / (at + 1) for at in positions]
    low, high = [value / 2 for value in mean], [2 * value for value in mean]
    nats = BinValues(mean=mean, p10=low, p50=mean, p90=high)
    share = BinValues(mean=[0.9] * reach, p10=[0.8] * reach, p50=[0.9] * reach, p90=[1.0] * reach)
    kinds = [
        TokenType(token_id=7, text="=\x00SUM", count=4, reverse_kl=scale),
        TokenType(token_id=8, text="<b>", count=2, reverse_kl=0.5),
    ]
    values = {"reverse_kl": nats, "forward_kl": nats, "jsd": nats, "student_entropy": nats, "teacher_entropy": nats}
    return TraceProfile(
        length=LENGTH, num_rollouts=num_rollouts, num_tokens=sum(counts), reverse_kl=2 * scale, rollouts=counts,
        tokens=counts, values={**values, "overlap_mass": share}, token_types=kinds,
    )  # fmt: skip


def _record(database: Database, run_id: str, step: int, profile: TraceProfile) -> None:
    subject = "student" if step else "base"
    event = TracesWritten(time=1.0, step=step, subject=subject, horizon=8 + step, path="t", top_k=8, rollouts=[])
    with database.write() as session:
        write_profile(session, run_id, 1, event, profile)


@pytest.fixture
def traced(database: Database, run_id: str) -> str:
    """Id of a run with traces at STEPS, each with half the divergence of the one before."""
    for at, step in enumerate(STEPS):
        _record(database, run_id, step, _profile(2.0**-at))
    return run_id


def _ask(client: TestClient, run_id: str, what: str, **query: object) -> Any:
    answer = client.get(f"/api/v1/runs/{run_id}/{what}", params=query)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_map_has_means_and_rollouts_by_position_and_step(client: TestClient, traced: str) -> None:
    grid = _ask(client, traced, "divergence/grid")
    assert (grid["bin_tokens"], grid["num_steps"], grid["num_steps_read"]) == (3, 3, 3)
    assert grid["starts"][:3] == [0, 3, 6]
    assert [(row["first_step"], row["last_step"], row["horizon"]) for row in grid["rows"]] == [
        (0, 0, 8), (20, 20, 28), (40, 40, 48),
    ]  # fmt: skip
    assert grid["rows"][1]["mean"][0] == pytest.approx((1 + 1 / 2 + 1 / 3) * 0.5 / 3, rel=1e-5)
    assert (grid["rows"][0]["n"][0], grid["rows"][0]["n"][-1]) == (8, 4)
    shared = _ask(client, traced, "divergence/grid", metric="overlap_mass")
    assert shared["rows"][0]["mean"][5] == pytest.approx(0.9)


def test_a_coarser_map_weighs_each_token_alike(client: TestClient, traced: str) -> None:
    grid = _ask(client, traced, "divergence/grid", position_bins=2, step_bins=2)
    assert len(grid["starts"]) == 2
    assert [(row["first_step"], row["last_step"]) for row in grid["rows"]] == [(0, 20), (40, 40)]
    counts = [8 if at < 50 else 4 for at in range(51)]
    weighted = sum(count / (at + 1) for at, count in enumerate(counts)) / sum(counts)
    assert grid["rows"][1]["mean"][0] == pytest.approx(0.25 * weighted, rel=1e-4)
    assert grid["rows"][0]["n"] == [16, 8]


def test_a_step_that_reaches_less_far_has_no_cells_there(client: TestClient, database: Database, traced: str) -> None:
    _record(database, traced, 60, _profile(1.0, reach=10))
    row = _ask(client, traced, "divergence/grid")["rows"][-1]
    assert row["mean"][4:6] == [None, None]
    assert row["n"][4:6] == [0, 0]


def test_quantiles_by_position_are_those_of_the_step(client: TestClient, traced: str) -> None:
    newest = _ask(client, traced, "divergence/positions")
    assert (newest["step"], newest["steps"], newest["subject"], newest["horizon"]) == (40, [0, 20, 40], "student", 48)
    first = _ask(client, traced, "divergence/positions", step=0)
    assert [first[name][1] for name in ("mean", "p10", "p50", "p90", "n")] == [0.5, 0.25, 0.5, 1.0, 8]
    assert (first["bin_tokens"], first["starts"][:3], len(first["mean"])) == (1, [0, 1, 2], 100)


def test_a_step_without_traces_is_refused_with_those_that_there_are(client: TestClient, traced: str) -> None:
    for what in ("divergence/positions", "divergence/tokens", "prefix-aid"):
        answer = client.get(f"/api/v1/runs/{traced}/{what}", params={"step": 7})
        assert answer.status_code == 404
        assert "at step 7; it has them at 0, 20, 40." in answer.json()["detail"]


def test_token_types_are_summed_over_the_steps(client: TestClient, traced: str) -> None:
    found = _ask(client, traced, "divergence/tokens")
    assert [(one["token_id"], one["text"], one["count"]) for one in found["items"]] == [(7, "=␀SUM", 12), (8, "<b>", 6)]
    assert found["items"][0]["mean"] == pytest.approx(1.75 / 12)
    assert found["items"][0]["share"] == pytest.approx(1.75 / 3.5)
    assert found["num_tokens"] == 3 * 600
    one = _ask(client, traced, "divergence/tokens", step=40, limit=1)
    assert [(item["token_id"], item["count"]) for item in one["items"]] == [(8, 2)]


def test_the_prefix_aid_says_where_the_divergence_lies(client: TestClient, traced: str) -> None:
    aid = _ask(client, traced, "prefix-aid")
    assert [curve["step"] for curve in aid["curves"]] == [0, 40]
    first = aid["curves"][0]
    sums = [(8 if at < 50 else 4) / (at + 1) for at in range(100)]
    shares = [sum(sums[: at + 1]) / sum(sums) for at in range(100)]
    assert first["cumulative_share"] == pytest.approx(shares)
    half, most = (1 + next(at for at, share in enumerate(shares) if share >= wanted) for wanted in (0.5, 0.9))
    said = aid["sentences"][0]
    assert said.startswith("At step 0 a rollout holds 0.25 nats of reverse KL on average: half of it lies in the first")
    assert f"in the first {half} tokens and 90 % lies in the first {most} tokens of 130" in said
    assert aid["weak_from"] == 2  # windows of six: 1 + … + 1/6 falls under its half behind 1/2 + … + 1/7
    assert f"The prefix of 48 tokens holds {100 * shares[47]:.0f} %" in aid["sentences"][-1]
    assert len(_ask(client, traced, "prefix-aid", step=0)["curves"]) == 1


def test_a_run_without_traces_has_empty_answers(client: TestClient, run_id: str) -> None:
    assert _ask(client, run_id, "divergence/grid")["rows"] == []
    assert _ask(client, run_id, "divergence/positions")["step"] is None
    assert _ask(client, run_id, "divergence/tokens")["items"] == []
    assert _ask(client, run_id, "prefix-aid")["curves"] == []
    assert client.get("/api/v1/runs/nothing/prefix-aid").status_code == 404


@pytest.mark.parametrize(
    ("query", "field"),
    [({"position_bins": 65}, "position_bins"), ({"step_bins": 61}, "step_bins"), ({"metric": "loss"}, "metric")],
)
def test_more_cells_than_a_browser_draws_are_refused(
    client: TestClient, traced: str, query: dict[str, object], field: str
) -> None:
    answer = client.get(f"/api/v1/runs/{traced}/divergence/grid", params=query)  # type: ignore[arg-type]
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
    assert _ask(client, traced, "divergence/grid", position_bins=64, step_bins=60)["rows"]


def test_of_very_many_steps_some_are_read_and_it_is_said(client: TestClient, database: Database, run_id: str) -> None:
    for step in range(241):
        _record(database, run_id, step, _profile(1.0, reach=2))
    grid = _ask(client, run_id, "divergence/grid")
    assert (grid["num_steps"], grid["num_steps_read"]) == (241, 121)
    assert len(grid["rows"]) <= 60
    assert grid["rows"][-1]["last_step"] == 240
