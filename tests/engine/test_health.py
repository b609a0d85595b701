"""Alarms as pure functions of numbers: silent on what is steady, raised at the limit and not before, once per episode."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.health import ADVICE, Alarm, HealthState, StepSignals, after_evaluation, after_step, with_reference
from engine.health_readings import kl_spike
from engine.health_spec import HealthSpec

SPEC = HealthSpec()
WELL = {"mean_tokens": 100.0, "eos_rate": 0.9, "repetition": 0.1, "overlap_mass": 0.9}


def signals(step: int, **values: float | bool | None) -> StepSignals:
    normal = {
        "is_full": False, "loss": 0.4, "grad_norm": 0.5, "clip_norm": 1.0, "student_entropy": 1.0, "teacher_entropy": 1.0,
    }  # fmt: skip
    return StepSignals.model_validate({"step": step, **normal, **values})


def after_steady(count: int = 20, **values: float | bool | None) -> HealthState:
    """The state after `count` equal steps, which raise nothing."""
    state = HealthState()
    for step in range(1, count + 1):
        state, alarms = after_step(SPEC, state, signals(step, **values))
        assert alarms == []
    return state


def codes(alarms: list[Alarm]) -> list[str]:
    return [alarm.code for alarm in alarms]


def with_references(**teacher: float) -> HealthState:
    state = with_reference(HealthState(), "base", WELL)
    return with_reference(state, "teacher", {**WELL, **teacher, "overlap_mass": None})


positive = st.floats(1e-6, 1e3)


@given(loss=positive, grad_norm=positive, entropy=positive, share=st.floats(0.31, 10), is_full=st.booleans())
def test_a_steady_run_raises_nothing(
    loss: float, grad_norm: float, entropy: float, share: float, is_full: bool
) -> None:
    after_steady(
        40, loss=loss, grad_norm=grad_norm, student_entropy=share * entropy, teacher_entropy=entropy, is_full=is_full
    )


@given(
    tokens=st.floats(1, 1e5), eos_rate=st.floats(0, 1), repetition=st.floats(0, 0.7), overlap=st.floats(1e-3, 1),
    num_evaluations=st.integers(1, 5),
)  # fmt: skip
def test_a_student_like_base_and_teacher_raises_nothing(
    tokens: float, eos_rate: float, repetition: float, overlap: float, num_evaluations: int
) -> None:
    metrics = {"mean_tokens": tokens, "eos_rate": eos_rate, "repetition": repetition, "overlap_mass": overlap}
    state = with_reference(with_reference(HealthState(), "base", metrics), "teacher", metrics)
    for step in range(20, 20 + num_evaluations):
        state, alarms = after_evaluation(SPEC, state, step, metrics)
        assert alarms == []


@pytest.mark.parametrize(
    ("signal", "limit", "code"),
    [("loss", 5 * 0.4, "alarm_kl_spike"), ("grad_norm", 10 * 1.0, "alarm_gradient_spike")],
)
def test_a_spike_is_raised_at_the_limit_and_not_before(signal: str, limit: float, code: str) -> None:
    state = after_steady()
    assert after_step(SPEC, state, signals(21, **{signal: limit * 0.999}))[1] == []
    (alarm,) = after_step(SPEC, state, signals(21, **{signal: limit * 1.001}))[1]
    assert (alarm.code, alarm.limit) == (code, pytest.approx(limit))
    assert alarm.value == pytest.approx(limit * 1.001)
    assert "Step 21" in alarm.message
    assert alarm.advice == ADVICE[code]


def test_a_gradient_spike_is_measured_against_its_own_mean_when_that_is_larger() -> None:
    state = after_steady(grad_norm=3.0)
    assert after_step(SPEC, state, signals(21, grad_norm=29.0))[1] == []
    assert codes(after_step(SPEC, state, signals(21, grad_norm=31.0))[1]) == ["alarm_gradient_spike"]


def test_a_tiny_loss_may_multiply() -> None:
    state = after_steady(loss=0.002)
    assert after_step(SPEC, state, signals(21, loss=0.4))[1] == []
    assert codes(after_step(SPEC, state, signals(21, loss=0.5))[1]) == ["alarm_kl_spike"]


def test_full_steps_are_compared_with_full_steps() -> None:
    """An anchored step has a hundredth of a short step's loss: neither kind is a spike of the other."""
    state = HealthState()
    for step in range(1, 101):
        is_full = step % 4 == 0
        state, alarms = after_step(SPEC, state, signals(step, is_full=is_full, loss=0.01 if is_full else 4.0))
        assert alarms == []
    assert codes(after_step(SPEC, state, signals(101, is_full=True, loss=0.6))[1]) == ["alarm_kl_spike"]
    assert after_step(SPEC, state, signals(101, is_full=False, loss=6.0))[1] == []


def test_steps_of_grace_raise_nothing() -> None:
    state = HealthState()
    for step in range(1, SPEC.grace_steps + 1):
        state, alarms = after_step(SPEC, state, signals(step, loss=10.0**step))
        assert alarms == []
    assert after_evaluation(SPEC, with_references(), 9, WELL | {"eos_rate": 0.0})[1] == []


def test_entropy_collapses_against_the_teachers_on_the_same_tokens() -> None:
    state, raised = HealthState(), []
    for step in range(1, 61):
        state, alarms = after_step(SPEC, state, signals(step, student_entropy=1.0 if step <= 20 else 0.0))
        raised += [(step, alarm) for alarm in alarms]
    ((step, alarm),) = raised
    assert alarm.code == "alarm_entropy_collapse"
    # The running mean is 0.9^n after n steps without entropy; 0.9^12 = 0.28 is the first below 0.3.
    assert step == 20 + math.ceil(math.log(0.3) / math.log(0.9)) == 32
    assert alarm.limit == pytest.approx(0.3)


def test_a_certain_teacher_has_no_entropy_to_lose() -> None:
    after_steady(40, student_entropy=0.0, teacher_entropy=0.049)


@pytest.mark.parametrize(
    ("metric", "limit", "side", "code"),
    [
        ("mean_tokens", 50.0, "below", "alarm_length_collapse"),
        ("mean_tokens", 150.0, "above", "alarm_length_inflation"),
        ("eos_rate", 0.36, "below", "alarm_cap_hits"),
        ("repetition", 0.35, "above", "alarm_repetition"),
        ("overlap_mass", 0.72, "below", "alarm_overlap_mass"),
    ],
)
def test_an_evaluation_raises_at_the_limit_and_not_before(metric: str, limit: float, side: str, code: str) -> None:
    state = with_references()
    inside, beyond = (0.999, 1.001) if side == "above" else (1.001, 0.999)
    assert after_evaluation(SPEC, state, 20, WELL | {metric: limit * inside})[1] == []
    (alarm,) = after_evaluation(SPEC, state, 20, WELL | {metric: limit * beyond})[1]
    assert (alarm.code, alarm.limit) == (code, pytest.approx(limit))


def test_a_teacher_that_never_ends_leaves_the_base_student_as_the_measure() -> None:
    state = with_references(eos_rate=0.0)
    (alarm,) = after_evaluation(SPEC, state, 20, WELL | {"eos_rate": 0.3})[1]
    assert (alarm.code, alarm.limit) == ("alarm_cap_hits", pytest.approx(0.36))
    assert "base student's 90%" in alarm.message


def test_without_baselines_there_is_nothing_to_compare_with() -> None:
    gone = {"mean_tokens": 0.0, "eos_rate": 0.0, "repetition": 1.0, "overlap_mass": 0.0}
    assert after_evaluation(SPEC, HealthState(), 20, gone)[1] == []


@given(st.lists(st.sampled_from([0.4, 1.0, 1.9, 2.1, 50.0]), max_size=80))
def test_an_episode_is_one_alarm(losses: list[float]) -> None:
    """Between two alarms the loss was well inside its limit for at least the steps of grace."""
    state, is_raised, well, longest = after_steady(), False, 0, 0
    for step, loss in enumerate(losses, start=21):
        # The limit follows the running mean, so what is well inside it has to be asked at every step.
        reading = kl_spike(SPEC, state, signals(step, loss=loss))
        assert reading is not None
        state, alarms = after_step(SPEC, state, signals(step, loss=loss))
        if alarms:
            assert not is_raised or longest >= SPEC.grace_steps
            is_raised, longest = True, 0
        well = well + 1 if reading.is_well else 0
        longest = max(longest, well)


def test_an_alarm_can_be_raised_again_after_its_episode() -> None:
    state, raised = after_steady(), []
    for step in range(21, 61):
        state, alarms = after_step(SPEC, state, signals(step, loss=9.0 if step in (21, 22, 27, 50) else 0.4))
        raised += [step for _ in alarms]
    assert raised == [21, 50]


@pytest.mark.parametrize("field", ["min_eos_share", "min_length_share", "min_overlap_share", "min_entropy_share"])
def test_a_share_of_zero_switches_its_alarm_off(field: str) -> None:
    spec = HealthSpec.model_validate({name: 0.0 if name == field else value for name, value in SPEC})
    gone = WELL | {"mean_tokens": 0.0, "eos_rate": 0.0, "overlap_mass": 0.0}
    raised = codes(after_evaluation(spec, with_references(), 20, gone)[1])
    state = HealthState()
    for step in range(1, 30):
        state, alarms = after_step(spec, state, signals(step, student_entropy=0.0))
        raised += codes(alarms)
    off = {
        "min_eos_share": "alarm_cap_hits", "min_length_share": "alarm_length_collapse",
        "min_overlap_share": "alarm_overlap_mass", "min_entropy_share": "alarm_entropy_collapse",
    }  # fmt: skip
    assert set(raised) == set(off.values()) - {off[field]}


def test_the_state_survives_its_json() -> None:
    state = after_steady()
    state, _ = after_step(SPEC, state, signals(21, loss=9.0))
    state = with_reference(with_reference(state, "base", WELL), "teacher", WELL)
    assert HealthState.model_validate_json(state.model_dump_json()) == state
