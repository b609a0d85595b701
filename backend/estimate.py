"""What a run will cost, computed before it starts: from two config.json files and the spec; no model is opened."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backend.estimates import Estimate, PhaseSeconds
from backend.problems import invalid
from backend.step_costs import Batch, StepCosts, horizons
from engine.adapter_shape import ADAPTABLE, AdapterShape
from engine.adapter_spec import Adapter, Lora, NoAdapter
from engine.findings import Finding
from engine.flops import (
    FlopLedger,
    ModelShape,
    rollout_flops,
    rollout_ledger,
    student_flops,
)
from engine.gated_dense import complete_config
from engine.locations import resolve
from engine.memory import Model, longest_horizon, memory
from engine.memory_choice import least
from engine.memory_plan import NO_OFFLOAD_ON_A_CPU
from engine.model_spec import ModelSpec
from engine.sentinel_spec import WatchTail
from engine.spec import RunSpec
from engine.warmup_spec import SftWarmup

_MAX_CONFIG_BYTES = 1024 * 1024
_MAX_ENTRIES = 10**15  # of any product of sizes in a config.json; beyond it the arithmetic would only mislead
_MAX_PROMPT_BYTES = 4_000_000
_SAMPLED_PROMPTS = 200
_TOKENS_PER_WORD = 1.4  # of English text under common tokenizers; others are stated as an assumption
_UNKNOWN_PROMPT_TOKENS = 128
_MAX_SHOWN = 200  # horizons in the preview


def estimate(spec: RunSpec, rates: Sequence[float]) -> Estimate:
    """The cost of a run; `rates` are the FLOP/s of earlier runs of the same two models, if there are any.

    Refuses a spec whose models have no readable config.json on this machine.
    """
    student = model_of(spec.student, "student.path", spec.adapter)
    teacher = model_of(spec.teacher, "teacher.path", NoAdapter())
    prompt_tokens, assumptions = prompt_tokens_of(spec)
    shortest, longest = horizons(spec)
    of_step = StepCosts(spec, student.shape, teacher.shape, prompt_tokens)
    warmup = _warmup_flops(spec, student.shape, teacher.shape, prompt_tokens)
    num_steps = of_step.steps_within_budget(shortest, warmup)
    num_updates = spec.warmup_phase.num_steps + num_steps
    rest = warmup + _evaluation_flops(spec, num_updates, student.shape, teacher.shape, prompt_tokens)
    flops = of_step.total(shortest, num_steps) + rest
    is_adaptive = shortest != longest
    full = of_step[Batch(spec.max_completion_tokens, spec.prompts_per_step)] * num_steps + rest
    horizon = longest_horizon(spec)
    used = memory(spec, student, teacher, prompt_tokens, horizon)
    fewest = memory(spec, student, teacher, prompt_tokens, horizon, least(spec))
    shown = sorted({round(i * (spec.num_distillation_steps - 1) / (_MAX_SHOWN - 1)) for i in range(_MAX_SHOWN)})
    previews = [spec.preview_at(step) for step in shown]
    return Estimate(
        flops=flops,
        is_most=_may_end_sooner(spec),
        full_length_flops=full,
        flops_at_fastest_growth=of_step.total(longest, num_steps) + rest if is_adaptive else None,
        saving=full.training / flops.training,
        memory_bytes=used.parts,
        memory_total_bytes=used.total,
        memory_least_bytes=fewest.total,
        seconds=PhaseSeconds(low=flops.training / max(rates), high=flops.training / min(rates)) if rates else None,
        horizons=[low for low, _ in previews],
        longest_horizons=[high for _, high in previews] if is_adaptive else [],
        horizon_steps=[spec.warmup_phase.num_steps + step for step in shown],
        assumptions=assumptions + _assumptions(spec, num_updates, rates, is_adaptive=is_adaptive),
    )


def _warmup_flops(spec: RunSpec, student: ModelShape, teacher: ModelShape, prompt_tokens: int) -> FlopLedger:
    """The warm-up phase on completions of full length, if no prompt comes twice."""
    phase, length = spec.warmup_phase, spec.max_completion_tokens
    if not isinstance(phase, SftWarmup):
        return FlopLedger()
    each = student_flops(student, prompt_tokens + length, length, recomputes_blocks=spec.recomputes_blocks)
    if phase.source == "teacher":
        each += rollout_ledger(teacher, prompt_tokens, [length])
    return each * (phase.num_steps * phase.prompts_per_step)


def _evaluation_flops(
    spec: RunSpec, num_steps: int, student: ModelShape, teacher: ModelShape, prompt_tokens: int
) -> FlopLedger:
    """Base, teacher and student on the dev split, and all three on the report split; everything at full length."""
    length, evaluation = spec.max_completion_tokens, spec.evaluation
    num_reported = evaluation.num_report_prompts if evaluation.report_path else 0

    def generation(model: ModelShape, num_prompts: int) -> float:
        # Greedy completions of all prompts, samples of the first few.
        both = num_prompts + min(evaluation.num_sampled, num_prompts)
        several = [length] * evaluation.samples_per_prompt
        of_samples = num_prompts * rollout_flops(model, prompt_tokens, several) if several else 0.0
        return both * rollout_flops(model, prompt_tokens, [length]) + of_samples

    def scoring(num_prompts: int) -> float:
        forward = sum(model.forward(prompt_tokens + length, length) for model in (student, teacher))
        return (
            sum(min(count, num_prompts) for count in (evaluation.num_sampled, evaluation.num_teacher_texts)) * forward
        )

    watched = spec.sentinel
    num_watched = watched.num_rollouts if isinstance(watched, WatchTail) else 0
    at_ends = student.forward(prompt_tokens + length, 1)
    whole = sum(model.forward(prompt_tokens + length, length) for model in (student, teacher))
    of_sentinel = watched.num_measurements(num_steps - spec.warmup_phase.num_steps) * (
        rollout_flops(student, prompt_tokens, [length]) + whole + at_ends
    )
    of_sentinel += rollout_flops(teacher, prompt_tokens, [length]) + teacher.forward(prompt_tokens + length, 1)

    num_evaluated = -(-num_steps // evaluation.every_steps) + 1
    of_student = num_evaluated * (generation(student, evaluation.num_prompts) + scoring(evaluation.num_prompts))
    num_texts = sum(min(evaluation.num_teacher_texts, count) for count in (evaluation.num_prompts, num_reported))
    texts = num_texts * rollout_flops(teacher, prompt_tokens, [length])
    of_teacher = generation(teacher, evaluation.num_prompts) + texts
    reported = 2 * (generation(student, num_reported) + scoring(num_reported)) + generation(teacher, num_reported)
    return FlopLedger(evaluation=of_student + of_teacher + reported + num_watched * of_sentinel)


def model_of(model: ModelSpec, field: str, adapter: Adapter) -> Model:
    """What its config.json says of a model. Refuses one that has none on this machine, or an odd one, by the name of its field."""
    remedy = "run a preflight, which looks at it on a worker."
    try:
        path = Path(resolve(model.path)) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(path)
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"config.json is larger than {_MAX_CONFIG_BYTES} bytes.")
        config = complete_config(json.loads(path.read_bytes()))
        shape = ModelShape.from_config(config)
        if not all(1 <= value <= _MAX_ENTRIES for value in shape.model_dump(exclude={"adapter"}).values()):
            raise ValueError("config.json has sizes that no model has.")
        if isinstance(adapter, Lora):
            added = AdapterShape.from_config(config, adapter.rank, adapter.target_modules or ADAPTABLE)
            shape = shape.model_copy(update={"adapter": added})
    except OSError:
        message = f"{field} is {model.path!r}, which has no config.json on the API's machine; {remedy}"
        raise invalid([Finding(field=field, message=message)]) from None
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        message = f"{field} is {model.path!r}, whose cost cannot be estimated ({str(error)[:200]}); {remedy}"
        raise invalid([Finding(field=field, message=message)]) from None
    embeddings = 1 if config["tie_word_embeddings"] else 2
    return Model(shape, shape.block_parameters + embeddings * shape.head_parameters)


def prompt_tokens_of(spec: RunSpec) -> tuple[int, list[str]]:
    """Mean prompt length in tokens, and what was assumed for it."""
    try:
        words = _words_per_prompt(Path(resolve(spec.prompts.path)), spec.prompts.prompt_column)
    except (OSError, ValueError, RecursionError):
        words = []
    if not words:
        guess = f"Prompts have {_UNKNOWN_PROMPT_TOKENS} tokens: the prompt file cannot be read on the API's machine."
        return _UNKNOWN_PROMPT_TOKENS, [guess]
    tokens = max(1, round(_TOKENS_PER_WORD * sum(words) / len(words)))
    text = f"Prompts have {tokens} tokens: {_TOKENS_PER_WORD} per word of the first {len(words)} prompts"
    return tokens, [text + (", chat template not counted." if spec.prompts.template == "chat" else ".")]


def _words_per_prompt(path: Path, column: str) -> list[int]:
    words: list[int] = []
    if not path.is_file():
        return words
    with path.open("rb") as file:
        for _ in range(_SAMPLED_PROMPTS):
            line = file.readline(_MAX_PROMPT_BYTES)
            row: Any = json.loads(line) if line.strip() else None
            if isinstance(row, dict) and isinstance(row.get(column), str):
                words.append(len(row[column].split()))
    return words


def _may_end_sooner(spec: RunSpec) -> bool:
    watched = spec.sentinel
    stops = isinstance(watched, WatchTail) and watched.action.kind == "stop"
    return stops or spec.early_stopping.kind != "none"


def _assumptions(spec: RunSpec, num_steps: int, rates: Sequence[float], *, is_adaptive: bool) -> list[str]:
    stated = [
        "No completion ends before its horizon; evaluation runs every completion to the full length.",
        "Memory is for one process at its busiest moment; the parts follow each other and do not add up.",
    ]
    if spec.device == "auto" and spec.precision == "auto":
        stated.append(
            "Memory is for float32. `auto` is bfloat16, which needs less, on a GPU and for wide students on CPUs that gain from it."
        )
    if spec.micro_batch_rollouts == "auto":
        stated.append(
            f"Micro-batches have {spec.usual_micro_batch} rollouts; the worker takes as many as fit into its free memory."
        )
    if spec.gradient_checkpointing == "auto":
        stated.append("Blocks run once; the worker recomputes them where the update does not fit otherwise.")
    if spec.teacher_offload == "always" and spec.device != "cuda":
        stated.append(NO_OFFLOAD_ON_A_CPU[:1].upper() + NO_OFFLOAD_ON_A_CPU[1:])
    if spec.teacher_offload == "auto" and spec.device == "cuda" and not spec.shares_base:
        stated.append("The teacher stays on the GPU; the worker offloads it where the run does not fit otherwise.")
    if is_adaptive:
        stated.append(
            "How the prefix grows is known only in training: FLOPs and time are for one that stays at its start, memory is "
            "for one that grows as fast as it may."
        )
    if isinstance(spec.sentinel, WatchTail) and spec.sentinel.action.kind != "warn":
        stated.append("The sentinel finds no drift: what it would do then changes the cost.")
    if spec.early_stopping.kind != "none":
        stated.append("Early stopping does not end the run: FLOPs and time are at most these.")
    if num_steps < spec.num_steps:
        stated.append(f"The FLOPs budget ends the run after step {num_steps} of {spec.num_steps}.")
    if rates:
        stated.append(f"Time is for training alone, at the speed of {len(rates)} earlier runs of these models.")
    return stated
