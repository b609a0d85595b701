"""The memory estimate: activations against what autograd really keeps, and a whole run against the peak of its process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from backend.estimate import estimate
from benchmarks.memory_estimate import measured, spec_of
from engine import batch, decode_linear, fused_loss, llama_decoder
from engine import memory as memory_module
from engine.adapter_shape import AdapterShape
from engine.decode_cache import decode_cache
from engine.divergences import ReverseKL
from engine.flops import ModelShape
from engine.fused_loss import Heads, fused_divergence
from engine.language_model import OutputHead
from engine.memory import PROCESS_BYTES, Memory, Model, memory
from engine.memory_plan import NO_OFFLOAD_ON_A_CPU, MemoryPlan
from engine.objective import Objective
from engine.setup import Precision, load_student
from engine.spec import RunSpec
from tests.engine.models import CPU, MEDIUM, WORDS, write_random_model

Document = dict[str, Any]


def of(base: Document, **changes: object) -> Memory:
    return memory(RunSpec.model_validate(base | {"device": "cpu"} | changes), MEDIUM, MEDIUM, 100, 200)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("layers", [3, 6])
def test_activations_are_what_autograd_keeps(
    base: Document, tmp_path: Path, layers: int, adapter: str, precision: Precision
) -> None:
    """Weights that are trained are float32 under autocast, the frozen base of an adapter is bfloat16 itself."""
    write_random_model(tmp_path, 0, hidden=256, layers=layers)
    changes = {
        "micro_batch_rollouts": 4, "prompts_per_step": 4, "device": "cpu", "precision": precision,
        "student": {"path": str(tmp_path)}, "adapter": {"kind": adapter},
    }  # fmt: skip
    spec = RunSpec.model_validate(base | changes)
    student = load_student(spec, CPU, precision)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in student.module.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), student.autocast():
        student.hidden(torch.randint(WORDS, (4, 64)), use_cache=False)
    found = sum(size for address, size in kept.items() if address not in weights)
    parts = memory(spec, Model(student.shape, 0), Model(student.shape, 0), 0, 64).parts
    is_cast = precision == "bfloat16" and adapter == "none"
    assert parts["activations"] + parts.get("low_precision_copy", 0) == pytest.approx(found, rel=0.15)
    assert ("low_precision_copy" in parts) == is_cast


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_the_cache_is_as_large_as_that_of_a_model(base: Document, precision: str, *, is_frozen: bool) -> None:
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2
    )  # fmt: skip
    model, shape = LlamaForCausalLM(config), ModelShape.from_config(config.to_dict())
    is_half = precision == "bfloat16"
    if is_half and is_frozen:
        model = model.bfloat16()
    cache = decode_cache(model, 30, torch.bfloat16 if is_half and not is_frozen else None)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        model.model(input_ids=torch.randint(100, (4, 10)), use_cache=True, past_key_values=cache)
    adapted = shape.model_copy(update={"adapter": AdapterShape(parameters=0)}) if is_frozen else shape
    changes = {
        "prompts_per_step": 4, "device": "cpu", "precision": precision, "max_completion_tokens": 20,
        "evaluation": base["evaluation"] | {"num_prompts": 4},
    }  # fmt: skip
    small = Model(shape.model_copy(update={"kv_width": 0}), 0)
    parts = memory(RunSpec.model_validate(base | changes), Model(adapted, 0), small, 10, 20).parts
    assert parts["cache"] == sum(layer.buffer.untyped_storage().nbytes() for layer in cache.layers)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loss_takes_what_the_estimate_has_for_head_and_divergence(
    base: Document, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors that are there together while the loss of 600 tokens is taken, by what PyTorch's profiler says of its allocator."""
    hidden, vocabulary, num_tokens = 64, 32_000, 600
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    weight = torch.randn(vocabulary, hidden, requires_grad=True)
    of_teacher = torch.randn(vocabulary, hidden, dtype=dtype)
    heads = Heads(*(OutputHead(one, None, 1.0, None, vocabulary) for one in (weight, of_teacher)), 1.0)
    states = torch.randn(num_tokens, hidden, dtype=dtype, requires_grad=True)
    taught, targets = torch.randn(num_tokens, hidden, dtype=dtype), torch.randint(vocabulary, (num_tokens,))

    def take() -> None:
        fused_divergence(
            states, taught, targets, heads=heads, objective=Objective(ReverseKL()), num_supervised_tokens=num_tokens
        )

    take()  # PyTorch's own first time
    # oneDNN takes scratch of its own for bfloat16 on processors that do not compute it.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        take()
    held = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    shape = ModelShape.from_config(
        {
            "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 8, "intermediate_size": 64,
            "vocab_size": vocabulary,
        }
    )  # fmt: skip
    changes = {"prompts_per_step": 1, "device": "cpu", "precision": precision}
    parts = memory(RunSpec.model_validate(base | changes), Model(shape, 0), Model(shape, 0), 0, num_tokens).parts
    assert parts["head_gradient"] + parts["divergence"] == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("overlap", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_whole_run_of_the_tiny_pair_is_met_within_15_percent(tmp_path: Path, *, overlap: bool) -> None:
    """The process's own part is measured here: it depends on the build of torch."""
    spec = spec_of("tiny", tmp_path).model_copy(update={"overlap": overlap})
    used, guess = measured(spec), estimate(spec, []).memory_total_bytes - PROCESS_BYTES
    assert used["process_bytes"] + guess == pytest.approx(used["peak_bytes"], rel=0.15)


def test_smaller_micro_batches_and_recomputed_blocks_need_less(base: Document) -> None:
    whole = of(base, device="cuda", prompts_per_step=32, micro_batch_rollouts=32)
    parts = of(base, device="cuda", prompts_per_step=32, micro_batch_rollouts=8)
    again = of(base, device="cuda", prompts_per_step=32, micro_batch_rollouts=32, gradient_checkpointing="always")
    assert parts.parts["activations"] * 4 == whole.parts["activations"]
    assert parts.total < whole.total
    assert again.parts["activations"] < 0.3 * whole.parts["activations"]


def test_a_cpu_takes_fewer_of_long_rollouts_together(base: Document) -> None:
    many, more = (of(base, prompts_per_step=2048, micro_batch_rollouts=rows) for rows in (1024, 2048))
    on_gpu = of(base, device="cuda", prompts_per_step=2048, micro_batch_rollouts=2048)
    assert many.parts["activations"] == more.parts["activations"] < on_gpu.parts["activations"]


def test_phases_that_follow_each_other_are_not_added(base: Document) -> None:
    found = of(base)
    assert found.total < sum(found.parts.values())
    assert found.total > sum(
        found.parts[part] for part in ("process", "student_weights", "teacher_weights", "optimizer")
    )


def test_under_overlap_a_second_student_samples_beside_the_update(base: Document) -> None:
    plain, both = of(base, device="cuda"), of(base, device="cuda", overlap=True)
    assert both.parts["student_copy"] == plain.parts["student_weights"]
    assert both.total >= plain.total + plain.parts["student_weights"] + plain.parts["cache"]


def test_a_gpu_holds_neither_the_process_nor_what_the_c_library_keeps(base: Document) -> None:
    found = of(base, device="cuda").parts
    assert found["process"] == found["allocator"] == 0
    assert found["teacher_weights"] == 2 * MEDIUM.num_parameters
    assert found["low_precision_copy"] == 2 * MEDIUM.shape.block_parameters


def test_an_offloaded_teacher_counts_where_it_reads_and_its_head_in_the_update(base: Document) -> None:
    stays = of(base, device="cuda", prompts_per_step=16, micro_batch_rollouts=16)
    waits = of(base, device="cuda", prompts_per_step=16, micro_batch_rollouts=16, teacher_offload="always")
    part, head = waits.parts, 2 * MEDIUM.shape.head_parameters
    assert part["teacher_head"] == head
    assert {name: part[name] for name in stays.parts} == stays.parts
    held = part["student_weights"] + part["optimizer"]
    update = sum(part[name] for name in ("activations", "divergence", "head_gradient", "low_precision_copy"))
    phases = [
        head + update + max(0, part["gradients"] - part["activations"]),
        part["teacher_weights"] + part["teacher_pass"],
        part["cache"] + part["sampling"],
        part["teacher_weights"] + part["cache"] + part["sampling"] - part["optimizer"],
        part["teacher_weights"] + part["scoring"],
    ]
    assert waits.total == held + max(phases)
    assert stays.total == held + part["teacher_weights"] + max(phases[0] - head, part["scoring"])


@pytest.mark.parametrize("teacher_parameters", [4 * 10**7, 10**8, 10**9, 10**10])
def test_a_teacher_that_waits_never_needs_more_and_a_large_one_is_the_peak_itself(
    base: Document, teacher_parameters: int
) -> None:
    teacher = Model(MEDIUM.shape, teacher_parameters)

    def total(**changes: object) -> int:
        spec = RunSpec.model_validate(base | {"device": "cuda"} | changes)
        return memory(spec, MEDIUM, teacher, 100, 200).total

    waits, stays = total(teacher_offload="always"), total()
    assert waits < stays
    if teacher_parameters == 10**10:
        assert waits > 2 * teacher_parameters


def test_an_offloaded_teacher_that_writes_beside_the_update_is_there_meanwhile(base: Document) -> None:
    both = {"device": "cuda", "overlap": True, "teacher_offload": "always"}
    read, writes = of(base, **both), of(base, **both, completions={"kind": "teacher"})
    in_update = read.parts["teacher_weights"] - read.parts["teacher_head"]
    assert writes.total - read.total == in_update + writes.parts["cache"] - read.parts["cache"]


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cpu"},
        {"device": "auto"},
        {
            "device": "cuda",
            "adapter": {"kind": "lora", "rank": 8},
            "teacher": {"path": "builtin:tiny/models/student-plan"},
        },
    ],
)
def test_where_offload_has_no_effect_the_estimate_has_none(base: Document, changes: Document) -> None:
    spec = RunSpec.model_validate(base | changes)
    plan = MemoryPlan.stated(spec)
    waiting = plan.model_copy(update={"offloads_teacher": True})
    student = MEDIUM
    if spec.shares_base:
        adapted = MEDIUM.shape.model_copy(update={"adapter": AdapterShape(parameters=10**6)})
        student = Model(adapted, MEDIUM.num_parameters)
    assert memory(spec, student, MEDIUM, 100, 200, waiting) == memory(spec, student, MEDIUM, 100, 200, plan)


def test_what_offload_does_is_among_the_assumptions(base: Document) -> None:
    def stated(**changes: object) -> list[str]:
        return [text for text in estimate(RunSpec.model_validate(base | changes), []).assumptions if "offload" in text]

    assert stated(device="cpu") == stated(device="cuda", teacher_offload="never") == []
    for device in ("cpu", "auto"):
        (sentence,) = stated(device=device, teacher_offload="always")
        assert sentence.lower() == NO_OFFLOAD_ON_A_CPU.lower()
    assert stated(device="cuda") == [
        "The teacher stays on the GPU; the worker offloads it where the run does not fit otherwise."
    ]


def test_many_samples_and_a_teacher_that_writes_need_a_larger_cache(base: Document) -> None:
    few = of(base, evaluation=base["evaluation"] | {"num_prompts": 2}, prompts_per_step=2)
    many = of(base, evaluation=base["evaluation"] | {"num_prompts": 2, "samples_per_prompt": 32}, prompts_per_step=2)
    assert many.parts["cache"] == 32 * few.parts["cache"]


def test_what_the_estimate_copies_of_the_engine_is_what_the_engine_allows() -> None:
    copied = (
        memory_module._CHUNK_ENTRIES,
        memory_module._MAX_JOINED_BYTES,
        memory_module._CPU_TOKENS,
        memory_module._MIN_PACKED_ENTRIES,
    )
    allowed = (
        fused_loss._CHUNK_ENTRIES,
        llama_decoder._MAX_JOINED_BYTES,
        batch._CPU_TOKENS,
        decode_linear.MIN_PACKED_ENTRIES,
    )
    assert copied == allowed
