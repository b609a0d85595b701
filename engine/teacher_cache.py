"""What a served teacher has answered, kept on disk: texts that are not the student's own come again in other epochs and arms."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from engine.frozen import Frozen
from engine.json_cache import JsonCache
from engine.locations import incipit_home
from engine.rollout import Rollout
from engine.top_tokens import TopTokens

MOST_BYTES = 8_000_000_000
"""What is kept of one teacher's scores; about 34 kB for 128 tokens with the 32 likeliest of each."""
_log = logging.getLogger("engine")


class WrittenText(Frozen):
    """A completion of the teacher."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["eos", "length"]


class TeacherCache:
    """What one teacher has answered; `teacher` tells its weights from others."""

    def __init__(self, teacher: str) -> None:
        self.teacher = teacher
        self.texts = JsonCache("teacher-completions", WrittenText)
        self._folder = incipit_home() / "cache" / "teacher-scores" / teacher[:32]
        self._num_bytes = sum(path.stat().st_size for path in self._folder.glob("*.safetensors"))

    def find(self, rollout: Rollout, top_k: int) -> TopTokens | None:
        """What was kept of the supervised tokens of a text; None when nothing was."""
        try:
            kept = load_file(self._path(rollout, top_k))
            found = TopTokens(kept["ids"].long(), kept["logprobs"], kept["log_tail"])
        except (OSError, KeyError, SafetensorError):  # absent, or half-written by a machine that lost power: ask again
            return None
        return found if len(found) == len(rollout.supervised) else None

    def keep(self, rollout: Rollout, top_k: int, top: TopTokens) -> None:
        """Store it for later; a cache that is full or cannot be written costs time, not the run."""
        if self._num_bytes >= MOST_BYTES:
            return
        path = self._path(rollout, top_k)
        staged = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"ids": top.ids.int(), "logprobs": top.logprobs, "log_tail": top.log_tail}, staged)
            staged.replace(path)
            self._num_bytes += path.stat().st_size
        except OSError as error:
            _log.warning("Nothing could be kept in %s: %s", self._folder, error)

    def _path(self, rollout: Rollout, top_k: int) -> Path:
        tokens = rollout.supervised
        key = [rollout.prompt_token_ids, rollout.completion_token_ids, tokens.start, tokens.stop, top_k]
        return self._folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.safetensors"
