"""The model card (README.md) of an exported checkpoint. It imports without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from engine.adapter_spec import Lora
from engine.export_spec import CardFacts
from engine.manifest import stated
from engine.model_spec import ModelSpec

_OF_A_MACHINE = re.compile(r"(home:|upload:|\.{0,2}/|~)")
_ADDRESS = re.compile(r"https?://")
_METRICS = {
    "accuracy": "accuracy",
    "reverse_kl": "reverse KL to the teacher, nats per token",
    "eos_rate": "share of answers that end by themselves",
    "mean_tokens": "tokens per answer",
}


def model_card(facts: CardFacts, notes: list[str]) -> str:
    """The card as Markdown with the hub's header; it tells no paths and addresses of this installation."""
    spec = facts.spec
    student, teacher = _named(spec.student), _named(spec.teacher)
    title = _plain(f"{facts.run_name}, step {facts.step}")
    lines = [
        *_header(spec.student),
        f"# {title}",
        "",
        f"{_code(student)}, trained to follow {_code(teacher)} by prefix on-policy distillation: the student answers, the teacher scores "
        "its tokens, and only the first tokens of each answer carry the loss. Made with Incipit.",
        "",
        "| | |",
        "|---|---|",
        f"| run | {_code(facts.run_name)} (`{facts.run_id}`), experiment {_code(facts.experiment_name)} |",
        f"| step | {facts.step} of {spec.num_steps} |",
        f"| student before training | {_code(student)} |",
        f"| teacher | {_code(teacher)} |",
        f"| prefix | {_code(_told(spec.prefix))} |",
        f"| divergence | {_code(_told(spec.divergence))} |",
        f"| trained weights | {_adapter(spec.adapter)} |",
        *([f"| training FLOPs of the run | {facts.training_flops:.3g} |"] if facts.training_flops is not None else []),
        "",
        *_metric_lines(facts),
        *(f"> {note}\n" for note in notes),
        "## Licence",
        "",
        f"No licence is stated here: that of {_code(student)} holds for these weights, that of {_code(teacher)} may say what its outputs "
        "and scores may be used for, and so may that of the prompts. Read all three before you pass the model on, and then name the "
        "licence in this card.",
        "",
        "## Specification",
        "",
        "Fields at their default are left out.",
        "",
        "```json",
        json.dumps(_published(stated(spec)), indent=1, sort_keys=True),
        "```",
        "",
    ]
    return "\n".join(lines)


def _header(student: ModelSpec) -> Iterator[str]:
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    if not student.is_local:
        yield f"base_model: {json.dumps(student.location)}"
    yield "tags:"
    yield from ("- distillation", "- on-policy-distillation", "- incipit")
    yield "---"
    yield ""


def _metric_lines(facts: CardFacts) -> list[str]:
    if not facts.metrics:
        return ["This step was not evaluated at full length.", ""]
    rows = [
        f"| {words} | {_figure(facts.base_metrics.get(name))} | {_figure(facts.metrics[name])} |"
        for name, words in _METRICS.items()
        if facts.metrics.get(name) is not None
    ]
    return [
        f"Full-length evaluation on {facts.num_prompts} prompts of the run's own evaluation file:",
        "",
        "| measure | before training | this checkpoint |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _adapter(adapter: object) -> str:
    if isinstance(adapter, Lora):
        return f"LoRA of rank {adapter.rank}, alpha {adapter.alpha}, merged into the weights"
    return "all"


def _told(value: object) -> str:
    return json.dumps(stated(value), sort_keys=True)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _named(model: ModelSpec) -> str:
    return str(_published(model.path))


def _published(value: Any) -> Any:
    """A spec as strangers may read it: paths say how somebody's disk is laid out, addresses where their servers are."""
    if isinstance(value, dict):
        return {name: _published(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_published(item) for item in value]
    if isinstance(value, str) and _ADDRESS.match(value):
        return "http://…"
    if isinstance(value, str) and _OF_A_MACHINE.match(value):
        return value.rstrip("/").rpartition("/")[2].rpartition(":")[2] or "…"
    return value


def _plain(text: str) -> str:
    """Text of people on one line, without what Markdown or HTML would act on."""
    return " ".join("".join(one if one.isprintable() and one not in "<>[]`*|\\" else " " for one in text).split())


def _code(text: str) -> str:
    return f"`{_plain(text) or '–'}`"
