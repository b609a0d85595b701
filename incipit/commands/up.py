"""`incipit up`: everything on this machine, until Ctrl-C."""

from pathlib import Path
from typing import Annotated

import typer

_FREE = "a free one, as last time if possible"


def up(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the dashboard.", show_default=_FREE)
    ] = None,
    api_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the API.", show_default=_FREE)] = None,
    home: Annotated[
        Path | None, typer.Option(help="Folder of database, runs and logs.", show_default="INCIPIT_HOME")
    ] = None,
    no_dashboard: Annotated[bool, typer.Option("--no-dashboard", help="Start everything but the dashboard.")] = False,
) -> None:
    """Start broker, database, API, worker, control process and dashboard; Ctrl-C ends all of them.

    Example: incipit up --port 8501

    Runs that are at work when it ends write a checkpoint and go on from it at the next start. A closing terminal ends it, too, unless
    it was started with nohup.
    """
    import signal
    import time
    from contextlib import suppress

    from engine.locations import incipit_home
    from incipit.stack import LocalStack, StackError
    from incipit.stack.interrupts import interrupted_by_signals

    def say(line: str) -> None:
        with suppress(OSError):  # the terminal may be closed already; the stack must still end in order
            typer.echo(line)

    stack = LocalStack(
        home or incipit_home(),
        dashboard_port=port,
        api_port=api_port,
        with_dashboard=not no_dashboard,
        report=lambda line: say(f"  {line}"),
    )
    with interrupted_by_signals():
        try:
            say("Starting Incipit …")
            with stack:
                say(f"Incipit runs in {stack.home} · open {stack.dashboard_url or stack.api_url} · Ctrl-C ends it")
                while stack.failure is None:
                    time.sleep(0.2)
                raise StackError(stack.failure)
        except StackError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            stack.stop(seconds=0)  # a second Ctrl-C came while it was ending in order; otherwise nothing is left to end
            say("Everything has ended.")
