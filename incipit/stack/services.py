"""The services that a command talks to: a stack that runs already, or one for as long as the command takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from incipit.stack.errors import StackError
from incipit.stack.local_stack import LocalStack
from incipit.stack.state import running_stack


@contextlib.contextmanager
def services(home: Path, say: Callable[[str], None]) -> Iterator[tuple[str, str | None, Callable[[], None]]]:
    """API address, dashboard address and a check that raises once a service has failed; reuses a running stack."""
    running = running_stack(home)
    if running is not None:
        say(f"Using the stack that runs in {home}.")
        yield running.api_url, running.dashboard_url, lambda: None
        return
    with LocalStack(home, report=say) as stack:

        def check() -> None:
            if stack.failure:
                raise StackError(stack.failure)

        yield stack.api_url, stack.dashboard_url, check
