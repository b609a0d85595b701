"""Work of the engine in this process, with a bar; what is wrong is said in sentences and ends the command."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def with_progress(title: str, work: Callable[[Callable[[float, str], None]], T]) -> T:
    """What `work` returns; it is given a function that tells how much is done. Ends the command on a RunError."""
    import transformers

    from engine.errors import RunError
    from engine.exit_codes import OF_FAILURE

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(escape(title), total=1.0)
        try:
            return work(lambda done, detail: bar.update(task, completed=done, description=escape(detail)))
        except RunError as error:
            for message in [finding.message for finding in error.findings] or [error.message]:
                typer.echo(message, err=True)
            raise typer.Exit(OF_FAILURE[error.failure]) from None
