"""The API that a command talks to: of a stack that runs already, or of one for as long as the command takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from dashboard.api_client import ApiClient
from incipit.stack.errors import StackError
from incipit.stack.local_stack import LocalStack
from incipit.stack.local_token import local_token
from incipit.stack.state import running_stack


@contextlib.contextmanager
def services(home: Path, say: Callable[[str], None]) -> Iterator[tuple[ApiClient, str | None, Callable[[], None]]]:
    """Client of the API, address of the dashboard and a check that raises once a service has failed; reuses a running stack."""
    running = running_stack(home)
    if running is not None:
        say(f"Using the stack that runs in {home}.")
        with ApiClient(running.api_url, token=local_token(home)) as client:
            yield client, running.dashboard_url, lambda: None
        return
    with LocalStack(home, report=say) as stack:

        def check() -> None:
            if stack.failure:
                raise StackError(stack.failure)

        with ApiClient(stack.api_url, token=local_token(stack.home)) as client:
            yield client, stack.dashboard_url, check
