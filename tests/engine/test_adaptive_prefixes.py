"""Schedules that grow by what training shows: traces by hand, and resumed runs that grow where the uninterrupted one did."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.adaptive_prefixes import DivergenceSharePrefix, PlateauPrefix, ValidationPrefix
from engine.checkpoint import load_trainer_state
from engine.events import CheckpointSaved, Evaluated, StepDone
from engine.prefix_state import Growth, PrefixSignals, PrefixState
from engine.prefixes import PrefixSchedule
from tests.engine.running import quick_document, quick_spec, train_here


def horizons(schedule: PrefixSchedule, shown: list[PrefixSignals], limit: int = 224) -> list[int]:
    """The horizon of each step and of the one behind the last, when steps show these signals."""
    state = PrefixState(max_completion_tokens=limit)
    found = [schedule.horizon_at(0, state)]
    for signals in shown:
        state = schedule.advance(state, signals)
        found.append(schedule.horizon_at(signals.step + 1, state))
    return found


def flat(losses: list[float], reached: float = 1.0) -> list[PrefixSignals]:
    """Steps whose divergence is spread evenly over ten positions."""
    return [
        PrefixSignals(step=i, horizon=10, position_loss=(loss,) * 10, position_count=(4,) * 10, reach_rate=reached)
        for i, loss in enumerate(losses)
    ]


def plateau(**changes: object) -> PlateauPrefix:
    return PlateauPrefix.model_validate(
        {"start_tokens": 10, "increment_tokens": 5, "patience_steps": 2, "min_improvement": 0.1, "smoothing": 0}
        | changes
    )


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        # Entry sets the best; two steps that are not a tenth better make it grow, and the next entry starts anew.
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [10, 10, 10, 15, 15, 15, 20]),
        ([1.0, 0.8, 0.6, 0.5, 0.4, 0.3], [10] * 7),
        ([1.0, 0.5, 0.48, 0.46, 0.46], [10, 10, 10, 10, 15, 15]),
        ([1.0, 0.95, 0.85, 0.84, 0.83], [10, 10, 10, 10, 10, 15]),
        ([0.0, 0.0, 0.0], [10, 10, 10, 15]),
        ([1.0, 3.0, 2.0], [10, 10, 10, 15]),
    ],
)
def test_a_plateau_is_patience_without_improvement(losses: list[float], expected: list[int]) -> None:
    assert horizons(plateau(), flat(losses)) == expected


def test_rollouts_that_end_before_the_horizon_close_the_gate() -> None:
    assert horizons(plateau(), flat([1.0] * 5, reached=0.4)) == [10] * 6
    assert horizons(plateau(min_reach_rate=0.4), flat([1.0] * 3, reached=0.4)) == [10, 10, 10, 15]
    # It opens later: the wait is not lost.
    late = flat([1.0] * 4, reached=0.0) + [one.model_copy(update={"step": 4}) for one in flat([1.0])]
    assert horizons(plateau(), late) == [10] * 5 + [15]


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=40), st.floats(0, 0.95), st.floats(0, 0.3), st.integers(1, 5))
def test_the_plateau_is_that_of_the_relative_moving_average(
    losses: list[float], smoothing: float, improvement: float, patience: int
) -> None:
    """Against a formula over the whole history of each stage: the average in closed form, its running minimum."""
    schedule = plateau(smoothing=smoothing, min_improvement=improvement, patience_steps=patience)
    found = horizons(schedule, flat(losses))
    entry, grown = 0, [10]
    for now in range(len(losses)):
        stage = np.array(losses[entry : now + 1]) / losses[entry]
        averages = [
            smoothing**k * stage[0] + (1 - smoothing) * sum(smoothing ** (k - j) * stage[j] for j in range(1, k + 1))
            for k in range(len(stage))
        ]
        best, since = averages[0], 0
        for k, average in enumerate(averages):
            if k and average < best * (1 - improvement) - 1e-12:
                best, since = average, k
            # Values that differ by rounding from the limit say nothing.
            elif k and abs(average - best * (1 - improvement)) < 1e-9:
                return
        is_over = len(averages) - 1 - since >= patience
        grown.append(grown[-1] + 5 if is_over else grown[-1])
        entry = now + 1 if is_over else entry
    assert found == grown


def outer(share: float, loss: float = 1.0) -> PrefixSignals:
    """A step whose divergence lies to `share` behind position 5 of 10."""
    mean = (2 * loss * (1 - share),) * 5 + (2 * loss * share,) * 5
    return PrefixSignals(step=0, horizon=10, position_loss=mean, position_count=(4,) * 10, reach_rate=1.0)


def by_share(**changes: object) -> DivergenceSharePrefix:
    values = {"start_tokens": 10, "increment_tokens": 5, "patience_steps": 2, "min_share": 0.4, "smoothing": 0}
    return DivergenceSharePrefix.model_validate(values | changes)


def numbered(shown: list[PrefixSignals]) -> list[PrefixSignals]:
    return [signals.model_copy(update={"step": step}) for step, signals in enumerate(shown)]


def test_a_large_share_in_the_outer_part_grows_after_each_patience_and_a_small_one_does_not() -> None:
    assert horizons(by_share(), numbered([outer(0.5)] * 4)) == [10, 10, 15, 15, 20]
    assert horizons(by_share(), numbered([outer(0.3)] * 4)) == [10] * 5
    assert horizons(by_share(), numbered([outer(0.3)] * 3 + [outer(0.9)])) == [10] * 4 + [15]


def test_hardly_any_divergence_left_grows_whatever_its_share() -> None:
    assert horizons(by_share(), numbered([outer(0.0, loss=0.009)] * 2)) == [10, 10, 15]
    assert horizons(by_share(), numbered([outer(0.0, loss=0.011)] * 2)) == [10] * 3


def test_the_share_is_weighed_by_the_rollouts_at_each_position() -> None:
    signals = PrefixSignals(step=0, horizon=4, position_loss=(1.0, 2.0, 3.0, 0.0), position_count=(4, 2, 1, 0))
    assert signals.loss == pytest.approx(11 / 7)
    assert signals.share_beyond(1) == pytest.approx(7 / 11)
    assert PrefixSignals(step=0, horizon=4).loss is None


def scores(values: list[float]) -> list[PrefixSignals]:
    return [PrefixSignals(step=step, score=value) for step, value in enumerate(values)]


def test_validation_that_stops_improving_grows_and_a_new_best_starts_the_wait_again() -> None:
    schedule = ValidationPrefix(start_tokens=10, increment_tokens=5, patience_evaluations=2, min_improvement=0.01)
    assert horizons(schedule, scores([0.5, 0.505, 0.5, 0.5, 0.5])) == [10, 10, 10, 15, 15, 20]
    assert horizons(schedule, scores([0.5, 0.5, 0.6, 0.6, 0.6])) == [10, 10, 10, 10, 10, 15]
    assert horizons(schedule, scores([0.1, 0.2, 0.3, 0.4])) == [10] * 5


@pytest.mark.parametrize("schedule", [plateau(), by_share(), ValidationPrefix()], ids=lambda one: one.kind)
def test_no_growth_passes_the_cap(schedule: PrefixSchedule) -> None:
    capped = schedule.model_copy(update={"start_tokens": 10, "increment_tokens": 5, "cap_tokens": 18})
    shown = [
        signals
        for i in range(40)
        for signals in (outer(0.5).model_copy(update={"step": i}), PrefixSignals(step=i, score=0.5))
    ]
    state = PrefixState(max_completion_tokens=224)
    for signals in shown:
        state = capped.advance(state, signals)
    assert capped.horizon_at(40, state) == 18
    assert state.growths[-1].tokens == 18
    assert len(state.growths) == 2


def test_signals_of_a_step_look_no_farther_than_the_horizon_and_count_what_reaches_it() -> None:
    signals = PrefixSignals.of_step(
        7, 4, ends=[None, 3, 4, 9], position_loss=[1.0, 2, 3, 4, 5, 6], position_count=[4, 4, 4, 3, 2, 1]
    )
    assert (signals.position_loss, signals.position_count) == ((1, 2, 3, 4), (4, 4, 4, 3))
    # The anchored rollout that ended behind the horizon had reached it; the two that ended inside needed no more.
    assert signals.reach_rate == 0.5


ADAPTIVE = {
    "plateau": {"kind": "plateau", "patience_steps": 1, "min_improvement": 0.5},
    "divergence_share": {"kind": "divergence_share", "patience_steps": 2, "inner_fraction": 0.1},
    "validation": {"kind": "validation", "patience_evaluations": 1, "min_improvement": 0.5},
}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("kind", ADAPTIVE)
def test_a_resumed_run_grows_where_the_uninterrupted_one_did(kind: str, tmp_path: Path) -> None:
    evaluation = quick_document()["evaluation"]
    assert isinstance(evaluation, dict)
    spec = quick_spec(
        prefix=ADAPTIVE[kind] | {"start_tokens": 2, "increment_tokens": 3, "cap_tokens": 9},
        num_steps=8,
        evaluation=evaluation | {"every_steps": 2},
        checkpoints={"every_steps": 1, "keep_last": 9},
        anchoring={"kind": "fraction", "share": 0.1},
    )
    events = train_here(spec, tmp_path / "run")
    whole = [event for event in events if isinstance(event, StepDone)]
    grown = [event.horizon for event in whole]
    assert grown[0] == 2
    assert grown == sorted(grown)
    assert max(grown) > 5, "it grows twice at least"
    for start in (3, 4, 5):
        folder = tmp_path / f"run/attempts/1/checkpoints/step-{start}"
        attempt = start + 10
        again = train_here(spec, tmp_path / "run", attempt=attempt, resume=folder)
        resumed = [event for event in again if isinstance(event, StepDone)]
        assert [event.horizon for event in resumed] == grown[start:]
        assert [event.metrics["loss"] for event in resumed] == [event.metrics["loss"] for event in whole[start:]]
        last = [event for event in again if isinstance(event, CheckpointSaved)][-1]
        ends = [tmp_path / f"run/attempts/{n}/{last.path}" for n in (1, attempt)]
        assert load_trainer_state(ends[0]).prefix == load_trainer_state(ends[1]).prefix
    evaluations = [event for event in events if isinstance(event, Evaluated) and event.subject == "student"]
    # Inside and beyond refer to the horizon that the student was trained at, whatever came after.
    assert [event.horizon for event in evaluations if event.split == "dev"] == grown[1::2]
    assert {event.metrics["mean_tokens"] for event in evaluations} == {24}


@pytest.mark.usefixtures("home")
def test_validation_length_never_depends_on_the_horizon(tmp_path: Path) -> None:
    counts = set()
    prefixes = [
        {"kind": "constant", "tokens": 1},
        {"kind": "full"},
        {"kind": "stages", "stages": [{"steps": 1, "tokens": 2}]},
    ]
    for number, prefix in enumerate(prefixes):
        events = train_here(quick_spec(prefix=prefix, num_steps=2), tmp_path / f"run-{number}")
        base = next(e for e in events if isinstance(e, Evaluated) and e.subject == "base")
        last = [e for e in events if isinstance(e, Evaluated)][-1]
        counts.add((base.metrics["mean_tokens"], last.metrics["mean_tokens"], len(last.position_reverse_kl)))
    assert counts == {(24.0, 24.0, 24)}


def test_growths_are_kept_as_plain_json() -> None:
    state = PrefixState(max_completion_tokens=9, growths=(Growth(step=3, tokens=5),), smoothed={"loss": 0.1})
    assert json.loads(state.model_dump_json())["growths"] == [{"step": 3, "tokens": 5}]
