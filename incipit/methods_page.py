"""docs/methods.md: every choice with its source, its spec line, what it cost and what came out, from recorded runs."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime

from backend.comparison import si
from backend.schemas import Evaluation, Run
from incipit.study import Choice, Study

_INTRODUCTION = """# Methods

Made by `incipit study {file}` from the runs of that study; nobody types it. {date}, commit {commit}.

{question} {count} choices, one run each of {steps} steps with one seed on the tiny pair (a student of 112,000 parameters
whose flaw is its first word): this page shows that each choice works and what it costs, not which is best. One run of 24
steps says nothing about the order of two choices. Accuracy and reverse KL are at full length on {prompts} problems; before
training they are {base_accuracy} and {base_kl}, unless a choice changes the prompts. "Ours"
marks what we know of no other source; "our reading" marks a choice whose exact form its publication leaves open.
"""


def methods_page(study: Study, results: dict[str, tuple[Run, list[Evaluation]]], *, file: str, commit: str) -> str:
    """The page; `results` holds the run and the evaluations of each choice by its name.

    ValueError when no run has measured the untrained student.
    """
    bases = [one for _, measured in results.values() for one in measured if one.subject == "base"]
    if not bases:
        raise ValueError(
            "No run of the study has measured the untrained student; see the runs' failures and start it again."
        )
    # That of most choices: those that change the prompts have another one.
    usual, _ = Counter(one.metrics.get("accuracy") for one in bases).most_common(1)[0]
    base = next(one for one in bases if one.metrics.get("accuracy") == usual)
    lines = [
        _INTRODUCTION.format(
            file=file,
            commit=commit,
            question=study.file.question,
            count=len(study.choices),
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            steps=study.file.base.num_steps,
            prompts=base.num_prompts,
            base_accuracy=_figure(base.metrics.get("accuracy")),
            base_kl=_figure(base.metrics.get("reverse_kl")),
        )
    ]
    groups: dict[str, list[Choice]] = {}
    for choice in study.choices:
        groups.setdefault(choice.group, []).append(choice)
    for group in sorted(groups):
        lines += [
            f"\n## {group.capitalize()}\n",
            "| choice | spec | source | cost | steps | training FLOPs | accuracy | reverse KL | EOS rate | proved by |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(_row(choice, *results[choice.name]) for choice in groups[group] if choice.name in results),
        ]
        missing = [choice.choice for choice in groups[group] if choice.name not in results]
        lines += [f"\nMissing, without a recorded run: {', '.join(missing)}."] if missing else []
    return "\n".join(lines) + "\n"


def _row(choice: Choice, run: Run, evaluations: list[Evaluation]) -> str:
    last = max((one for one in evaluations if one.subject == "student"), key=lambda one: one.step, default=None)
    metrics = last.metrics if last else {}
    outcome = [_figure(metrics.get(name)) for name in ("accuracy", "reverse_kl", "eos_rate")]
    if run.state != "succeeded":
        outcome = [f"{run.state}: {run.failure_message or ''}", "–", "–"]
    flops = si(run.flops.training) if run.flops else "–"
    spec = f"`{json.dumps(choice.change, ensure_ascii=False)}`"
    cells = [choice.choice, spec, choice.source, choice.cost, str(run.step), flops, *outcome, f"`{choice.test}`"]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
