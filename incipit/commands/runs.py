"""`incipit runs`: what people ask of runs, from the command line."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from backend.schemas import Run, RunSummary
    from dashboard.api_client import ApiClient

app = typer.Typer(no_args_is_help=True, help="List, pause, resume, cancel, retry and copy runs.")

RunId = Annotated[
    str, typer.Argument(help="The run's id, the beginning or end of it, or its name.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_MAX_LISTED = 200
_MAX_TOLD = 10  # ids in one sentence


@app.command("list")
def list_runs(
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Only runs in this state; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=_MAX_LISTED, help="How many.")] = 20,
    json: AsJson = False,
) -> None:
    """The newest runs.

    Example: incipit runs list --state running
    """
    from incipit.connection import connection

    with connection() as client:
        items = client.runs(states=state or (), limit=limit).items
    if json:
        typer.echo(f"[{', '.join(run.model_dump_json() for run in items)}]")
        return
    table = Table("run", "state", "step", "accuracy", box=None)
    table.add_column("id", no_wrap=True, min_width=36)
    for run in items:
        best = run.report_accuracy if run.report_accuracy is not None else run.best_accuracy
        accuracy = "–" if best is None else f"{best:.3f}"
        table.add_row(run.name, run.state, f"{run.step}/{run.num_steps}", accuracy, run.id)
    console = Console()
    console.print(table)
    for reason in dict.fromkeys(run.waits_because for run in items if run.waits_because):
        names = [run.name for run in items if run.waits_because == reason]
        who = f"{names[0]} waits" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more wait"
        console.print(f"{who}: {reason}", markup=False, highlight=False)


@app.command()
def show(run_id: RunId, json: AsJson = False) -> None:
    """One run: its state, its progress and the last lines of its history.

    Example: incipit runs show 'prefix 8'
    """
    from incipit.connection import connection

    with connection() as client:
        run = client.run(_full_id(client, run_id))
        history = client.events(run.id, kinds=("state",)).items
    if json:
        typer.echo(run.model_dump_json(indent=1))
        return
    _say(run)
    for event in history[-10:]:
        typer.echo(f"  {event.time:%Y-%m-%d %H:%M:%S}  {event.payload['state']}: {event.payload['reason']}")


@app.command()
def cancel(
    run_id: RunId,
    now: Annotated[bool, typer.Option("--now", help="Do not save the step it is at.")] = False,
    json: AsJson = False,
) -> None:
    """End a run, with a checkpoint of the step it is at.

    Example: incipit runs cancel 'prefix 8'
    """
    _ask(run_id, lambda client, id: client.cancel(id, checkpoint=not now), json=json)


@app.command()
def pause(run_id: RunId, json: AsJson = False) -> None:
    """Let a run write a checkpoint and leave its worker free.

    Example: incipit runs pause 'prefix 8'
    """
    _ask(run_id, lambda client, id: client.pause(id), json=json)


@app.command()
def resume(run_id: RunId, json: AsJson = False) -> None:
    """Queue a paused run again.

    Example: incipit runs resume 'prefix 8'
    """
    _ask(run_id, lambda client, id: client.resume(id), json=json)


@app.command()
def retry(
    run_id: RunId,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Begin with the first step.")] = False,
    json: AsJson = False,
) -> None:
    """Queue a failed or cancelled run again, from its last checkpoint.

    Example: incipit runs retry 'prefix 8'
    """
    _ask(run_id, lambda client, id: client.retry(id, from_scratch=from_scratch), json=json)


@app.command()
def clone(
    run_id: RunId,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Field of the spec and its new value, such as num_steps=40.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the copy.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the copy.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="Label that its worker must have; may be repeated, '' is none.")
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option("--memory-gb", min=0, help="Memory that its worker must have, 0 is any; else as estimated."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Queue a copy of a run with some fields changed, in the same experiment.

    Example: incipit runs clone 'prefix 8' --set num_steps=40 --set 'prefix={"kind": "full"}'
    """
    changes = dict(_change(one) for one in change or ())

    def ask(client: ApiClient, id: str) -> Run:
        return client.clone(id, changes, name=name, seed=seed, needs=_needs(client, id, label, memory_gb))

    _ask(run_id, ask, json=json)


def _needs(
    client: ApiClient, run_id: str, labels: list[str] | None, memory_gb: float | None
) -> dict[str, object] | None:
    """What is asked of a copy's worker; None where nothing is said, so that it is as the run has it."""
    if labels is None and memory_gb is None:
        return None
    kept = client.run(run_id).needs.labels if labels is None else [label for label in labels if label]
    return {"labels": kept, "memory_bytes": None if memory_gb is None else round(memory_gb * 1e9)}


# -10 is a number here, not an option.
@app.command(context_settings={"ignore_unknown_options": True})
def priority(
    run_id: RunId,
    value: Annotated[int, typer.Argument(help="From -100 to 100; queued runs with a higher one come first.")],
    json: AsJson = False,
) -> None:
    """Say how urgent a run is.

    Example: incipit runs priority 'prefix 8' 10
    """
    _ask(run_id, lambda client, id: client.set_priority(client.run(id), value), json=json)


def _ask(run_id: str, ask: Callable[[ApiClient, str], Run], *, json: bool) -> None:
    from incipit.connection import connection

    with connection() as client:
        run = ask(client, _full_id(client, run_id))
    if json:
        typer.echo(run.model_dump_json(indent=1))
    else:
        _say(run)


def _say(run: RunSummary) -> None:
    from backend.run_states import ACTIVE_STATES

    wish = {"pause": ", to be paused", "cancel": ", to be cancelled"}
    wanted = wish.get(run.desired_state, "") if run.state in ACTIVE_STATES else ""
    typer.echo(f"{run.id}  {run.name}: {run.state}{wanted}, step {run.step} of {run.num_steps}, attempt {run.attempt}")
    for sentence in (run.failure_message, run.waits_because):
        if sentence:
            typer.echo(sentence)


def _full_id(client: ApiClient, given: str) -> str:
    """The id that is meant, among the newest runs; as it is when none fits, for the API to judge."""
    if not given:
        _refuse("The run is empty, such as from a variable that is not set; give an id or a name.")
    newest = client.runs(limit=_MAX_LISTED).items
    for found in (
        [run.id for run in newest if run.id == given],
        [run.id for run in newest if run.name == given],
        [run.id for run in newest if run.id.startswith(given) or run.id.endswith(given)],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            told = ", ".join(found[:_MAX_TOLD]) + (", …" if len(found) > _MAX_TOLD else "")
            _refuse(f"{len(found)} runs are called {given!r} or have it in their id; give the id of one: {told}.")
    return given


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)


def _change(text: str) -> tuple[str, Any]:
    field, sign, value = text.partition("=")
    if not sign or not field:
        typer.echo(f"--set is {text!r}; write FIELD=VALUE, such as num_steps=40.", err=True)
        raise typer.Exit(2)
    try:
        return field, jsonlib.loads(value)
    except ValueError:
        return field, value  # a word without quotes
