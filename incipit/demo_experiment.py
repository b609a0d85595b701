"""The built-in comparison: finds it in the API or submits it, and follows its runs to their end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from backend.comparison import Comparison, compare
from backend.expansion import planned_runs
from backend.run_states import ENDED_STATES, HELD_STATES
from backend.schemas import Experiment, ExperimentCreate, Preset, Run, RunSummary, Variant
from dashboard.api_client import ApiClient
from engine.flops import ModelShape, rollout_flops, update_flops
from engine.locations import resolve
from engine.spec import RunSpec

_PRESETS = Path(resolve("builtin:presets"))
_POLL_SECONDS = 1.0
_BUDGETED, _BUDGET_OF = "full, prefix 8's FLOPs", "prefix 8"


def demo_experiment(preset_name: str) -> ExperimentCreate:
    """The comparison of a preset; the arm with a FLOPs budget gets that of the arm it is a control for."""
    preset = Preset.model_validate_json((_PRESETS / f"{preset_name}.json").read_text())
    create = ExperimentCreate(name=preset.title, note=preset.description, base=preset.spec, variants=preset.variants)
    by_name = {planned.variant: planned.spec for planned in planned_runs(create)}
    if _BUDGETED not in by_name:
        return create
    budget = fixed_horizon_flops(by_name[_BUDGET_OF])
    variants = [
        Variant(name=v.name, changes={**v.changes, "training_flops_budget": budget}, note=v.note)
        if v.name == _BUDGETED
        else v
        for v in preset.variants
    ]
    return create.model_copy(update={"variants": variants})


def fixed_horizon_flops(spec: RunSpec) -> float:
    """Training FLOPs of a spec if no rollout ends before its horizon, its prompts counted with the student's tokenizer."""
    import json

    from tokenizers import Tokenizer

    folder = Path(resolve(spec.student.path))
    student = ModelShape.from_config(json.loads((folder / "config.json").read_text()))
    teacher = ModelShape.from_config(json.loads((Path(resolve(spec.teacher.path)) / "config.json").read_text()))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with Path(resolve(spec.prompts.path)).open() as file:
        lengths = [len(tokenizer.encode(json.loads(line)["prompt"]).ids) for line in file]
    mean_length = round(sum(lengths) / len(lengths))
    total = 0.0
    for step in range(spec.num_steps):
        horizon = spec.horizon_at(step, spec.prefix_state())
        one = (
            rollout_flops(student, mean_length, [horizon])
            + update_flops(student, teacher, mean_length, horizon).training
        )
        total += spec.rollouts_per_step * one
    return total


def find_or_submit(client: ApiClient, create: ExperimentCreate, say: Callable[[str], None]) -> Experiment:
    """An earlier experiment with the same specs whose runs are at work or done, else a new one."""
    found = find(client, create)
    if found is not None:
        say(f"Found this comparison from {found.created_at:%Y-%m-%d %H:%M}; its runs are used as they are.")
        return found
    say(f"Submitting {len(planned_runs(create))} runs.")
    return client.create_experiment(create.model_dump(mode="json"))


def find(client: ApiClient, create: ExperimentCreate) -> Experiment | None:
    """An earlier experiment that has these specs, whose runs are at work or done; it may have copies of runs beside them."""
    wanted = Counter(planned.spec.model_dump_json() for planned in planned_runs(create))
    for experiment in client.experiments():
        if experiment.name != create.name or experiment.num_runs < wanted.total():
            continue
        usable = [run for run in all_runs(client, experiment) if run.state not in ("failed", "cancelled")]
        if wanted <= Counter(client.run(run.id).spec.model_dump_json() for run in usable):
            return experiment
    return None


def all_runs(client: ApiClient, experiment: Experiment) -> list[RunSummary]:
    """The runs of an experiment, oldest first."""
    page = client.runs(experiment_id=experiment.id, limit=200)
    return sorted(page.items, key=lambda run: (run.created_at, run.id))


def follow(
    client: ApiClient,
    experiment: Experiment,
    console: Console,
    is_alive: Callable[[], None],
    on_end: Callable[[Run], None] = lambda run: None,
) -> list[Run]:
    """Show the runs' progress until all have ended; the runs in full.

    `is_alive` may raise when a service died; `on_end` gets each run as it ends.
    """
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        console=console,
    )
    tasks: dict[str, TaskID] = {}
    ended: set[str] = set()
    with bars:
        while True:
            is_alive()
            runs = all_runs(client, experiment)
            for run in runs:
                if run.id not in tasks:
                    tasks[run.id] = bars.add_task(escape(run.name), total=run.num_steps, status=run.state)
                full = client.run(run.id) if run.state in HELD_STATES and run.id not in ended else None
                bars.update(tasks[run.id], completed=_done_steps(run), status=_status(run, full))
                if run.state in ENDED_STATES and run.id not in ended:
                    ended.add(run.id)
                    bars.stop_task(tasks[run.id])
                    if not console.is_terminal:
                        console.print(f"{run.name}: {_status(run, None)}", markup=False)
                    on_end(client.run(run.id))
            if len(ended) == len(runs):
                return [client.run(run.id) for run in runs]
            time.sleep(_POLL_SECONDS)


def comparison_of(client: ApiClient, runs: list[Run]) -> Comparison:
    """The comparison of finished runs."""
    return compare([(run, client.evaluations(run.id)) for run in runs])


def _done_steps(run: RunSummary) -> int:
    # A run that used up its FLOPs budget is done before its last step.
    return run.num_steps if run.state == "succeeded" else run.step


def _status(run: RunSummary, full: Run | None) -> str:
    if run.state == "succeeded":
        accuracy = run.report_accuracy if run.report_accuracy is not None else run.best_accuracy
        return f"done, {run.step} steps" + (f", accuracy {accuracy:.3f}" if accuracy is not None else "")
    if run.state == "failed":
        return escape(f"failed: {run.failure_message}")
    parts = [run.phase or run.state, f"step {run.step}/{run.num_steps}"]
    if full is not None and full.eta_seconds is not None:
        low, high = full.eta_seconds
        parts.append(f"{low:.0f}–{high:.0f} s left")
    return ", ".join(parts)
