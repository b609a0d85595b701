"""The API that a command speaks to: the one at INCIPIT_API_URL, with INCIPIT_API_KEY, or that of this machine's stack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from dashboard.api_client import ApiClient
from dashboard.api_errors import ApiError, Invalid
from engine.locations import incipit_home
from incipit.stack.local_token import local_token
from incipit.stack.state import running_stack


@contextmanager
def connection() -> Iterator[ApiClient]:
    """A client for the block; what the API refuses ends the command with its sentence and exit code 1."""
    url, token = os.environ.get("INCIPIT_API_URL"), os.environ.get("INCIPIT_API_KEY")
    if not url:
        url, token = _local_url(incipit_home()), local_token(incipit_home())
    with ApiClient(url, token=token) as client:
        try:
            yield client
        except ApiError as error:
            findings = [finding.message for finding in error.findings] if isinstance(error, Invalid) else []
            typer.echo("\n".join(findings) or str(error), err=True)
            raise typer.Exit(1) from None


def _local_url(home: Path) -> str:
    running = running_stack(home)
    if running is None:
        typer.echo(f"Nothing runs in {home}; start it with `incipit up`, or set INCIPIT_API_URL.", err=True)
        raise typer.Exit(1)
    return running.api_url
