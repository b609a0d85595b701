"""Teacher offload: the same numbers to the bit, host memory that nothing but a copy reads, device memory that is given back.

The device is the CPU here, whose copies are other storages than the host's: the mechanism is the same, the copy to a GPU never ran.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.batch import RolloutBatch
from engine.check import check
from engine.control import Control
from engine.events import Evaluated, RunEvent, StepDone, TailMeasured, Warned
from engine.findings import findings_of
from engine.journal import Journal
from engine.language_model import LanguageModel
from engine.measuring import evaluate_student, measure_baselines, report
from engine.memory_plan import NO_OFFLOAD_ON_A_CPU
from engine.run import Run
from engine.setup import load_data
from engine.spec import RunSpec
from engine.student import Student
from engine.tail_probe import TailProbe, measure_tail
from engine.taught import taught_batches
from engine.teacher_offload import HostWeights, offloaded
from engine.train import _open_run
from tests.engine.models import CPU, fresh_random_model, random_model, tiny_model, tiny_spec
from tests.engine.running import quick_spec, train_here
from tests.engine.test_batch_laws import eight_rollouts

pytestmark = pytest.mark.usefixtures("home")

LORA = {"kind": "lora", "rank": 2}
ALL_READERS: dict[str, dict[str, object]] = {
    "student writes": {},
    "teacher writes": {"completions": {"kind": "teacher"}},
    "teacher begins": {"completions": {"kind": "teacher_prefix", "tokens": 2}},
    "teacher chooses": {
        "rollouts_per_prompt": 2,
        "selection": {"kind": "probe", "probe_tokens": 2, "top_k": 4, "drop_share": 0.5},
    },
    "warm-up": {"warmup_phase": {"kind": "sft", "num_steps": 2, "prompts_per_step": 2, "source": "teacher"}},
    "weights and guard": {
        "token_weights": {"kind": "tip"},
        "termination_guard": {"kind": "forward_kl"},
        "micro_batch_rollouts": 2,
    },
    "overlap": {"overlap": True, "completions": {"kind": "teacher"}},
    "LoRA beside another teacher": {"adapter": LORA},
}
# The others are marked full.
_EACH_TIME = ("weights and guard", "overlap", "LoRA beside another teacher")


def addresses(model: LanguageModel) -> list[int]:
    return [parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()]


class NothingButCopies(TorchDispatchMode):
    """Fails where an operator computes with one of the storages; views and copies of them are no computation."""

    _HARMLESS = frozenset(
        f"aten::{name}" for name in ("_to_copy", "detach", "view", "alias", "_has_compatible_shallow_copy_type")
    )

    def __init__(self, storages: list[int]) -> None:
        super().__init__()
        self._storages = frozenset(storages)
        self.num_copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and not one.is_mkldnn]
        if any(one.untyped_storage().data_ptr() in self._storages for one in found):
            name = func.name().partition(".")[0]
            assert name in self._HARMLESS, f"{name} computes with host memory"
            self.num_copies += name == "aten::_to_copy"
        return func(*args, **(kwargs or {}))


@contextmanager
def guarded(model: LanguageModel) -> Iterator[NothingButCopies]:
    with NothingButCopies(addresses(model)) as guard:
        yield guard


def test_weights_are_on_the_device_only_while_they_are_read() -> None:
    model = offloaded(fresh_random_model())
    waiting = addresses(model)
    with model.on_device():
        assert not {*addresses(model)} & {*waiting}
        inside = addresses(model)
        with model.on_device(), model.on_device(head_alone=True):
            assert addresses(model) == inside, "who comes second finds them there"
        assert addresses(model) == inside, "and leaves them to the first"
    assert addresses(model) == waiting


def test_the_head_comes_alone_and_a_tied_one_once() -> None:
    model = offloaded(fresh_random_model())
    waiting = addresses(model)
    with model.on_device(head_alone=True):
        is_there = [now != before for now, before in zip(addresses(model), waiting, strict=True)]
        assert sum(is_there) == 1
        assert model.module.get_input_embeddings().weight is model.head.weight
        head = model.head.weight.untyped_storage().data_ptr()
        with model.on_device():
            assert model.head.weight.untyped_storage().data_ptr() == head
    assert addresses(model) == waiting


def test_what_it_computes_is_the_same_to_the_bit() -> None:
    plain, model = random_model(), offloaded(fresh_random_model())
    tokens = torch.tensor([[1, 5, 9, 3, 7]])
    with model.on_device(), torch.no_grad():
        states = model.hidden(tokens)[0]
        assert torch.equal(states, plain.hidden(tokens)[0])
        assert torch.equal(model.head.logits(states), plain.head.logits(states))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))


def test_reading_without_a_copy_is_noticed_by_the_guard_of_these_tests() -> None:
    model = offloaded(fresh_random_model())
    with guarded(model), pytest.raises(AssertionError, match="computes with host memory"):
        model.hidden(torch.tensor([[1, 5]]))


@pytest.mark.parametrize("is_inside", [False, True])
def test_weights_copied_in_inference_mode_serve_outside_of_it(*, is_inside: bool) -> None:
    model = offloaded(fresh_random_model())
    with torch.inference_mode() if is_inside else nullcontext(), model.on_device():
        assert not model.head.weight.data.is_inference()
        with torch.inference_mode(mode=False):
            leaf = torch.ones(1, 16, dtype=torch.float64, requires_grad=True)
            model.head.logits(leaf).sum().backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None
    assert not model.head.weight.data.is_inference()


def test_an_error_inside_leaves_the_weights_where_they_wait() -> None:
    model = offloaded(fresh_random_model())
    waiting = addresses(model)
    with pytest.raises(RuntimeError, match="broken"), model.on_device():
        raise RuntimeError("broken")
    assert addresses(model) == waiting


def test_a_copy_that_fails_half_way_is_undone_and_can_be_tried_again() -> None:
    module = fresh_random_model().module
    weights = HostWeights(module, CPU, ())
    last = list(module.parameters())[-1]
    content = weights._host[last]
    weights._host[last] = torch.empty(last.shape, dtype=last.dtype, device="meta")  # of which no copy can be made
    waiting = [parameter.data_ptr() for parameter in module.parameters()]
    for _ in range(2):
        with pytest.raises(NotImplementedError), weights.on_device():
            pytest.fail("a weight is missing")
        assert [parameter.data_ptr() for parameter in module.parameters()] == waiting
    weights._host[last] = content
    with weights.on_device():
        assert torch.equal(last, content)
        assert last.data_ptr() != content.data_ptr()


def test_several_threads_read_at_once_and_the_last_one_drops_the_copies() -> None:
    model = offloaded(fresh_random_model())
    waiting = addresses(model)
    expected = [weight.clone() for weight in model.module.parameters()]
    wrong: list[str] = []

    def read() -> None:
        for _ in range(200):
            with model.on_device():
                if {*addresses(model)} & {*waiting}:
                    wrong.append("a weight was taken away")
                if not all(torch.equal(a, b) for a, b in zip(model.module.parameters(), expected, strict=True)):
                    wrong.append("a weight differs")

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert addresses(model) == waiting


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_an_update_is_the_same_to_the_bit_and_copies_each_weight_once(micro_batch: int) -> None:
    spec = tiny_spec(micro_batch_rollouts=micro_batch)
    plain, away = (Student(fresh_random_model(), spec) for _ in range(2))
    teacher = offloaded(fresh_random_model(1, hidden=32))
    expected = plain.update(eight_rollouts(), random_model(1, hidden=32), 0)
    with guarded(teacher) as guard:
        found = away.update(eight_rollouts(), teacher, 0)
    assert guard.num_copies == len(addresses(teacher))
    assert found == expected
    for mine, theirs in zip(away.parameter_names, plain.parameter_names, strict=True):
        assert torch.equal(mine, theirs)


def test_while_the_student_is_updated_only_the_head_is_there() -> None:
    model, teacher = fresh_random_model(), offloaded(fresh_random_model(1, hidden=32))
    waiting = addresses(teacher)
    student = Student(model, tiny_spec(micro_batch_rollouts=2))
    there: list[int] = []
    model.module.get_decoder().register_forward_pre_hook(
        lambda *_: there.append(sum(a != b for a, b in zip(addresses(teacher), waiting, strict=True)))
    )
    student.update(eight_rollouts(), teacher, 0)
    assert there == [1] * 4


def test_states_of_an_offloaded_teacher_wait_in_host_memory_too() -> None:
    student, teacher = Student(fresh_random_model(), tiny_spec()), offloaded(fresh_random_model(1, hidden=32))
    groups = [eight_rollouts()[:3], eight_rollouts()[3:]]
    read = list(taught_batches(groups, student.model, teacher))
    for group, (batch, hidden) in zip(groups, read, strict=True):
        expected = RolloutBatch.collate(group, student.model.pad_token_id, CPU)
        assert torch.equal(batch.token_ids, expected.token_ids)
        assert hidden.shape == (len(expected.target_ids), 32)


def whole_run(spec: RunSpec, folder: Path, *, is_offloaded: bool) -> tuple[list[RunEvent], Run]:
    """All that engine.train.train does, with a teacher that a CPU would leave where it is."""
    events: list[RunEvent] = []
    with Journal(folder / "attempts" / "1" / "events.jsonl", events.append) as journal:
        run = _open_run(spec, folder, 1, journal, Control(), None)
        if is_offloaded:
            run = replace(run, teacher=offloaded(run.teacher))
        with guarded(run.teacher) if is_offloaded else nullcontext():
            measure_baselines(run)
            while not run.is_trained:
                if run.tail_is_due():
                    measure_tail(run)
                run.train_step()
            evaluate_student(run)
            report(run)
    return events, run


@pytest.mark.parametrize(
    "reader", [pytest.param(name, marks=[] if name in _EACH_TIME else pytest.mark.full) for name in ALL_READERS]
)
def test_a_whole_run_is_the_same_to_the_bit_whoever_reads_the_teacher(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = quick_spec(
        **{
            "num_steps": 4,
            "sentinel": {"kind": "watch", "every_steps": 2, "num_rollouts": 2},
            "traces": {"num_rollouts": 1},
            "evaluation": {
                "path": "builtin:tiny/data/dev.jsonl",
                "report_path": "builtin:tiny/data/report.jsonl",
                "num_report_prompts": 2,
                "num_prompts": 2,
                "num_sampled": 1,
                "num_teacher_texts": 2,
                "samples_per_prompt": 2,
                "every_steps": 1000,
                "scorer": {"kind": "after_marker", "marker": "#"},
            },
        }
        | ALL_READERS[reader]
    )
    found = []
    for is_offloaded in (False, True):
        # Neither finds what the other has measured.
        monkeypatch.setenv("INCIPIT_HOME", str(tmp_path / f"home {is_offloaded}"))
        events, run = whole_run(spec, tmp_path / f"run {is_offloaded}", is_offloaded=is_offloaded)
        measured = [event.metrics for event in events if isinstance(event, StepDone | Evaluated | TailMeasured)]
        found.append((measured, run.student.model.state_dict()))
    (plain, weights), (away, same_weights) = found
    assert len(plain) > 8
    assert away == plain
    assert weights.keys() == same_weights.keys()
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)


def test_the_sentinel_reads_where_the_teachers_texts_end_from_copies_too() -> None:
    spec = quick_spec(max_completion_tokens=224)
    plain, away = tiny_model("teacher", "teacher"), offloaded(tiny_model("teacher", "teacher"))
    prompts = load_data(spec, plain.tokenizer).train[:2]
    expected = TailProbe(spec, plain, prompts, lambda: None).teacher_metrics
    with guarded(away):
        found = TailProbe(spec, away, prompts, lambda: None).teacher_metrics
    assert expected["eos_rate"] == 1.0
    assert found == expected


def test_a_shared_base_cannot_wait_outside() -> None:
    document = {"teacher_offload": "always", "adapter": LORA, "teacher": {"path": "builtin:tiny/models/student-plan"}}
    with pytest.raises(ValidationError) as caught:
        tiny_spec(**document)
    (finding,) = findings_of(caught.value, document)
    assert finding.field == "teacher_offload"
    assert finding.message == (
        "teacher_offload is 'always' but the teacher is the student's own base, whose weights lie in memory once and are "
        "needed all the time; set teacher_offload to auto or never."
    )
    assert tiny_spec(**document | {"teacher_offload": "auto"}).shares_base
    assert not tiny_spec(teacher_offload="always", adapter=LORA).shares_base


def test_a_cpu_trains_all_the_same_and_says_that_it_has_no_effect(tmp_path: Path) -> None:
    spec = quick_spec(num_steps=2, teacher_offload="always")
    events = train_here(spec, tmp_path / "run")
    (told,) = [event for event in events if isinstance(event, Warned) and event.code == "teacher_offload"]
    assert told.message == NO_OFFLOAD_ON_A_CPU
    found = check(spec)
    assert [(one.field, one.severity) for one in found.findings if one.message == NO_OFFLOAD_ON_A_CPU] == [
        ("teacher_offload", "warning")
    ]
    quiet = train_here(quick_spec(num_steps=2), tmp_path / "auto")
    assert not [event for event in quiet if isinstance(event, Warned) and event.code == "teacher_offload"]
