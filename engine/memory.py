"""Memory of a run by part, in bytes, from the shapes of its models; benchmarks/memory_estimate.py compares it with what was used."""

from __future__ import annotations

from dataclasses import dataclass

from engine.flops import ModelShape
from engine.memory_plan import MemoryPlan
from engine.rollout_backend_spec import ColocatedVllm
from engine.spec import RunSpec
from engine.stretches import stretches

MEMORY_ERROR = 0.15
"""Of an estimate, as benchmarks/memory_estimate.py measures it."""
_FLOAT32, _BFLOAT16 = 4, 2
_GB = 2**30
# Interpreter, torch and transformers with all that they load: resident memory of an engine that holds a tiny model.
PROCESS_BYTES = 400_000_000
_VLLM_BYTES = 250_000_000  # more, where it has imported that
# Share that the C library keeps on top, of blocks that were freed and do not fit what is asked for next. Measured over the runs
# of benchmarks/memory_estimate.py in both types, with glibc's own settings: 0.04 to 0.20, and with adapters 0.23 and 0.5. Returning
# every block at once would save it and cost 28 % of the time. Not counted for a GPU, whose allocator was not measured.
_ALLOCATOR_SHARE, _ALLOCATOR_SHARE_WITH_ADAPTER = 0.14, 0.35
# What engine/fused_loss.py, engine/llama_decoder.py, engine/decode_linear.py, engine/scoring.py and
# engine/batch.py allow themselves.
_MIN_PACKED_ENTRIES = 2**17
_CHUNK_ENTRIES, _MIN_CHUNK_TOKENS, _MAX_JOINED_BYTES = 2**23, 16, 64_000_000
_CPU_TOKENS = 2048
_CHUNK_TENSORS, _SCORING_TENSORS = 2, 8
# Logits, odds and the odds padded to whole groups, in float32.
_SAMPLING_BYTES_PER_ENTRY = 3 * 4


@dataclass(frozen=True)
class Model:
    """What an estimate knows of a model."""

    shape: ModelShape
    num_parameters: int
    """All weights, adapters left out."""


@dataclass(frozen=True)
class Memory:
    """Bytes by part, and of all that is there at the busiest moment: parts of different phases follow each other."""

    parts: dict[str, int]
    """Weights of an offloaded teacher count as a whole; they are there while it reads or writes, else its head alone."""
    total: int


def longest_horizon(spec: RunSpec) -> int:
    """The largest horizon that any training step may have, in tokens; the full length where there are anchors or a warm-up."""
    num_steps = spec.num_distillation_steps
    if spec.warmup_phase.num_steps or any(spec.anchoring.counts(0, num_steps, spec.prompts_per_step)):
        return spec.max_completion_tokens
    state = spec.prefix_state()
    every = spec.evaluation.every_steps
    longest = stretches(lambda step: spec.prefix.longest_at(step, state, every), num_steps, spec.prefix.parts())
    return spec.loss_region.sampled_tokens(max(one.value for one in longest))


def memory(
    spec: RunSpec,
    student: Model,
    teacher: Model,
    prompt_tokens: int,
    longest_horizon: int,
    plan: MemoryPlan | None = None,
) -> Memory:
    """Memory of one engine process; `longest_horizon` is the largest of any training step, in tokens.

    `plan` is how it keeps within its memory; None is what the spec states, see `MemoryPlan.stated`.
    """
    plan = MemoryPlan.stated(spec) if plan is None else plan
    is_on_gpu = spec.device == "cuda"
    is_half = spec.precision == "bfloat16" or (spec.precision == "auto" and is_on_gpu)
    size = _BFLOAT16 if is_half else _FLOAT32
    shape = student.shape
    has_adapter = shape.adapter is not None
    num_trained = shape.adapter.parameters if shape.adapter else student.num_parameters
    num_frozen = student.num_parameters if has_adapter else 0
    held = {
        "process": 0 if is_on_gpu else PROCESS_BYTES,
        "student_weights": num_trained * _FLOAT32 + num_frozen * size,
        "teacher_weights": 0 if spec.shares_base or spec.has_served_teacher else teacher.num_parameters * size,
        "optimizer": 2 * num_trained * _FLOAT32,
    }
    if isinstance(
        spec.rollouts, ColocatedVllm
    ):  # asleep it frees its part of a GPU, but it samples beside all that is held
        held["vllm"] = student.num_parameters * size + round(spec.rollouts.cache_gb * _GB)
        held["process"] += 0 if is_on_gpu else _VLLM_BYTES
    num_rows = _rows_together(spec, plan, prompt_tokens + longest_horizon)
    num_tokens = num_rows * (prompt_tokens + longest_horizon)
    is_cast = is_half and not has_adapter  # float32 weights run under autocast; an adapter's base is bfloat16 itself
    update = _update(plan, shape, num_tokens, size, has_adapter=has_adapter, is_cast=is_cast)
    gradients = num_trained * _FLOAT32
    of_student = _sampling(spec, plan, shape, prompt_tokens, longest_horizon, size)
    of_teacher = _sampling(
        spec, plan, teacher.shape, prompt_tokens, longest_horizon, size, in_training=_teacher_writes(spec)
    )
    if spec.has_served_teacher:
        of_teacher = dict.fromkeys(of_student, 0)
    sampling = {part: max(of_student[part], of_teacher[part]) for part in of_student}
    scoring = _SCORING_TENSORS * _FLOAT32 * _chunk_tokens(shape, spec.max_completion_tokens) * shape.vocabulary
    # While the last micro-batch's loss is taken its own gradients are not there yet, those of the earlier ones are.
    is_in_parts = spec.rollouts_per_step > num_rows
    training = sum(update.values()) + (gradients if is_in_parts else max(0, gradients - update["activations"]))
    beside = 0
    if spec.overlap:  # a second student samples while the first is updated
        held["student_copy"] = student.num_parameters * _FLOAT32
        beside = sum((sampling if _teacher_writes(spec) else of_student).values())
    waiting = held["teacher_weights"] if plan.offloads_teacher and is_on_gpu else 0
    offload = _offload(teacher.shape, num_tokens, size) if waiting else {"teacher_head": 0, "teacher_pass": 0}
    in_training = waiting if _teacher_writes(spec) else 0
    phases = (
        training + beside + (in_training if beside and in_training else offload["teacher_head"]),
        waiting + offload["teacher_pass"] + beside,
        in_training + sum(of_student.values()),
        waiting + sum(of_teacher.values()) - (held["optimizer"] if _teacher_is_sampled_before_all(spec) else 0),
        waiting + scoring,
    )
    used = sum(held.values()) - held["process"] - waiting + max(phases)
    share = _ALLOCATOR_SHARE_WITH_ADAPTER if has_adapter else _ALLOCATOR_SHARE
    allocator = 0 if is_on_gpu else round(share * used)
    parts = held | {"gradients": gradients} | sampling | update | {"scoring": scoring, "allocator": allocator}
    parts |= {name: size for name, size in offload.items() if size}
    return Memory(parts, held["process"] + used + allocator)


def _rows_together(spec: RunSpec, plan: MemoryPlan, rollout_tokens: int) -> int:
    """Rollouts of the largest micro-batch."""
    num_rows = min(plan.micro_batch_rollouts, spec.rollouts_per_step)
    return num_rows if spec.device == "cuda" else min(num_rows, max(1, _CPU_TOKENS // rollout_tokens))


def _update(
    plan: MemoryPlan, shape: ModelShape, num_tokens: int, size: int, *, has_adapter: bool, is_cast: bool
) -> dict[str, int]:
    """Parts of a micro-batch's forward and backward pass."""
    chunk = _chunk_tokens(shape, num_tokens, size)
    divergence = _CHUNK_TENSORS * size * chunk * shape.vocabulary
    kept = _kept_bytes(shape, size, has_adapter=has_adapter, is_cast=is_cast)
    if plan.recomputes_blocks:  # each block keeps its input, one has all of its own
        kept = shape.layers * shape.hidden * (_FLOAT32 if is_cast else size) + kept // shape.layers
    # A frozen head has no gradient. In float32 chunks are added in place; else each makes one of its own, of a head that was
    # cast, which becomes float32 before it is added to those of earlier chunks.
    cast = 2 * size + (_FLOAT32 if chunk < num_tokens else 0)
    head = 0 if has_adapter else shape.head_parameters * (_FLOAT32 + (cast if is_cast else 0))
    parts = {"activations": num_tokens * kept, "divergence": divergence, "head_gradient": head}
    # Autocast keeps a copy of the blocks for the backward pass; without a gradient it makes one product's at a time.
    return parts | ({"low_precision_copy": shape.block_parameters * size} if is_cast else {})


def _offload(teacher: ModelShape, num_tokens: int, size: int) -> dict[str, int]:
    """What an offloaded teacher has on the device while the student is updated, and what it takes beside its weights to read.

    It reads all micro-batches of a step before the student's first one; its hidden states wait in host memory.
    """
    # At most: without a gradient a block keeps nothing for later.
    one_block = _kept_per_token(teacher) // teacher.layers
    return {"teacher_head": teacher.head_parameters * size, "teacher_pass": num_tokens * one_block * size}


def _teacher_writes(spec: RunSpec) -> bool:
    """Whether the teacher is read while rollouts are collected: it writes some of them, or chooses among them."""
    return spec.completions.kind not in ("student", "data") or spec.selection.kind != "all"


def _teacher_is_sampled_before_all(spec: RunSpec) -> bool:
    """Whether the teacher writes for its own evaluation alone, which is over before an optimizer has anything to remember.

    Texts for the sentinel and for a forward KL are written again, or read, when an attempt goes on from a checkpoint.
    """
    is_warming_up = spec.warmup_phase.num_steps > 0  # perhaps on the teacher's completions
    is_asked_again = spec.sentinel.kind == "watch" or spec.evaluation.num_teacher_texts > 0
    return not (_teacher_writes(spec) or is_warming_up or is_asked_again)


def _kept_bytes(shape: ModelShape, size: int, *, has_adapter: bool, is_cast: bool) -> int:
    """Bytes per token that the blocks keep for the backward pass; what differs from the arithmetic's type are the two norms."""
    beside = 0
    if is_cast:  # residual and norm stay float32, and the products read copies of the latter
        beside = 4 * (_FLOAT32 - size) + 2 * size
    elif has_adapter and size == _FLOAT32:  # frozen norms keep no normalised states
        beside = -2 * size
    elif has_adapter:  # nor do these, but their float32 input; and each LoRA layer casts its input for itself
        beside = 2 * _FLOAT32 - size
    return _kept_per_token(shape) * size + shape.layers * shape.hidden * beside


def _kept_per_token(shape: ModelShape) -> int:
    """Entries per token that the blocks of a Llama keep for the backward pass.

    Per block: 6 · hidden (residual, normalised and scaled, before attention and MLP), queries, the attention's output and
    its copy, keys and values, 4 · intermediate (gate, its activation, up, their product). Fused attention keeps no scores
    (Korthikanti et al. 2022, arXiv 2205.05198, count the same blocks for GPT).
    """
    intermediate = shape.last_product_parameters // shape.hidden
    return 6 * shape.layers * shape.hidden + 3 * shape.attention_width + 2 * shape.kv_width + 4 * intermediate


def _sampling(
    spec: RunSpec,
    plan: MemoryPlan,
    writer: ModelShape,
    prompt_tokens: int,
    longest_horizon: int,
    size: int,
    *,
    in_training: bool = True,
) -> dict[str, int]:
    """Parts of decoding by a model: the largest batch of an evaluation or of the sentinel, and of training if it writes there.

    `size` is that of an entry of the arithmetic and of a key, in bytes.
    """
    evaluation = spec.evaluation
    num_prompts = max(evaluation.num_prompts, evaluation.num_report_prompts if evaluation.report_path else 0)
    num_samples = max(1, evaluation.samples_per_prompt)
    evaluated = max(min(plan.decoded_rollouts, num_prompts * num_samples), num_samples)
    in_step = spec.prompts_per_step * spec.rollouts_per_prompt
    trained = max(min(plan.decoded_rollouts, in_step), spec.rollouts_per_prompt) if in_training else 0
    num_tokens = max(
        trained * (prompt_tokens + longest_horizon), evaluated * (prompt_tokens + spec.max_completion_tokens)
    )
    blocks = writer.block_parameters * _FLOAT32
    joined = blocks if blocks <= _MAX_JOINED_BYTES else 0
    # Whoever decodes on a CPU works on copies that lie as they are read fastest.
    copied = 0 if spec.device == "cuda" else _copied(writer) * size
    return {
        "cache": 2 * num_tokens * writer.kv_width * size,
        "sampling": max(trained, evaluated) * writer.vocabulary * _SAMPLING_BYTES_PER_ENTRY + max(joined, copied),
    }


def _copied(shape: ModelShape) -> int:
    """Weights of which a decoder makes copies: the large ones."""
    is_large = shape.last_product_parameters // shape.layers >= _MIN_PACKED_ENTRIES
    has_large_head = shape.head_parameters >= _MIN_PACKED_ENTRIES
    return (shape.block_parameters if is_large else 0) + (shape.head_parameters if has_large_head else 0)


def _chunk_tokens(shape: ModelShape, num_tokens: int, size: int = _FLOAT32) -> int:
    return min(max(_MIN_CHUNK_TOKENS, _CHUNK_ENTRIES * _FLOAT32 // size // shape.vocabulary), num_tokens)
