"""The teacher where vLLM servers have its weights: they score completions by their likeliest tokens, and write the teacher's own."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Generic, TypeVar

import httpx
from transformers import PreTrainedTokenizerBase

from engine.errors import RunError
from engine.findings import Finding
from engine.rollout import Rollout, RolloutRequest
from engine.server_asking import PAUSE_SECONDS, all_of, beside, check_addresses, unreachable
from engine.teacher_backend_spec import VllmTeacher
from engine.teacher_cache import TeacherCache, WrittenText
from engine.teacher_identity import teacher_identity
from engine.teacher_routes import FIELD, TeacherRoutes
from engine.top_tokens import TopTokens
from engine.vllm_answer import Answer, Ask, Draws
from engine.vllm_server import ServerGone, VllmServer

A = TypeVar("A")
R = TypeVar("R")
_Ask = Callable[[VllmServer, httpx.AsyncClient, A], Awaitable[R]]

ALLOWED = "INCIPIT_TEACHER_SERVERS"
_PROBE_TOKENS = 64
_FIXED_TOKENS = 64
# Rounding changes the likeliest token of few positions; another model's are others at most of them.
_LEAST_AGREEMENT = 0.8


class TeacherServers:
    """All servers of a run's teacher, or of its teachers: a prompt's tag says which of them it belongs to."""

    def __init__(self, spec: VllmTeacher, tokenizer: PreTrainedTokenizerBase, vocabulary: int, num_tokens: int) -> None:
        """`num_tokens` is the longest text of the run; ids from `vocabulary` on are no token of both models.

        Raises RunError("bad_spec") for a server that may not be asked.
        """
        check_addresses([server.address for server in spec.servers], FIELD, ALLOWED)
        self.spec = spec
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.num_tokens = num_tokens
        self.on_wait: Callable[[], None] = lambda: None
        """Called all the time while servers work; it may raise to stop."""
        self.servers = [VllmServer(one.address, FIELD) for one in spec.servers]
        self.routes = TeacherRoutes({server: one.tag for server, one in zip(self.servers, spec.servers, strict=True)})
        self._caches: dict[str | None, TeacherCache] = {}
        self._fixed: list[int] = []
        self._likeliest: dict[str | None, list[int]] = {}
        """By tag, what its teacher finds likeliest at each position of the fixed text."""
        self._ready: set[VllmServer] = set()

    def check(self, token_ids: Sequence[int]) -> None:
        """See that there is a server for every tag that serves what the run needs, with a text of the run.

        Later ones are looked at before they are asked. Raises RunError when one is not fit or none answers.
        """
        # Tokens from all over the vocabulary make up what a short prompt lacks.
        probe = self.tokenizer(_probe(self.tokenizer, self.vocabulary), add_special_tokens=False)["input_ids"]
        self._fixed = [*token_ids, *probe][: min(_FIXED_TOKENS, self.num_tokens)]

        async def ask(server: VllmServer, session: httpx.AsyncClient, _: None) -> None:
            """To be ready is all."""

        for tag in self.routes.tags:
            self._all_of([(self.routes.of_tag(tag), None)], ask)

    def look(self) -> list[Finding]:
        """What stands in the way of each server, before a run."""
        return asyncio.run(self._look())

    @property
    def name(self) -> str:
        """What stands for the weights behind the servers in the names of what is kept for later runs, see `teacher_identity`.

        Of several servers of one tag it is that of the first to answer: they should serve their model under one name and path.
        """
        return " ".join(f"{tag}={cache.teacher}" for tag, cache in self._caches.items())

    def read(self, rollouts: Sequence[Rollout]) -> list[TopTokens]:
        """What the teacher finds likely at the supervised tokens of each rollout, at temperature 1.

        Texts that are not the student's own come again in later epochs: they are kept on disk. Raises
        RunError("server_unreachable") when no server answers for long, RunError("server_mismatch") for a strange answer.
        """
        caches = [None if one.author == "student" else self._cache_of(one.prompt_token_ids) for one in rollouts]
        known: dict[int, TopTokens] = {}
        for index, (rollout, cache) in enumerate(zip(rollouts, caches, strict=True)):
            if cache is not None and (found := cache.find(rollout, self.spec.top_k)) is not None:
                known[index] = found
        missing = [index for index in range(len(rollouts)) if index not in known]

        async def ask(server: VllmServer, session: httpx.AsyncClient, rollout: Rollout) -> TopTokens:
            text = [*rollout.prompt_token_ids, *rollout.completion_token_ids]
            start, stop = rollout.supervised.start, rollout.supervised.stop
            first = len(rollout.prompt_token_ids) + start
            told = await server.top_logprobs(session, text, first, self.spec.top_k, self.vocabulary)
            return TopTokens.of(told[: stop - start])

        asked = [(self.routes.servers_of(rollouts[index].prompt_token_ids), rollouts[index]) for index in missing]
        for index, top in zip(missing, self._all_of(asked, ask), strict=True):
            known[index] = top
            if (cache := caches[index]) is not None:
                cache.keep(rollouts[index], self.spec.top_k, top)
        return [known[index] for index in range(len(rollouts))]

    def write(self, requests: Sequence[RolloutRequest], horizon: int, seed: int, draws: Draws) -> list[Rollout]:
        """The teacher's completions of all requests, in their order, each kept on disk for whoever asks for it again.

        Raises as `read` does.
        """
        places = [(request, index) for request in requests for index in range(request.num_rollouts)]
        keys = [self._key(request, index, horizon, seed, draws) for request, index in places]
        kept = [self._cache_of(request.prompt_token_ids).texts for request, _ in places]
        texts = {at: found for at, key in enumerate(keys) if (found := kept[at].find(key)) is not None}
        missing = [at for at in range(len(places)) if at not in texts]

        async def ask(server: VllmServer, session: httpx.AsyncClient, at: int) -> Answer:
            request, _ = places[at]
            number = int.from_bytes(hashlib.sha256(keys[at][-1].encode()).digest()[:7], "big")
            return await server.complete(session, Ask(request.prompt_token_ids, request.limit(horizon), number), draws)

        asked = [(self.routes.servers_of(places[at][0].prompt_token_ids), at) for at in missing]
        for at, answer in zip(missing, self._all_of(asked, ask), strict=True):
            texts[at] = WrittenText.model_validate(asdict(answer))
            kept[at].keep(keys[at], texts[at])
        return [
            Rollout(
                prompt_index=request.prompt_index,
                prompt_token_ids=request.prompt_token_ids,
                completion_token_ids=texts[at].token_ids,
                completion_logprobs=texts[at].logprobs if draws.temperature else [0.0] * len(texts[at].token_ids),
                finish_reason=texts[at].finish_reason,
            )
            for at, (request, _) in enumerate(places)
        ]

    def _key(self, request: RolloutRequest, index: int, horizon: int, seed: int, draws: Draws) -> list[str]:
        """All that a completion depends on; the last part is what its random numbers do."""
        return [
            self._cache_of(request.prompt_token_ids).teacher,
            f"{request.prompt_token_ids} {request.limit(horizon)} {draws.temperature} {draws.truncation}",
            f"{sorted(draws.eos_token_ids)} {draws.vocabulary}",
            f"{seed} {request.prompt_index} {request.stream} {index}",
        ]

    def _cache_of(self, prompt: Sequence[int]) -> TeacherCache:
        return self._caches[self.routes.tag_of[self.routes.servers_of(prompt)[0]]]

    def _all_of(self, asks: Sequence[tuple[list[VllmServer], A]], ask: _Ask[A, R]) -> list[R]:
        """An answer to each ask from one of its servers; those of a server that is lost go to the others."""
        return asyncio.run(self._answered(asks, ask)) if asks else []

    async def _answered(self, asks: Sequence[tuple[list[VllmServer], A]], ask: _Ask[A, R]) -> list[R]:
        answers: dict[int, R] = {}
        last_sign = time.monotonic()
        async with AsyncExitStack() as stack:
            sessions = {
                server: await stack.enter_async_context(server.session(self.spec.max_concurrent))
                for server in dict.fromkeys(server for mine, _ in asks for server in mine)
            }
            while True:
                reasons: list[str] = []
                num_before = len(answers)
                await beside(all_of([self._prepare(*one, reasons) for one in sessions.items()]), self.on_wait)
                work = _Work(asks, ask, answers, reasons, self._ready)
                lanes = [
                    work.lane(server, session)
                    for server, session in sessions.items()
                    for _ in range(min(self.spec.max_concurrent, len(asks)))
                ]
                await beside(all_of(lanes), self.on_wait)
                if len(answers) == len(asks):
                    return [answers[index] for index in range(len(asks))]
                if len(answers) > num_before:
                    last_sign = time.monotonic()
                if time.monotonic() - last_sign > self.spec.patience_seconds:
                    raise unreachable(FIELD, reasons, self.spec.patience_seconds)
                await beside(asyncio.sleep(PAUSE_SECONDS), self.on_wait)

    async def _prepare(self, server: VllmServer, session: httpx.AsyncClient, reasons: list[str]) -> None:
        """Look at a server that has not been asked yet, or was lost and may be another one now."""
        tag = self.routes.tag_of[server]
        if server in self._ready or (server.is_resting and not self._ready.isdisjoint(self.routes.of_tag(tag))):
            return
        try:
            await self._check(server, session)
            told = await server.top_logprobs(session, self._fixed, 1, self.spec.top_k, self.vocabulary)
        except ServerGone as gone:
            reasons.append(str(gone))
            return
        found = [max(at, key=lambda one: at[one]) for at in told]
        known = self._likeliest.setdefault(tag, found)
        agreement = sum(a == b for a, b in zip(found, known, strict=True)) / len(known)
        if agreement < _LEAST_AGREEMENT:
            raise server.mismatch(
                f"finds the same token likeliest as the teacher that was asked first at {agreement:.0%} of {len(known)} positions "
                "alone, so that it serves another model; serve one teacher, or give each a tag."
            )
        if tag not in self._caches:
            described = str([server.model, server.root, self.tokenizer.name_or_path, self._fixed, self.vocabulary])
            own = [at[token] for token, at in zip(self._fixed[1:], told, strict=True) if token in at]
            self._caches[tag] = TeacherCache(teacher_identity(described, own + [max(at.values()) for at in told]))
        self._ready.add(server)

    async def _look(self) -> list[Finding]:
        findings = []
        for index, server in enumerate(self.servers):
            field = f"{FIELD}.{index}.address"
            async with server.session(1) as session:
                try:
                    await self._check(server, session)
                except ServerGone as gone:
                    message = f"{field}: no server answers now ({gone}); start it with `vllm serve` before the run."
                    findings.append(Finding(field=field, message=message, severity="warning"))
                except RunError as error:
                    findings.append(Finding(field=field, message=error.message))
        return findings

    async def _check(self, server: VllmServer, session: httpx.AsyncClient) -> None:
        # It samples one token behind each text that it scores.
        await server.check(session, self.num_tokens + 1)
        text = _probe(self.tokenizer, self.vocabulary)
        expected = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        found = await server.tokenized(session, text)
        if found != expected:
            raise server.mismatch(
                f"makes {len(found)} tokens of a text of which teacher.path's tokenizer makes {len(expected)} others; serve the "
                "model of teacher.path or correct that."
            )
        await server.top_logprobs(session, expected[:2], 1, self.spec.top_k, self.vocabulary)


class _Work(Generic[A, R]):
    """One try to get all answers that are missing."""

    def __init__(
        self,
        asks: Sequence[tuple[list[VllmServer], A]],
        ask: _Ask[A, R],
        answers: dict[int, R],
        reasons: list[str],
        ready: set[VllmServer],
    ) -> None:
        self._asks, self._ask, self._answers, self._reasons, self._ready = asks, ask, answers, reasons, ready
        self._open = deque(index for index in range(len(asks)) if index not in answers)

    async def lane(self, server: VllmServer, session: httpx.AsyncClient) -> None:
        """Answer one ask after the other until none of this server's is open, or it is lost, which makes it unready."""
        while server in self._ready:
            index = next((index for index in self._open if server in self._asks[index][0]), None)
            if index is None:
                return
            self._open.remove(index)
            try:
                self._answers[index] = await self._ask(server, session, self._asks[index][1])
            except ServerGone as gone:
                self._open.append(index)
                self._ready.discard(server)
                self._reasons.append(str(gone))


def _probe(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> str:
    """A text of tokens from all over the vocabulary, so that another one cuts it otherwise."""
    special = set(tokenizer.all_special_ids)
    ids = [one for one in range(min(vocabulary, len(tokenizer))) if one not in special]
    text = tokenizer.decode(ids[:: max(1, len(ids) // _PROBE_TOKENS)])
    assert isinstance(text, str)
    return text
