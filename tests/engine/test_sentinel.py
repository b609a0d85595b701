"""The sentinel as pure functions: when a tail drifts, what is done then, and which horizon a step has."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.findings import findings_of
from engine.health import Alarm
from engine.sentinel import SentinelState, after_measurement
from engine.sentinel_spec import WatchTail
from engine.spec import RunSpec
from tests.engine.models import tiny_document, tiny_spec

WELL = {
    "mean_tokens": 100.0, "eos_rate": 0.8, "repetition": 0.1, "reverse_kl_beyond": 0.2, "stop_probability": 0.9,
}  # fmt: skip
TEACHER = SentinelState(teacher={"mean_tokens": 90.0, "eos_rate": 1.0, "repetition": 0.05, "stop_probability": 0.95})


def watch(**changes: object) -> WatchTail:
    return WatchTail.model_validate(changes)


def measured(
    spec: WatchTail, state: SentinelState, step: int, *, horizon: int = 8, **values: float | None
) -> tuple[SentinelState, list[Alarm]]:
    return after_measurement(spec, state, step, WELL | values, horizon=horizon, full=100)


def untrained(spec: WatchTail) -> SentinelState:
    state, alarms = measured(spec, TEACHER, 0)
    assert alarms == []
    return state


def codes(alarms: list[Alarm]) -> list[str]:
    return [alarm.code for alarm in alarms]


@pytest.mark.parametrize(
    ("name", "limit", "side", "code"),
    [
        ("reverse_kl_beyond", 3 * 0.2, "above", "sentinel_tail_kl"),
        ("eos_rate", 0.5 * 0.8, "below", "sentinel_eos_rate"),
        ("stop_probability", 0.5 * 0.9, "below", "sentinel_stop_probability"),
        ("mean_tokens", 0.5 * 90, "below", "sentinel_length"),
        ("repetition", 0.1 + 0.2, "above", "sentinel_repetition"),
    ],
)
def test_a_tail_drifts_at_its_limit_and_not_before(name: str, limit: float, side: str, code: str) -> None:
    spec = watch()
    inside, beyond = (0.999, 1.001) if side == "above" else (1.001, 0.999)
    assert measured(spec, untrained(spec), 10, **{name: limit * inside})[1] == []
    (alarm,) = measured(spec, untrained(spec), 10, **{name: limit * beyond})[1]
    assert (alarm.code, alarm.limit) == (code, pytest.approx(limit))
    assert "Step 10" in alarm.message
    assert alarm.advice


def test_a_tail_is_compared_with_its_best_so_far() -> None:
    spec = watch()
    better, _ = measured(spec, untrained(spec), 10, reverse_kl_beyond=0.05, eos_rate=1.0)
    assert measured(spec, better, 20, reverse_kl_beyond=0.14)[1] == []
    assert codes(measured(spec, better, 20, reverse_kl_beyond=0.16)[1]) == ["sentinel_tail_kl"]
    assert codes(measured(spec, better, 20, reverse_kl_beyond=0.05, eos_rate=0.49)[1]) == ["sentinel_eos_rate"]


def test_a_small_divergence_is_no_drift() -> None:
    spec = watch()
    state, _ = measured(spec, untrained(spec), 10, reverse_kl_beyond=0.001)
    assert measured(spec, state, 20, reverse_kl_beyond=0.099)[1] == []


def test_a_student_that_could_never_end_does_not_drift() -> None:
    spec = watch()
    state, _ = measured(spec, TEACHER, 0, eos_rate=0.0)
    assert measured(spec, state, 10, eos_rate=0.0)[1] == []


def test_what_cannot_be_measured_does_not_drift() -> None:
    """Nothing behind the horizon; no text of the teacher that ends."""
    spec = watch(action={"kind": "stop"})
    state, alarms = measured(spec, untrained(spec), 10, reverse_kl_beyond=None, stop_probability=None)
    assert alarms == []
    assert not state.is_stopped


@given(st.fixed_dictionaries({name: st.floats(1e-3, 1.0) for name in WELL}), st.integers(1, 5))
def test_a_steady_tail_never_drifts(values: Mapping[str, float], num_measurements: int) -> None:
    spec = watch(action={"kind": "stop"})
    teacher = {name: value for name, value in values.items() if name != "reverse_kl_beyond"}
    state = SentinelState(teacher=teacher)
    for step in range(num_measurements + 1):
        state, alarms = after_measurement(spec, state, step, values, horizon=8, full=100)
        assert alarms == []
    assert not state.is_stopped


def test_a_drift_is_told_once_until_it_ends() -> None:
    spec, state, told = watch(), untrained(watch()), []
    for step, value in enumerate([0.7, 0.9, 0.55, 0.7, 0.2, 0.7], start=1):
        state, alarms = measured(spec, state, step, reverse_kl_beyond=value)
        told += [step for _ in alarms]
    assert told == [1, 6]  # 0.55 is inside the limit of 0.6, but not well inside


def test_each_measurement_of_a_drift_lets_the_horizon_grow() -> None:
    spec = watch(action={"kind": "grow", "factor": 2.5})
    state, alarms = measured(spec, untrained(spec), 10, reverse_kl_beyond=0.7)
    assert codes(alarms) == ["sentinel_tail_kl", "sentinel_action"]
    assert "from 8 to at least 20 tokens" in alarms[1].message
    state, alarms = measured(spec, state, 20, horizon=20, reverse_kl_beyond=0.7)
    assert codes(alarms) == ["sentinel_action"]
    state, alarms = measured(spec, state, 30, horizon=50, reverse_kl_beyond=0.7)
    state, alarms = measured(spec, state, 40, horizon=100, reverse_kl_beyond=0.7)
    assert alarms == []  # it cannot grow farther
    assert [(floor.step, floor.tokens) for floor in state.floors] == [(10, 20), (20, 50), (30, 100)]


def horizons(spec: RunSpec, state: SentinelState, num_steps: int) -> list[int]:
    prefix = spec.prefix_state()
    return [state.spec_at(spec, step, prefix).horizon_at(step, prefix) for step in range(num_steps)]


def test_a_floor_lifts_what_lies_below_it_from_its_step_on() -> None:
    spec = tiny_spec(
        prefix={"kind": "linear", "start_tokens": 8, "increment_tokens": 4},
        sentinel={"kind": "watch", "num_rollouts": 2, "action": {"kind": "grow"}},
    )
    state, _ = measured(spec.sentinel, untrained(spec.sentinel), 3, reverse_kl_beyond=0.7, horizon=16)  # type: ignore[arg-type]
    assert horizons(spec, SentinelState(), 9) == [8, 12, 16, 20, 24, 28, 32, 36, 40]
    assert horizons(spec, state, 9) == [8, 12, 16, 32, 32, 32, 32, 36, 40]


def test_after_a_drift_every_nth_step_is_whole() -> None:
    spec = tiny_spec(sentinel={"kind": "watch", "num_rollouts": 2, "action": {"kind": "anchor", "n": 3}})
    watched = spec.sentinel
    assert isinstance(watched, WatchTail)
    state, alarms = measured(watched, untrained(watched), 4, reverse_kl_beyond=0.7)
    assert codes(alarms) == ["sentinel_tail_kl", "sentinel_action"]
    assert horizons(spec, state, 11) == [8, 8, 8, 8, 8, 8, 224, 8, 8, 224, 8]
    again, alarms = measured(watched, state, 8, reverse_kl_beyond=0.9)
    assert alarms == []
    assert again.anchored_from == 4


def test_an_anchored_step_is_trained_whole_whatever_the_loss_region() -> None:
    spec = tiny_spec(
        loss_region={"kind": "window", "start": 2, "end": 6},
        sentinel={"kind": "watch", "num_rollouts": 2, "action": {"kind": "anchor", "n": 2}},
    )
    in_force = [SentinelState(anchored_from=0).spec_at(spec, step, spec.prefix_state()) for step in (0, 1)]
    assert [{region.kind for region in one.regions_at(0)} for one in in_force] == [{"window"}, {"whole"}]


def test_a_stop_ends_the_run() -> None:
    spec = watch(action={"kind": "stop"})
    state, alarms = measured(spec, untrained(spec), 10, repetition=0.9)
    assert state.is_stopped
    assert codes(alarms) == ["sentinel_repetition", "sentinel_action"]
    assert "because of repetition" in alarms[1].message


def test_without_a_drift_the_spec_in_force_is_the_spec() -> None:
    spec = tiny_spec()
    assert SentinelState().spec_at(spec, 5, spec.prefix_state()) is spec


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"sentinel": {"kind": "watch", "num_rollouts": 5}}, "sentinel.num_rollouts", "is 5 but evaluation.num_prompts is 4"),
        (
            {"prefix": {"kind": "full"}, "sentinel": {"kind": "watch", "num_rollouts": 2, "action": {"kind": "grow"}}},
            "sentinel.action",
            "full prefix already",
        ),
        (
            {
                "loss_region": {"kind": "window", "start": 2, "end": 6},
                "sentinel": {"kind": "watch", "num_rollouts": 2, "action": {"kind": "grow"}},
            },
            "sentinel.action",
            "ends at token 6",
        ),
    ],
)  # fmt: skip
def test_a_sentinel_that_does_not_fit_is_refused_at_its_field(changes: dict[str, Any], field: str, words: str) -> None:
    document = tiny_document(**changes)
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    (finding,) = findings_of(caught.value, document)
    assert finding.field == field
    assert words in finding.message


def test_the_state_survives_its_json() -> None:
    spec = watch(action={"kind": "grow"})
    state, _ = measured(spec, untrained(spec), 10, reverse_kl_beyond=0.7)
    assert SentinelState.model_validate_json(state.model_dump_json()) == state
