"""A server that answers as vLLM 0.32 does to what the engine asks of it, with weights that it really loads and really samples from.

vLLM itself needs an environment of 3.5 GB and most of a minute to start: tests/vllm has it. What it does wrong or badly is
asked of this one by `faults`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import uvicorn
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from engine.language_model import LanguageModel, load_language_model
from engine.model_spec import ModelSpec
from engine.rollout import RolloutRequest
from engine.sampler import Sampler


class StandInVllm:
    """A server on a port of its own. `faults` names what it does wrong; `loaded` are the versions it was given."""

    def __init__(self, model: Path | str, *faults: str, max_model_len: int = 256) -> None:
        self.faults = set(faults)
        self.max_model_len = max_model_len
        self.name, self.root = "student", "/models/student"
        self.version = "default"
        self.loaded: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.die_after: int | None = None
        """Questions after which it is gone."""
        self.die_at_completion: int | None = None
        """It is gone in the middle of this sampled completion, counted from 1."""
        self.slow_seconds = 30.0
        """How long each answer of the fault "slow" takes."""
        self._lock = threading.Lock()
        self._model = _opened(model)
        routes = [
            Route("/health", self._health), Route("/v1/models", self._models), Route("/weight_info", self._weight_info),
            *(Route(path, self._done, methods=["POST"]) for path in ("/pause", "/resume", "/reset_prefix_cache")),
            Route("/collective_rpc", self._reload, methods=["POST"]), Route("/update_weight_version", self._name, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]), Route("/tokenize", self._tokenize, methods=["POST"]),
        ]  # fmt: skip
        self._server = uvicorn.Server(
            uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=0, log_level="error", ws="none")
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)

    async def _health(self, request: Request) -> Response:
        return Response(status_code=503 if "ill" in self.faults else 200)

    async def _models(self, request: Request) -> Response:
        if "html" in self.faults:
            return PlainTextResponse("<h1>Welcome</h1>")
        return JSONResponse({"data": [{"id": self.name, "root": self.root, "max_model_len": self.max_model_len}]})

    async def _weight_info(self, request: Request) -> Response:
        if "no dev mode" in self.faults:
            return JSONResponse({"detail": "Not Found"}, status_code=404)
        if "hostile" in self.faults:
            return JSONResponse({"error": {"message": "\x1b[2J" + "spam " * 10_000}}, status_code=400)
        if "deep" in self.faults:
            return PlainTextResponse("[" * 200_000)
        if "list" in self.faults:
            return JSONResponse([1])
        return JSONResponse({"weight_version": self.version})

    async def _done(self, request: Request) -> Response:
        return JSONResponse({"status": "done"})

    async def _name(self, request: Request) -> Response:
        if "keeps its version" not in self.faults:
            self.version = (await request.json())["new_version"]
        self.loaded.append(self.version)
        return JSONResponse({"success": True})

    async def _reload(self, request: Request) -> Response:
        folder = Path((await request.json())["kwargs"]["weights_path"])
        if "cannot see the folder" in self.faults:
            message = "Call to collective_rpc method failed: no such folder"
            return JSONResponse({"error": {"message": message}}, status_code=500)
        weights: dict[str, torch.Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            weights |= load_file(path)
        if "stale head" in self.faults:
            weights.pop("lm_head.weight")
        with self._lock:
            _missing, unexpected = self._model.module.load_state_dict(weights, strict=False)
        assert not unexpected, unexpected
        return JSONResponse({"results": [None]})

    async def _tokenize(self, request: Request) -> Response:
        asked = await request.json()
        assert asked["add_special_tokens"] is False
        ids = self._model.tokenizer(asked["prompt"], add_special_tokens=False)["input_ids"]
        return JSONResponse({"tokens": ids[::-1] if "other tokenizer" in self.faults else ids, "count": len(ids)})

    async def _complete(self, request: Request) -> Response:
        asked = await request.json()
        self.asked.append(asked)
        num_completions = sum("prompt_logprobs" not in one for one in self.asked)
        is_due = self.die_at_completion is not None and num_completions >= self.die_at_completion
        if is_due or (self.die_after is not None and len(self.asked) > self.die_after):
            self._server.should_exit = self._server.force_exit = True
            return Response(status_code=503)
        if "prompt_logprobs" not in asked and (
            "busy" in self.faults or ("busy at times" in self.faults and num_completions % 3 == 0)
        ):
            return Response(status_code=503)
        if "slow" in self.faults:
            await run_in_threadpool(time.sleep, self.slow_seconds)
        return await run_in_threadpool(self._answer, asked)

    def _answer(self, asked: dict[str, Any]) -> Response:
        prompt: list[int] = asked["prompt"]
        if max(prompt) >= self._model.head.vocabulary:
            return JSONResponse({"error": {"message": "Token id is out of vocabulary"}}, status_code=400)
        with self._lock:
            if "prompt_logprobs" in asked:
                return self._read(prompt, asked["prompt_logprobs"])
            model = replace(self._model, eos_token_ids=frozenset(asked["stop_token_ids"]))
            seed = asked["seed"] % 2**32
            (rollout,) = Sampler(model, seed, asked["temperature"]).sample(
                [RolloutRequest(0, prompt, 1, 0)], asked["max_tokens"]
            )
            text = [*prompt, *rollout.completion_token_ids]
            count = len(rollout.completion_token_ids)
            # As vLLM without --logprobs-mode processed_logprobs, if that is asked for: at temperature 1.
            raw = _logprobs(self._model, text)[-count:]
        logprobs = raw if "raw logprobs" in self.faults else rollout.completion_logprobs
        ids = rollout.completion_token_ids
        if "strange token" in self.faults:
            ids = [*ids[:-1], 10**6]
        if "infinite" in self.faults:
            return PlainTextResponse('{"choices": [{"token_ids": [Infinity], "logprobs": {"token_logprobs": [-1]}}]}')
        if "no logprobs" in self.faults:
            return JSONResponse({"choices": [{"token_ids": ids, "logprobs": None}]})
        if "too short" in self.faults:
            ids, logprobs = [5], [-1.0]
        return JSONResponse({"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": logprobs}}]})

    def _read(self, prompt: list[int], top_k: int) -> Response:
        if "few logprobs" in self.faults and top_k > 4:
            message = f"Requested prompt logprobs of {top_k}, which is greater than max allowed: 4"
            return JSONResponse({"error": {"message": message}}, status_code=400)
        every = _all_logprobs(self._model, prompt)
        if "sharper" in self.faults:
            every = (1.2 * every).log_softmax(-1)
        if "noisy" in self.faults:
            every = every - 0.03 * torch.rand_like(every)
        shown: list[dict[str, dict[str, float]] | None] = [None]
        for token, at in zip(prompt[1:], every, strict=True):
            told = [token, *at.topk(top_k).indices.tolist()] if "odd tokens" not in self.faults else [0]
            shown.append({str(one): {"logprob": float(at[one])} for one in told})
        return JSONResponse({"choices": [{"prompt_logprobs": shown}]})


def _opened(path: Path | str) -> LanguageModel:
    model = load_language_model(ModelSpec(path=str(path)), "student", torch.device("cpu"), "float32")
    # A head of its own, as `incipit rollout-server` gives it.
    module = model.module
    head = torch.nn.Parameter(model.head.weight.detach().clone())
    module.lm_head.weight = head
    return replace(model, head=replace(model.head, weight=head))


@torch.inference_mode()
def _logprobs(model: LanguageModel, ids: list[int]) -> list[float]:
    found: list[float] = _all_logprobs(model, ids).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return found


@torch.inference_mode()
def _all_logprobs(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    """[T - 1, V]"""
    logits: torch.Tensor = model.module(torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1)
