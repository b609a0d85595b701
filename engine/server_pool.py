"""Several servers as one: completions go to whichever is free, those of a server that is lost to the others."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack

import httpx

from engine.errors import RunError
from engine.findings import Finding
from engine.rollout_backend_spec import VllmRollouts
from engine.served_weights import ServedWeights
from engine.server_asking import PAUSE_SECONDS, all_of, beside, check_addresses, unreachable
from engine.vllm_answer import Answer, Ask, Draws
from engine.vllm_server import INITIAL_WEIGHTS, ServerGone, VllmServer

_ALLOWED = "INCIPIT_ROLLOUT_SERVERS"

_Sessions = dict[VllmServer, httpx.AsyncClient]


class ServerPool:
    """The rollout servers of one run."""

    def __init__(self, spec: VllmRollouts, num_tokens: int) -> None:
        """`num_tokens` is the longest text of the run. Raises RunError("bad_spec") for a server that may not be asked."""
        self.spec = spec
        self.num_tokens = num_tokens
        check_addresses([server.address for server in spec.servers], "rollouts.servers", _ALLOWED)
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

        Raises RunError("server_unreachable") when no completion has come for `patience_seconds` since a round went without one.
        """
        return asyncio.run(self._complete(asks, draws, weights, on_wait))

    def look(self) -> list[Finding]:
        """What stands in the way of each server, without giving it weights: another run may use it now."""
        return asyncio.run(self._look())

    def mismatch(self, words: str) -> RunError:
        """One of the servers does not do what the run needs."""
        return self.servers[0].mismatch(words)

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
        silent_since: float | None = None
        self.logprob_gap, self.loading_seconds = None, 0.0
        async with AsyncExitStack() as stack:
            sessions: _Sessions = {
                server: await stack.enter_async_context(server.session(self.spec.max_concurrent))
                for server in self.servers
            }
            while True:
                began = time.monotonic()
                ready, reasons = await beside(self._ready(sessions, weights), on_wait)
                self.loading_seconds += time.monotonic() - began
                num_before = len(answers)
                if ready:
                    asked = _Round(asks, draws, answers, self.spec.max_concurrent)
                    reasons += await beside(asked.run(ready, weights), on_wait)
                    self.num_lost += len(ready) - sum(server.weights == weights.version for server in ready)
                if len(answers) == len(asks):
                    return [answers[index] for index in range(len(asks))]
                # Health and weights are no sign: a server may have both and complete nothing. A round may take longer than the
                # patience, so that this counts from the end of the first one that brought nothing.
                now = time.monotonic()
                silent_since = None if len(answers) > num_before else silent_since or now
                if silent_since is not None and now - silent_since > self.spec.patience_seconds:
                    raise unreachable("rollouts.servers", reasons, self.spec.patience_seconds)
                await beside(asyncio.sleep(PAUSE_SECONDS), on_wait)

    async def _ready(self, sessions: _Sessions, weights: ServedWeights) -> tuple[_Sessions, list[str]]:
        """The servers that have the weights now, and why the others have not."""
        resting = [server for server in sessions if server.is_resting]
        ready, reasons = await self._prepared(
            [server for server in sessions if server not in resting], sessions, weights
        )
        if not ready and resting:
            return await self._prepared(list(sessions), sessions, weights)
        return ready, reasons

    async def _prepared(
        self, servers: list[VllmServer], sessions: _Sessions, weights: ServedWeights
    ) -> tuple[_Sessions, list[str]]:
        tries = (self._prepare(server, sessions[server], weights) for server in servers)
        found = await asyncio.gather(*tries, return_exceptions=True)
        for one in found:
            if one is not None and not isinstance(one, ServerGone):
                raise one
        ready = {server: sessions[server] for server, one in zip(servers, found, strict=True) if one is None}
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
        await all_of(served)
        return self._reasons

    async def _serve(self, server: VllmServer, session: httpx.AsyncClient, weights: ServedWeights) -> None:
        """What one server answers; it counts when the server still has the weights behind it.

        So it does for one that refused some asks for lack of room: otherwise a busy server would get nothing done.
        """
        mine: dict[int, Answer] = {}
        lanes = [self._lane(server, session, mine) for _ in range(min(self._max_concurrent, len(self._open)))]
        await all_of(lanes)
        if server.weights is None and not mine:
            return
        try:
            found = await server.version(session)
        except ServerGone as gone:
            self._lose(server, gone)
            return
        if found == weights.version:
            self._answers.update(mine)
        elif found == INITIAL_WEIGHTS:  # started anew
            server.weights = None
        else:
            raise server.taken(found)

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
