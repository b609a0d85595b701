"""`incipit track`: a run's events, written into a tracker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from incipit.tracking.record import Sink
    from incipit.tracking.run_folder import RunFolder

Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]
_PAUSE_SECONDS = 0.5


def track(
    run: Annotated[
        str, typer.Argument(help="A run folder, or the id of a run of this machine's stack.", show_default=False)
    ],
    to: Annotated[Tracker, typer.Option("--to", help="The tracker.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder of the tracker's files.")] = Path("out/trackers"),
    uri: Annotated[
        str | None, typer.Option("--uri", help="MLflow's server or store; without it, mlflow.db in --out.")
    ] = None,
    project: Annotated[str, typer.Option("--project", help="Project or experiment in the tracker.")] = "incipit",
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run ends.")] = False,
) -> None:
    """Write what a run has recorded into TensorBoard, MLflow, Weights & Biases (offline) or trackio.

    Example: incipit track out/prefix-8 --to tensorboard --follow

    It reads the run folder and is no part of the run: a tracker that hangs or is missing cannot stop it. Again is not twice.
    """
    from incipit.tracking.run_folder import RunFolder

    if uri is not None and to != "mlflow":
        typer.echo(f"--uri is MLflow's and --to is {to}; leave --uri out, or name a folder with --out.", err=True)
        raise typer.Exit(2)
    folder = RunFolder(_folder(run))
    try:
        _replay(folder, _sink(to, out, uri, project), follow=follow)
    except ModuleNotFoundError as error:
        needed = (error.name or to).partition(".")[0]
        typer.echo(
            f"{needed} is not installed here and --to {to} needs it; install it with: pip install {to}", err=True
        )
        raise typer.Exit(1) from None
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (
        Exception
    ) as error:  # the outermost frame: a tracker's library raises what it likes, and the run is not concerned
        typer.echo(f"{to} did not take the run ({_cause(error)}); the run itself is untouched, try again.", err=True)
        raise typer.Exit(1) from None


def _replay(folder: RunFolder, sink: Sink, *, follow: bool) -> None:
    import time

    from engine.events import Started
    from incipit.tracking.adapter import EventAdapter, outcome_of
    from incipit.tracking.record import Measurement, Outcome, TrackedRun

    while (identity := folder.identity()) is None:
        if not follow:
            typer.echo("No event of the run is on disk yet; wait for it with --follow.", err=True)
            raise typer.Exit(1)
        time.sleep(_PAUSE_SECONDS)
    adapter, spec = EventAdapter(), folder.spec()
    id, started = identity
    sink.begin(TrackedRun(id, str(spec.get("name", id)), started, adapter.parameters(spec)))
    outcome: Outcome | None = None
    num_measurements = 0
    try:
        for event in folder.events(follow=follow):
            outcome = None if isinstance(event, Started) else outcome_of(event) or outcome
            for told in adapter.told(event):
                if isinstance(told, Measurement):
                    sink.measure(told)
                    num_measurements += 1
                else:
                    sink.note(told)
    finally:
        sink.end(outcome)
    typer.echo(f"Run {id}: {num_measurements} measurements written, {outcome or 'not ended yet'}.")


def _folder(run: str) -> Path:
    from engine.locations import incipit_home

    for folder in (Path(run), incipit_home() / "runs" / run):
        if (folder / "spec.json").is_file():
            return folder
    typer.echo(
        f"{run} is no run folder (it has no spec.json) and no run in {incipit_home() / 'runs'}; name one of them.",
        err=True,
    )
    raise typer.Exit(1)


def _sink(to: Tracker, out: Path, uri: str | None, project: str) -> Sink:
    match to:
        case "tensorboard":
            from incipit.tracking.tensorboard_sink import TensorBoardSink

            return TensorBoardSink(out)
        case "mlflow":
            from incipit.tracking.mlflow_sink import MlflowSink

            out.mkdir(parents=True, exist_ok=True)
            return MlflowSink(uri or f"sqlite:///{out.absolute() / 'mlflow.db'}", project)
        case "wandb":
            from incipit.tracking.wandb_sink import WandbSink

            return WandbSink(out, project)
        case "trackio":
            from incipit.tracking.trackio_sink import TrackioSink

            return TrackioSink(out, project)


def _cause(error: Exception) -> str:
    """Its first line; an address in it may hold a password."""
    import os

    from backend.redaction import Redaction

    lines = Redaction(os.environ)(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
