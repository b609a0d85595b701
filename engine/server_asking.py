"""Asking several servers at once while the run goes on showing that it lives."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from engine.errors import RunError
from engine.findings import Finding

T = TypeVar("T")
_TURN_SECONDS = 0.1
PAUSE_SECONDS = 1.0
"""Between two looks for a server that answers again."""


async def all_of(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; when one raises, the others are given up."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def beside(work: Coroutine[Any, Any, T], on_wait: Callable[[], None]) -> T:
    """What `work` returns; `on_wait` is called meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_TURN_SECONDS)
            on_wait()
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def unreachable(field: str, reasons: Sequence[str], seconds: float) -> RunError:
    """None of the servers that `field` of the spec names has answered for so long."""
    said = "; ".join(dict.fromkeys(reasons)) or "no reason"
    message = (
        f"No server of {field} has answered for {seconds:.0f} s ({said}); start one of them, then go on: nothing that is done "
        "is lost."
    )
    return RunError("server_unreachable", message, [Finding(field=field, message=message)])


def check_addresses(addresses: Sequence[str], field: str, setting: str) -> None:
    """RunError("bad_spec") for an address that is neither loopback nor in the environment variable `setting`.

    A spec comes from anybody who may start runs; which machines a worker talks to is for its operator to say.
    """
    allowed = {address.rstrip("/") for address in os.environ.get(setting, "").split()}
    findings = []
    for index, address in enumerate(addresses):
        if address.rstrip("/") not in allowed and not _is_loopback(address):
            place = f"{field}.{index}.address"
            message = (
                f"{place} is {address}, which {setting} of the worker does not list; add it there (addresses separated by "
                "spaces), or give a server on the worker's own machine."
            )
            findings.append(Finding(field=place, message=message))
    if findings:
        raise RunError("bad_spec", findings[0].message, findings)


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
