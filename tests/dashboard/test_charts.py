"""Frames and charts: the figures that reach a chart are those of the API."""

from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from backend.comparison import compare
from backend.estimates import Estimate
from backend.schemas import Metric, Positions
from backend.unique_labels import run_labels
from dashboard import charts, estimate_card, frames, tail_panel
from dashboard.comparison_frames import (
    arms_frame,
    arms_table,
    config_differences,
    curve_points,
    parallel_frame,
    pareto_front,
    reference_lines,
    seed_curves,
    seeds_table,
    share_problems,
)
from dashboard.measures import MEASURES, Measure, measured, telling
from dashboard.token_lens.payload import METRICS, lens_payload
from engine.flops import FlopLedger

IDS = ("r-full", "r-p8", "r-p16", "r-mix8")


@pytest.fixture
def pairs(records: ModuleType) -> list[tuple[object, object]]:
    return [(records.run(one), records.evaluations(one)) for one in IDS]


def test_a_metric_without_value_at_a_step_has_no_point() -> None:
    frame = frames.metric_frame(Metric(key="loss", steps=[1, 2, 3], values=[0.5, None, 0.25]))
    assert frame["step"].tolist() == [1, 3]
    assert frame["value"].tolist() == [0.5, 0.25]


def test_a_metric_without_any_value_still_makes_a_chart() -> None:
    frame = frames.metric_frame(Metric(key="loss", steps=[], values=[]))
    assert charts.metric_line(frame, "loss").to_dict()


def test_the_tail_stands_beside_the_teachers_own_figure() -> None:
    known = {
        "sentinel_eos_rate": Metric(key="sentinel_eos_rate", steps=[0, 10], values=[0.9, 0.2]),
        "sentinel_teacher_eos_rate": Metric(key="sentinel_teacher_eos_rate", steps=[0, 10], values=[1.0, 1.0]),
        "loss": Metric(key="loss", steps=[1], values=[0.5]),
    }
    teacher = tail_panel.teacher_frame("eos_rate", known)
    assert teacher.to_dict("records") == [{"label": "teacher", "value": 1.0}]
    assert tail_panel.teacher_frame("reverse_kl_beyond", known).empty
    table = tail_panel.tail_table(list(known.values()))
    assert table.to_dict("records") == [
        {"step": 0, "eos_rate": 0.9, "teacher_eos_rate": 1.0},
        {"step": 10, "eos_rate": 0.2, "teacher_eos_rate": 1.0},
    ]
    drawn = charts.tail_line(frames.metric_frame(known["sentinel_eos_rate"]), teacher).to_dict()
    values = [row.get("value") for rows in drawn["datasets"].values() for row in rows]
    assert sorted(values) == [0.2, 0.9, 1.0]
    alone = charts.tail_line(frames.metric_frame(known["sentinel_eos_rate"]), teacher.iloc[:0]).to_dict()
    assert len(alone["layer"]) == len(drawn["layer"]) - 1


def test_positions_count_from_one_and_long_ones_are_averaged(records: ModuleType) -> None:
    curve = records.positions("r-p8")[0]
    frame = frames.positions_frame(curve, "base")
    assert frame["position"].iloc[0] == 1
    assert frame["mean"].tolist() == curve.mean
    long = curve.model_copy(
        update={"mean": [1.0, 3.0] * 1024, "p90": [2.0] * 2048, "teacher_entropy": [], "count": [4] * 2048}
    )
    binned = frames.positions_frame(long, "base")
    assert len(binned) == 512
    assert binned["mean"].tolist() == [2.0] * 512
    assert binned["position"].tolist()[:3] == [1, 5, 9]


def test_the_accuracy_chart_has_every_dev_evaluation_of_the_students(pairs: list[tuple[object, object]]) -> None:
    points = curve_points(pairs)  # type: ignore[arg-type]
    assert set(points["arm"]) == {"full, 240 steps", "prefix 8", "prefix 16", "prefix 8, anchored"}
    assert len(points[points["arm"] == "prefix 8"]) == 6
    assert points.groupby("run")["is_best"].sum().max() == 1
    lines = reference_lines(pairs)  # type: ignore[arg-type]
    assert dict(zip(lines["label"], lines["value"], strict=True)) == {"base student": 0.43, "teacher": 1.0}
    drawn = charts.measure_chart(
        points, seed_curves(points), pareto_front(points, "training_flops"), lines, "training_flops", MEASURES[0]
    ).to_dict()
    scales = [
        layer["encoding"]["x"].get("scale", {}).get("type")
        for layer in drawn["layer"]
        if "x" in layer.get("encoding", {})
    ]
    assert "log" in scales


def test_runs_on_other_problems_share_no_line_and_other_settings_are_no_seeds(pairs: list[tuple[Any, Any]]) -> None:
    (run, evaluations), *_ = pairs
    harder = run.spec.evaluation.model_copy(update={"path": "harder.jsonl"})
    other = run.model_copy(update={"id": "r-other1", "spec": run.spec.model_copy(update={"evaluation": harder})})
    mixed = [(run, evaluations), (other, evaluations)]
    assert share_problems(pairs)
    assert not share_problems(mixed)
    assert reference_lines(mixed).empty
    points = curve_points(mixed)
    assert points["arm"].nunique() == 2
    assert seed_curves(points).empty


def test_the_table_says_what_the_comparison_found(pairs: list[tuple[object, object]]) -> None:
    comparison = compare(pairs, 0.95)  # type: ignore[arg-type]
    table = arms_table(comparison).set_index("arm")
    assert table.loc["full, 240 steps", "saving"] == 1.0
    assert table.loc["prefix 8", "saving"] == pytest.approx(31, abs=0.5)
    assert table.loc["prefix 8", "training, GFLOP"] == pytest.approx(50.2)
    assert pd.isna(table.loc["prefix 16", "GFLOP to reach 0.95"])
    raw = arms_frame(comparison).set_index("name")
    assert raw.loc["prefix 8", "accuracy"] == 0.973
    assert raw.loc["prefix 8", "teacher"] == pytest.approx(50.2e9 * 0.42)


def test_two_runs_of_one_name_stay_two_in_every_frame(records: ModuleType) -> None:
    pairs = [(records.run(one), records.evaluations(one)) for one in ("r-p8", "r-twin", "r-p16")]
    comparison, both = compare(pairs, 0.95), {"prefix 8 (r-p8)", "prefix 8 (r-twin)", "prefix 16"}
    assert set(curve_points(pairs)["run"]) == both
    parallel = parallel_frame(pairs, comparison)
    assert set(parallel["run"]) == both
    assert not parallel.duplicated(["run", "axis"]).any()
    assert set(arms_table(comparison)["arm"]) == both
    assert set(config_differences([run for run, _ in pairs]).columns) == {"field", *both}


def test_a_run_called_like_a_column_or_a_line_beside_it_does_not_take_its_place(records: ModuleType) -> None:
    runs = [records.run("r-p8").model_copy(update={"name": "field"}), records.run("r-mix8")]
    assert config_differences(runs)["field"].tolist() == ["anchoring.kind", "anchoring.n"]
    assert run_labels(runs, taken=["field"]) == {"r-p8": "field (r-p8)", "r-mix8": "prefix 8, anchored"}


def test_only_fields_that_differ_are_listed(records: ModuleType) -> None:
    runs = [records.run("r-p8"), records.run("r-mix8")]
    table = config_differences(runs)
    assert table["field"].tolist() == ["anchoring.kind", "anchoring.n"]
    assert config_differences(runs[:1]).empty


def test_the_lens_gets_every_token_and_shared_limits(traces: ModuleType) -> None:
    rollout = traces.rollout("r-p8", 120, 1)
    payload = lens_payload(rollout, "reverse_kl", 3)
    assert payload["texts"] == rollout.trace.texts
    assert set(payload["limits"]) == set(METRICS)
    assert payload["limits"]["reverse_kl"] == rollout.run_p99_reverse_kl
    assert lens_payload(rollout, "reverse_kl", 99)["token"] is None


def test_the_log_leaves_out_what_is_drawn_elsewhere(records: ModuleType) -> None:
    from backend.schemas import StoredEvent

    told = [
        StoredEvent(seq=at, time=records.NOW, kind=kind, attempt=1, payload=payload)
        for at, (kind, payload) in enumerate(
            [("step", {"step": 1}), ("warning", {"message": "look"}), ("phase", {"phase": "training"})]
        )
    ]
    assert [(kind, words) for _, kind, words in frames.log_lines(told)] == [
        ("phase", "phase training"),
        ("warning", "look"),
    ]


def test_rollouts_and_traces_have_one_row_each(traces: ModuleType) -> None:
    rollout = traces.rollout("r-p8", 120, 1)
    frame = frames.trace_frame(rollout)
    assert len(frame) == 16
    assert frame["trained"].tolist() == [True] * 8 + [False] * 8
    window = frames.trace_frame(rollout.model_copy(update={"trained_start": 3}))
    assert window["trained"].tolist() == [False] * 3 + [True] * 5 + [False] * 8
    assert isinstance(frames.rollouts_frame([rollout]), pd.DataFrame)


def test_positions_that_no_rollout_supervises_are_left_out() -> None:
    window = Positions(
        step=1,
        source="training",
        split="train",
        horizon=4,
        mean=[0, 0, 0.5, 0.3],
        p90=[],
        teacher_entropy=[],
        count=[0, 0, 2, 1],
    )
    frame = frames.positions_frame(window, "training")
    assert frame["position"].tolist() == [3, 4]
    assert frame["mean"].tolist() == [0.5, 0.3]


def test_the_horizons_of_an_adaptive_prefix_are_a_band() -> None:
    known = an_estimate(horizons=[4, 8, 12], longest_horizons=[])
    adaptive = an_estimate(horizons=[4, 4, 4], longest_horizons=[4, 8, 12])
    assert estimate_card.horizon_frame(known)["longest"].tolist() == [4, 8, 12]
    frame = estimate_card.horizon_frame(adaptive)
    assert (frame["horizon"].tolist(), frame["longest"].tolist()) == ([4, 4, 4], [4, 8, 12])
    chart = charts.horizon_chart(frame).to_dict()
    assert [layer["mark"]["type"] for layer in chart["layer"]] == ["area", "line"]


def an_estimate(**changes: Any) -> Estimate:
    return Estimate(
        flops=FlopLedger(rollout=1), full_length_flops=FlopLedger(rollout=2), saving=2, memory_bytes={}, memory_total_bytes=0,
        seconds=None, horizon_steps=[0, 1, 2], assumptions=[], **changes,
    )  # fmt: skip


def _points(*rows: tuple[str, str, int, float, float]) -> pd.DataFrame:
    columns = ["arm", "run", "step", "training_flops", "value"]
    return pd.DataFrame(rows, columns=columns).assign(
        training_seconds=1.0, trained_tokens=1.0, sampled_tokens=1.0, is_best=False
    )


def test_the_front_holds_what_nothing_measured_beats() -> None:
    points = _points(
        ("a", "a", 1, 10.0, 0.5), ("a", "a", 2, 20.0, 0.4), ("b", "b", 1, 10.0, 0.6), ("b", "b", 2, 30.0, 0.9),
        ("c", "c", 1, 40.0, 0.9),
    )  # fmt: skip
    front = pareto_front(points, "training_flops")
    assert front[["training_flops", "value"]].to_numpy().tolist() == [[10.0, 0.6], [30.0, 0.9]]
    falling = pareto_front(points, "training_flops", falls=True)
    assert falling[["training_flops", "value"]].to_numpy().tolist() == [[10.0, 0.5], [20.0, 0.4]]


def test_only_arms_with_several_seeds_have_a_band() -> None:
    points = _points(
        ("a", "a0", 5, 10.0, 0.8), ("a", "a1", 5, 12.0, 0.9), ("a", "a2", 5, 14.0, 1.0), ("b", "b0", 5, 10.0, 0.5)
    )
    (band,) = seed_curves(points).to_dict("records")
    assert (band["arm"], band["step"], band["seeds"]) == ("a", 5, 3)
    assert band["training_flops"] == pytest.approx(12.0)
    assert (band["low"], band["high"]) == pytest.approx((0.652, 1.0), abs=1e-3)
    assert seed_curves(points[points["arm"] == "b"]).empty
    (nats,) = seed_curves(points.assign(value=points["value"] * 10), is_share=False).to_dict("records")
    assert nats["high"] == pytest.approx(11.48, abs=0.01), "nats have no upper end"


def test_one_seed_is_stated_without_interval(pairs: Any) -> None:
    table = seeds_table(compare(pairs, 0.95, 1e11))
    assert set(table["seeds"]) == {1}
    assert not table["accuracy"].str.contains("[", regex=False).any()
    assert (table["less compute than the baseline"] == "baseline").sum() == 1


def test_parallel_axes_are_what_differs_and_what_came_of_it(pairs: Any) -> None:
    frame = parallel_frame(pairs, compare(pairs, 0.95))
    axes = list(dict.fromkeys(frame["axis"]))
    assert axes[-2:] == ["training FLOPs", "accuracy"]
    assert "prefix.kind" in axes
    assert frame["at"].between(0.0, 1.0).all()
    cheapest = frame[frame["axis"] == "training FLOPs"].sort_values("at")["run"].iloc[0]
    done = [run for run, _ in pairs if run.state == "succeeded"]
    assert cheapest == min(done, key=lambda run: run.flops.training).name
    assert charts.parallel_chart(frame).to_dict()


@pytest.mark.parametrize("measure", MEASURES, ids=lambda one: one.key)
def test_every_measure_is_drawn_with_its_own_name_and_scale(
    pairs: list[tuple[object, object]], measure: Measure
) -> None:
    points = curve_points(pairs, "accuracy")  # type: ignore[arg-type]
    none = points.iloc[:0]
    spec = charts.measure_chart(points, seed_curves(points), none, reference_lines(pairs, "nothing"), "step", measure)  # type: ignore[arg-type]
    y = spec.to_dict()["layer"][-1]["encoding"]["y"]
    assert y["title"] == measure.name
    assert (y["scale"].get("domain") == [0, 1]) == measure.is_share


def test_the_first_measure_is_one_that_tells(pairs: Any) -> None:
    assert [one.key for one in measured(pairs)][:1] == ["accuracy"]
    assert "reverse_kl" in {one.key for one in measured(pairs)}
    assert telling(pairs, measured(pairs)) == 0
    unsolved = [
        (
            run,
            [
                one.model_copy(update={"metrics": one.metrics | {"accuracy": 0.0}}) if one.subject == "teacher" else one
                for one in evaluations
            ],
        )
        for run, evaluations in pairs
    ]
    found = measured(unsolved)
    assert found[telling(unsolved, found)].falls, "a teacher that solves nothing is followed by divergence"


@pytest.mark.parametrize("cost", ["trained_tokens", "sampled_tokens"])
def test_tokens_are_a_cost_like_any_other(pairs: list[tuple[object, object]], cost: Any) -> None:
    points = curve_points(pairs)  # type: ignore[arg-type]
    spec = charts.measure_chart(
        points, seed_curves(points), pareto_front(points, cost), reference_lines(pairs), cost, MEASURES[0]
    ).to_dict()  # type: ignore[arg-type]
    x = spec["layer"][1]["encoding"]["x"]
    assert (x["field"], x["scale"]["type"]) == (cost, "log")
    points.loc[points.index[0], cost] = None  # an evaluation from before tokens were counted
    assert points.index[0] not in pareto_front(points, cost).index
