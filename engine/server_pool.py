"""Several servers as one: completions go to whichever is free, those of a server that is lost to the others."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from engine.errors import RunError
from engine.findings import Finding
from engine.rollout_backend_spec import VllmRollouts
from engine.served_weights import ServedWeights
from engine.vllm_server import INITIAL_WEIGHTS, Answer, Ask, Draws, ServerGone, VllmServer

_T = TypeVar("_T")

_ALLOWED = "INCIPIT_ROLLOUT_SERVERS"
_TURN_SECONDS = 0.1
_PAUSE_SECONDS = 1.0  # between two looks for a server that answers again

_Sessions = dict[VllmServer, httpx.AsyncClient]


class ServerPool:
    """The rollout servers of one run."""

    def __init__(self, spec: VllmRollouts, num_tokens: int) -> None:
        """`num_tokens` is the longest text of the run. Raises RunError("bad_spec") for a server that may not be asked."""
        self.spec = spec
        self.num_tokens = num_tokens
        _check_addresses([server.address for server in spec.servers])
        self.servers = [VllmServer(server.address) for server in spec.servers]
        self.trial: ServedWeights | None = None
        """Weights unlike the student's, which a server has to take before it is given those."""
        self.num_lost = 0
        """How often a server was lost while it had something to answer."""
        self.loading_seconds = 0.0
        """How long servers were brought to their weights, at the last completions."""
        self.logprob_gap: float | None = None
        """The largest difference found when weights were loaded last, nats."""

    def complete(
        self, asks: list[Ask], draws: Draws, weights: ServedWeights, on_wait: Callable[[], None]
    ) -> list[Answer]:
        """An answer to each ask, all of them sampled with `weights`; `on_wait` is called all the time and may raise to stop.

        Raises RunError("server_unreachable") when no server has answered for `patience_seconds`.
        """
        return asyncio.run(self._complete(asks, draws, weights, on_wait))

    def look(self) -> list[Finding]:
        """What stands in the way of each server, without giving it weights: another run may use it now."""
        return asyncio.run(self._look())

    async def _look(self) -> list[Finding]:
        findings = []
        for index, server in enumerate(self.servers):
            field = f"rollouts.servers.{index}.address"
            async with server.session(1) as session:
                try:
                    await server.check(session, self.num_tokens)
                    await server.version(session)
                except ServerGone as gone:
                    message = (
                        f"{field}: no server answers now ({gone}); start it with incipit rollout-server before the run."
                    )
                    findings.append(Finding(field=field, message=message, severity="warning"))
                except RunError as error:
                    findings.append(Finding(field=field, message=error.message))
        return findings

    async def _complete(
        self, asks: list[Ask], draws: Draws, weights: ServedWeights, on_wait: Callable[[], None]
    ) -> list[Answer]:
        answers: dict[int, Answer] = {}
        last_sign = time.monotonic()
        self.logprob_gap, self.loading_seconds = None, 0.0
        async with AsyncExitStack() as stack:
            sessions: _Sessions = {
                server: await stack.enter_async_context(server.session(self.spec.max_concurrent))
                for server in self.servers
            }
            while True:
                began = time.monotonic()
                ready, reasons = await _beside(self._ready(sessions, weights), on_wait)
                self.loading_seconds += time.monotonic() - began
                if ready:
                    last_sign = time.monotonic()
                    asked = _Round(asks, draws, answers, self.spec.max_concurrent)
                    reasons += await _beside(asked.run(ready, weights), on_wait)
                    self.num_lost += len(ready) - sum(server.weights == weights.version for server in ready)
                if len(answers) == len(asks):
                    return [answers[index] for index in range(len(asks))]
                if time.monotonic() - last_sign > self.spec.patience_seconds:
                    raise _unreachable(reasons, self.spec.patience_seconds)
                await _beside(asyncio.sleep(_PAUSE_SECONDS), on_wait)

    async def _ready(self, sessions: _Sessions, weights: ServedWeights) -> tuple[_Sessions, list[str]]:
        """The servers that have the weights now, and why the others have not."""
        tries = (self._prepare(server, session, weights) for server, session in sessions.items())
        found = await asyncio.gather(*tries, return_exceptions=True)
        for one in found:
            if one is not None and not isinstance(one, ServerGone):
                raise one
        ready = {server: sessions[server] for server, one in zip(sessions, found, strict=True) if one is None}
        return ready, [str(one) for one in found if one is not None]

    async def _prepare(self, server: VllmServer, session: httpx.AsyncClient, weights: ServedWeights) -> None:
        """Bring a server to the weights, and see that it has them."""
        await server.check(session, self.num_tokens)
        found = await server.version(session)
        if found == weights.version == server.weights:
            return
        if server.weights is not None and found not in (server.weights, INITIAL_WEIGHTS):
            raise server.taken(found)
        if found == INITIAL_WEIGHTS:  # another process than before, perhaps started otherwise
            server.is_tried = False
        if self.trial is not None and not server.is_tried:
            await self._load(server, session, self.trial)
            server.is_tried = True
        self.logprob_gap = max(await self._load(server, session, weights), self.logprob_gap or 0.0)
        server.weights = weights.version

    async def _load(self, server: VllmServer, session: httpx.AsyncClient, weights: ServedWeights) -> float:
        """Give a server weights; how far its log-probabilities are from the engine's then, in nats."""
        await server.load(session, weights.folder, weights.version)
        gap = weights.gap(await server.logprobs(session, weights.fixed_tokens))
        if not gap <= self.spec.max_logprob_gap:
            raise server.mismatch(
                f"finds the same {len(weights.fixed_tokens)} tokens {gap:.2f} nats more or less likely than the engine does with "
                f"the weights that it was given, more than rollouts.max_logprob_gap ({self.spec.max_logprob_gap}); start it "
                "with `incipit rollout-server` on the student's model, in the run's precision."
            )
        return gap


class _Round:
    """One try to get all answers that are missing."""

    def __init__(self, asks: list[Ask], draws: Draws, answers: dict[int, Answer], max_concurrent: int) -> None:
        self._asks, self._draws, self._answers = asks, draws, answers
        self._max_concurrent = max_concurrent
        self._open = deque(index for index in range(len(asks)) if index not in answers)
        self._reasons: list[str] = []

    async def run(self, sessions: _Sessions, weights: ServedWeights) -> list[str]:
        """Ask until all is answered or no server is left; why servers were lost."""
        served = [self._serve(server, session, weights) for server, session in sessions.items()]
        await _all(served)
        return self._reasons

    async def _serve(self, server: VllmServer, session: httpx.AsyncClient, weights: ServedWeights) -> None:
        """What one server answers; it counts when the server still has the weights behind it."""
        mine: dict[int, Answer] = {}
        lanes = [self._lane(server, session, mine) for _ in range(min(self._max_concurrent, len(self._open)))]
        await _all(lanes)
        if server.weights is not None:
            try:
                found = await server.version(session)
            except ServerGone as gone:
                self._lose(server, gone)
            else:
                if found not in (weights.version, INITIAL_WEIGHTS):
                    raise server.taken(found)
                if found == INITIAL_WEIGHTS:  # started anew
                    server.weights = None
        if server.weights is not None:
            self._answers.update(mine)

    async def _lane(self, server: VllmServer, session: httpx.AsyncClient, mine: dict[int, Answer]) -> None:
        while self._open and server.weights is not None:
            index = self._open.popleft()
            try:
                mine[index] = await server.complete(session, self._asks[index], self._draws)
            except ServerGone as gone:
                self._open.append(index)
                self._lose(server, gone)

    def _lose(self, server: VllmServer, gone: ServerGone) -> None:
        server.weights = None
        self._reasons.append(str(gone))


async def _all(work: list[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; when one raises, the others are given up."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _beside(work: Coroutine[Any, Any, _T], on_wait: Callable[[], None]) -> _T:
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


def _unreachable(reasons: list[str], seconds: float) -> RunError:
    said = "; ".join(dict.fromkeys(reasons)) or "no reason"
    message = (
        f"No rollout server has answered for {seconds:.0f} s ({said}); start one of rollouts.servers, then resume: nothing of "
        "the steps so far is lost."
    )
    return RunError("server_unreachable", message, [Finding(field="rollouts.servers", message=message)])


def _check_addresses(addresses: list[str]) -> None:
    """A spec comes from anybody who may start runs; which machines a worker talks to is for its operator to say."""
    allowed = {address.rstrip("/") for address in os.environ.get(_ALLOWED, "").split()}
    findings = []
    for index, address in enumerate(addresses):
        if address.rstrip("/") not in allowed and not _is_loopback(address):
            field = f"rollouts.servers.{index}.address"
            message = (
                f"{field} is {address}, which {_ALLOWED} of the worker does not list; add it there (addresses separated by "
                "spaces), or give a server on the worker's own machine."
            )
            findings.append(Finding(field=field, message=message))
    if findings:
        raise RunError("bad_spec", findings[0].message, findings)


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
