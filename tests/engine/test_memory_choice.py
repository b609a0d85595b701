"""What `auto` becomes: the quickest plan that fits, told, kept by a resume, and no other result."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.events import StepDone, Warned
from engine.findings import findings_of
from engine.manifest import MANIFEST, Manifest, spec_sha256
from engine.memory_choice import Choice, Pair, choose, least
from engine.memory_plan import DECODED_ROLLOUTS, LEAST_DECODED, MemoryPlan
from engine.peak_memory import room_bytes
from engine.spec import RunSpec
from engine.staging import sealed_files
from engine.student import Student
from tests.engine.models import CPU, MEDIUM, fresh_random_model, random_model, tiny_spec
from tests.engine.running import quick_spec, train_here
from tests.engine.test_batch_laws import eight_rollouts

PAIR = Pair(MEDIUM, MEDIUM, prompt_tokens=100, longest_horizon=200)
rooms = st.integers(0, 40 * 10**9)


def spec_of(micro_batch: int | str = "auto", blocks: str = "auto", teacher: str = "auto") -> RunSpec:
    return tiny_spec(
        micro_batch_rollouts=micro_batch,
        gradient_checkpointing=blocks,
        teacher_offload=teacher,
        prompts_per_step=48,
        device="cuda",
        precision="float32",
    )


def chosen(room: int, spec: RunSpec | None = None) -> Choice:
    return choose(spec or spec_of(), PAIR, room)


@given(rooms)
def test_what_is_chosen_fits_or_is_the_least(room: int) -> None:
    found = chosen(room)
    assert found.fits == (PAIR.needed_bytes(spec_of(), found.plan) <= room)
    assert found.fits or found.plan == least(spec_of())


@given(rooms, rooms)
def test_more_room_never_makes_it_slower(one: int, other: int) -> None:
    fewer, more = chosen(min(one, other)).plan, chosen(max(one, other)).plan
    order = [
        (not plan.offloads_teacher, not plan.recomputes_blocks, plan.micro_batch_rollouts) for plan in (fewer, more)
    ]
    assert order == sorted(order)


@given(rooms)
def test_blocks_run_twice_only_where_a_single_rollout_does_not_fit_otherwise(room: int) -> None:
    spec = spec_of(teacher="never")
    least_without = MemoryPlan(micro_batch_rollouts=1, recomputes_blocks=False, decoded_rollouts=LEAST_DECODED)
    alone = PAIR.needed_bytes(spec, least_without)
    assert chosen(room, spec).plan.recomputes_blocks == (alone > room)


@given(rooms)
def test_a_teacher_waits_outside_only_where_nothing_else_is_enough(room: int) -> None:
    least_beside = MemoryPlan(micro_batch_rollouts=1, recomputes_blocks=True, decoded_rollouts=LEAST_DECODED)
    most = PAIR.needed_bytes(spec_of(), least_beside)
    found = chosen(room)
    assert found.plan.offloads_teacher == ("teacher_offload" in found.chosen) == (most > room)


@given(rooms)
def test_a_teacher_stays_where_it_cannot_wait(room: int) -> None:
    rigid = Pair(MEDIUM, MEDIUM, 100, 200, can_offload=False)
    assert not choose(spec_of(), rigid, room).plan.offloads_teacher
    on_a_cpu = spec_of().model_copy(update={"device": "cpu"})
    assert not chosen(room, on_a_cpu).plan.offloads_teacher


@given(rooms, st.sampled_from(["never", "always"]), st.sampled_from(["never", "always"]))
def test_what_the_spec_states_is_left_alone(room: int, blocks: str, teacher: str) -> None:
    stated = spec_of(6, blocks, teacher)
    found = chosen(room, stated).plan
    assert found == MemoryPlan(
        micro_batch_rollouts=6,
        recomputes_blocks=blocks == "always",
        offloads_teacher=teacher == "always",
        decoded_rollouts=found.decoded_rollouts,
    )
    assert chosen(room, stated).chosen == ()


def test_all_rollouts_at_once_where_there_is_room_and_half_of_them_where_there_is_less() -> None:
    needed = PAIR.needed_bytes(spec_of(), MemoryPlan(micro_batch_rollouts=48, recomputes_blocks=False))
    assert chosen(needed).plan.micro_batch_rollouts == 48
    assert chosen(needed - 1).plan.micro_batch_rollouts == 24


def test_an_evaluation_gives_way_before_an_update_does() -> None:
    long = tiny_spec(
        max_completion_tokens=4000,
        evaluation=tiny_spec().evaluation.model_dump() | {"num_prompts": 100},
        precision="float32",
        device="cpu",
    )
    usual = MemoryPlan.stated(long)
    needed = [
        PAIR.needed_bytes(long, usual.model_copy(update={"decoded_rollouts": number})) for number in (128, 64, 32, 16)
    ]
    assert needed == sorted(needed, reverse=True)
    assert needed[0] > 3 * needed[3]
    for number, room in zip((128, 64, 32, 16), needed, strict=True):
        found = chosen(room, long)
        assert found.plan == usual.model_copy(update={"decoded_rollouts": number})
        assert found.is_told == (number < 128)
    told = chosen(needed[2], long).in_words
    assert told.startswith("at most 32 rollouts are decoded together: the run needs about ")
    assert chosen(needed[3] - 1, long).plan.recomputes_blocks, "only then the update"


def test_a_model_without_such_blocks_is_not_told_to_recompute_them() -> None:
    rigid = Pair(MEDIUM, MEDIUM, 100, 200, can_recompute=False)
    assert choose(spec_of(), rigid, 0).plan == MemoryPlan(
        micro_batch_rollouts=1, recomputes_blocks=False, offloads_teacher=True, decoded_rollouts=LEAST_DECODED
    )


def test_the_choice_is_told_with_what_it_needs_and_what_there_is() -> None:
    words = chosen(5 * 10**8).in_words
    assert words.startswith(
        "micro_batch_rollouts auto is 1, gradient_checkpointing auto is always, teacher_offload auto is always and at most "
        "16 rollouts are decoded together: the run needs about "
    )
    assert words.endswith(" GB of memory, and 0.50 GB are free, which may not be enough.")
    assert chosen(40 * 10**9).in_words.startswith("micro_batch_rollouts auto is 48: ")
    assert chosen(40 * 10**9, spec_of(16)).chosen == ()


def test_this_process_has_room_for_more_than_it_holds() -> None:
    assert room_bytes(CPU) > 300_000_000


@pytest.mark.parametrize("value", [0, -3, 65_537, "many", 1.5, None, []])
def test_anything_else_is_refused_in_one_sentence(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        tiny_spec(micro_batch_rollouts=value)
    (finding,) = findings_of(caught.value, {"micro_batch_rollouts": value})
    assert finding.field == "micro_batch_rollouts"
    assert finding.message == (
        f"micro_batch_rollouts is {value!r} but must be a whole number from 1 to 65,536, or auto; correct it."
    )


def test_checkpoints_from_when_never_was_the_default_are_still_of_their_run() -> None:
    assert spec_sha256(tiny_spec(gradient_checkpointing="never")) == spec_sha256(tiny_spec())
    assert spec_sha256(tiny_spec(gradient_checkpointing="always")) != spec_sha256(tiny_spec())


def test_blocks_that_auto_lets_run_twice_give_the_same_update_bit_for_bit() -> None:
    updates = []
    for recomputes in (False, True):
        plan = MemoryPlan(micro_batch_rollouts=4, recomputes_blocks=recomputes)
        student = Student(fresh_random_model(), tiny_spec(), plan)
        updates.append((student.update(eight_rollouts(), random_model(1, hidden=32), 0), student))
    (plain, first), (again, second) = updates
    assert (again.loss, again.grad_norm) == (plain.loss, plain.grad_norm)
    assert again.flops.recompute > plain.flops.recompute == 0
    for mine, theirs in zip(first.parameter_names, second.parameter_names, strict=True):
        assert torch.equal(mine, theirs)


def test_a_run_tells_what_auto_is_and_its_resume_keeps_it(tmp_path: Path) -> None:
    changes = {"num_steps": 3, "prompts_per_step": 8, "checkpoints": {"every_steps": 1, "keep_last": 9}}
    spec = quick_spec(micro_batch_rollouts="auto", **changes)
    events = train_here(spec, tmp_path / "auto")
    (told,) = [event for event in events if isinstance(event, Warned) and event.code == "memory_plan"]
    assert told.message.startswith("micro_batch_rollouts auto is 8: the run needs about ")
    plain = train_here(quick_spec(micro_batch_rollouts=2, **changes), tmp_path / "two")
    assert not [event for event in plain if isinstance(event, Warned) and event.code == "memory_plan"]
    losses = [[e.metrics["loss"] for e in of if isinstance(e, StepDone)] for of in (events, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=0, abs=1e-6)

    # As if it had been begun on a machine with less memory.
    saved = tmp_path / "auto" / "attempts" / "1" / "checkpoints" / "step-2"
    checkpoint = Path(shutil.copytree(saved, tmp_path / "other"))
    file = checkpoint / "trainer" / "state.json"
    state = json.loads(file.read_text())
    assert state["plan"] == {
        "micro_batch_rollouts": 8, "recomputes_blocks": False, "offloads_teacher": False, "decoded_rollouts": DECODED_ROLLOUTS,
    }  # fmt: skip
    # By a version without teacher offload and with one number of rollouts decoded together, too.
    file.write_text(json.dumps(state | {"plan": {"micro_batch_rollouts": 3, "recomputes_blocks": True}}))
    manifest = Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
    (checkpoint / MANIFEST).unlink()
    sealed = manifest.model_copy(update={"files": sealed_files(checkpoint)})
    (checkpoint / MANIFEST).write_text(sealed.model_dump_json())
    again = train_here(spec, tmp_path / "auto", attempt=2, resume=checkpoint)
    assert not [event for event in again if isinstance(event, Warned) and event.code == "memory_plan"]
    last = tmp_path / "auto" / "attempts" / "2" / "checkpoints" / "step-3" / "trainer" / "state.json"
    assert json.loads(last.read_text())["plan"] == {
        "micro_batch_rollouts": 3, "recomputes_blocks": True, "offloads_teacher": False, "decoded_rollouts": DECODED_ROLLOUTS,
    }  # fmt: skip
    (step,) = [event for event in again if isinstance(event, StepDone)]
    assert step.flops.recompute > 0
    assert step.metrics["loss"] == pytest.approx(losses[0][2], rel=0, abs=1e-6)
