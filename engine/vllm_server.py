"""A vLLM server as the engine uses it: completions of token ids, log-probabilities of given ones, other weights.

The server is not ours: whatever it answers is read with limits and checked before it is used.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import httpx

from engine.errors import RunError
from engine.findings import Finding
from engine.vllm_answer import Answer, Ask, Draws, checked

_API_KEY = "INCIPIT_VLLM_API_KEY"
_MAX_ANSWER_BYTES = 64_000_000
_CONNECT_SECONDS = 10.0
# So that a host which drops packets costs a tenth of the time at most.
_REST_SECONDS = 10 * _CONNECT_SECONDS
# The first answers of a fresh server wait for its kernels: half a minute was seen, and a full queue comes on top.
_ANSWER_SECONDS = 600.0
_MOST_LOGPROBS = re.compile(r"max allowed: (\d{1,6})")
INITIAL_WEIGHTS = "default"
"""What vLLM calls the weights that it was started with."""


class ServerGone(Exception):
    """A server does not answer, or says that it cannot now; another one may, or the same one later."""


class VllmServer:
    """One server, by its address. To be used from one event loop at a time."""

    def __init__(self, address: str, field: str = "rollouts.servers") -> None:
        """`field` is that of the spec which names it."""
        self.address = address.rstrip("/")
        self.field = field
        self.weights: str | None = None
        """The version of the weights that it was given last, None when it has to be given some."""
        self.is_tried = False
        """Whether it has shown that it takes all weights that it is given."""
        self.model: str | None = None
        """The name under which it serves its model, once it was checked."""
        self.root: str | None = None
        """Where it says that it has the model from, once it was checked and if it says it."""
        self._rests_until = -math.inf

    @property
    def is_resting(self) -> bool:
        """Whether nothing has answered at its address lately, not even that nobody is there: to be asked when no other is ready."""
        return time.monotonic() < self._rests_until

    def session(self, max_connections: int) -> httpx.AsyncClient:
        """What the other methods talk through."""
        key = os.environ.get(_API_KEY)
        return httpx.AsyncClient(
            base_url=self.address,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
            trust_env=False,
        )

    async def check(self, session: httpx.AsyncClient, num_tokens: int) -> None:
        """Raise ServerGone when it is not up, RunError when it serves no texts of `num_tokens` tokens."""
        await self._ask(session, "GET", "/health")
        listed = await self._ask(session, "GET", "/v1/models")
        try:
            model, limit = str(listed["data"][0]["id"]), int(listed["data"][0]["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            raise self.mismatch("does not name a model as vLLM does; give the address of a vLLM server.") from None
        if limit < num_tokens:
            raise self.mismatch(
                f"takes texts of {limit} tokens but prompts and completions of this run have up to {num_tokens}; start it with "
                f"--max-model-len {num_tokens} or lower max_completion_tokens."
            )
        root = listed["data"][0].get("root")
        self.model, self.root = model, root if isinstance(root, str) else None

    async def version(self, session: httpx.AsyncClient) -> str:
        """The version of the weights that it has, as the one who loaded them has called it."""
        told = await self._ask(session, "GET", "/weight_info")
        if not isinstance(told, dict):
            raise self.mismatch(
                "does not tell the version of its weights as vLLM does; give the address of a vLLM server."
            )
        return _harmless(str(told.get("weight_version")), 100)

    async def load(self, session: httpx.AsyncClient, folder: Path, version: str) -> None:
        """Make it use the weights of a folder that it can read; what it is asked meanwhile waits."""
        await self._ask(session, "POST", "/pause", params={"mode": "keep"})
        asked = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        await self._ask(session, "POST", "/collective_rpc", json=asked)
        await self._ask(session, "POST", "/reset_prefix_cache")
        await self._ask(session, "POST", "/resume")
        await self._ask(session, "POST", "/update_weight_version", json={"new_version": version})
        found = await self.version(session)
        if found != version:
            raise self.mismatch(f"says that its weights are {found!r} after {version!r} were loaded; look at its log.")

    async def complete(self, session: httpx.AsyncClient, ask: Ask, draws: Draws) -> Answer:
        """One sampled completion."""
        # Everything is said: what is not, vLLM takes from the model's generation_config.json.
        asked = {
            "model": self.model, "prompt": ask.token_ids, "max_tokens": ask.max_tokens, "seed": ask.seed, "n": 1,
            "temperature": draws.temperature, "top_p": draws.truncation.top_p, "top_k": draws.truncation.top_k,
            "min_p": draws.truncation.min_p, "repetition_penalty": 1.0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0, "logprobs": 0, "return_token_ids": True,
            "stop_token_ids": sorted(draws.eos_token_ids), "ignore_eos": True,
        }  # fmt: skip
        answer = await self._ask(session, "POST", "/v1/completions", json=asked)
        try:
            choice = answer["choices"][0]
            token_ids = [int(one) for one in choice["token_ids"]]
            logprobs = [float(one) for one in choice["logprobs"]["token_logprobs"]]
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            raise self.mismatch(
                "answers without token ids and log-probabilities; vLLM from 0.22 on gives both."
            ) from None
        return checked(token_ids, logprobs, ask, draws, self.mismatch)

    async def logprobs(self, session: httpx.AsyncClient, token_ids: list[int]) -> list[float]:
        """Log-probability of each given token but the first, at temperature 1."""
        asked = {"model": self.model, "prompt": token_ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        answer = await self._ask(session, "POST", "/v1/completions", json=asked)
        try:
            shown = answer["choices"][0]["prompt_logprobs"][1:]
            return [float(at[str(token)]["logprob"]) for at, token in zip(shown, token_ids[1:], strict=True)]
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            raise self.mismatch("answers without the log-probabilities of a prompt; give a vLLM server.") from None

    async def top_logprobs(
        self, session: httpx.AsyncClient, token_ids: list[int], start: int, top_k: int, vocabulary: int
    ) -> list[dict[int, float]]:
        """For each given token from `start` (>= 1) on, log-probabilities of the `top_k` likeliest ids and of its own, at temperature 1.

        Ids from `vocabulary` on are left out.
        """
        asked = {
            "model": self.model,
            "prompt": token_ids,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": top_k,
        }
        answer = await self._ask(session, "POST", "/v1/completions", json=asked)
        try:
            shown = answer["choices"][0]["prompt_logprobs"][start:]
            told = [{int(one): float(entry["logprob"]) for one, entry in at.items()} for at in shown]
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError):
            raise self.mismatch("answers without the log-probabilities of a prompt; give a vLLM server.") from None
        fits = len(told) == len(token_ids) - start and all(
            token in at and len(at) <= top_k + 1 and all(math.isfinite(one) and one < 1e-3 for one in at.values())
            for token, at in zip(token_ids[start:], told, strict=False)
        )
        if not fits:
            raise self.mismatch(
                f"answers other log-probabilities than those of {len(token_ids)} tokens; look at its log."
            )
        return [{one: logprob for one, logprob in at.items() if 0 <= one < vocabulary} for at in told]

    async def tokenized(self, session: httpx.AsyncClient, text: str) -> list[int]:
        """The ids that its own tokenizer makes of a text, without special tokens."""
        asked = {"model": self.model, "prompt": text, "add_special_tokens": False}
        answer = await self._ask(session, "POST", "/tokenize", json=asked)
        try:
            return [int(one) for one in answer["tokens"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise self.mismatch("does not tell how it cuts a text into tokens; give a vLLM server.") from None

    def taken(self, version: str) -> RunError:
        """Somebody else has loaded weights since."""
        return self.mismatch(f"was given other weights meanwhile ({version!r}); give each run servers of its own.")

    def mismatch(self, words: str) -> RunError:
        """It is not what the run needs."""
        message = f"The server {self.address} {words}"
        return RunError("server_mismatch", message, [Finding(field=self.field, message=message)])

    async def _ask(self, session: httpx.AsyncClient, method: str, path: str, **rest: Any) -> Any:
        """The JSON that it answers, {} for nothing."""
        try:
            async with session.stream(method, path, **rest) as response:
                body = b""
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _MAX_ANSWER_BYTES:
                        raise self.mismatch(f"answers {path} with more than {_MAX_ANSWER_BYTES:,} bytes.")
        except (httpx.TransportError, OSError) as error:
            if isinstance(error, httpx.ConnectTimeout):
                self._rests_until = time.monotonic() + _REST_SECONDS
            raise ServerGone(f"{self.address}: {str(error) or type(error).__name__}") from None
        self._rests_until = -math.inf
        if response.status_code in (429, 502, 503, 504):
            raise ServerGone(f"{self.address}: status {response.status_code}")
        if response.is_error:
            raise self._refused(path, response.status_code, body)
        try:
            return json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError):
            raise self.mismatch(
                f"answers {path} with something else than JSON; give the address of a vLLM server."
            ) from None

    def _refused(self, path: str, status: int, body: bytes) -> RunError:
        try:
            said = str(json.loads(body)["error"]["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            said = body.decode(errors="replace")
        said = _harmless(said, 300) or "no reason"
        if status in (401, 403):
            return self.mismatch(f"wants a key (status {status}); set {_API_KEY} for the worker.")
        if status == 404 and path in ("/collective_rpc", "/weight_info", "/pause", "/reset_prefix_cache"):
            return self.mismatch(
                "cannot be given other weights; start it with VLLM_SERVER_DEV_MODE=1 (vLLM from 0.22 on)."
            )
        if path == "/v1/completions" and (most := _MOST_LOGPROBS.search(said)):
            return self.mismatch(
                f"tells at most {most[1]} likely tokens of each position; start it with a larger --max-logprobs or lower "
                f"teacher_backend.top_k to {most[1]}."
            )
        if path == "/collective_rpc":
            return self.mismatch(
                f"could not load the student's weights ({said}); it must serve the student's own model and see the run's folder, "
                "or that of INCIPIT_WEIGHTS_FOLDER, under the same path. Start it anew: it does not survive this."
            )
        return self.mismatch(f"refuses {path} with status {status}: {said}")


def _harmless(text: str, limit: int) -> str:
    """At most `limit` characters of what a server has said, none of them with a meaning for a terminal."""
    printable = "".join(one if one.isprintable() else " " for one in text[: 10 * limit])
    return " ".join(printable.split())[:limit]
