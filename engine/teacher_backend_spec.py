"""Where the teacher runs. It imports without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Frozen
from engine.rollout_backend_spec import ServerAddress

MAX_TOP_K = 256


class EngineTeacher(Frozen):
    """In the engine's own process, beside the student."""

    kind: Literal["engine"] = "engine"


class TeacherServer(Frozen):
    """One vLLM server."""

    address: ServerAddress
    """Where it answers, such as http://gpu-7:8000. But for loopback, INCIPIT_TEACHER_SERVERS on the worker must list it."""
    tag: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Prompts with this tag (prompts.tag_column) have this server's model for a teacher; empty for those whose tag no server has."""


class VllmTeacher(Frozen):
    """vLLM servers score completions, and write those that the teacher writes; teacher.path gives tokenizer and architecture alone.

    A server tells the log-probabilities of its most likely tokens and of the token that stands there. All others are one outcome
    with the probability that is left, within which the student's own proportions are taken over: the divergence is that of these
    outcomes, a lower bound of the whole one.
    """

    kind: Literal["vllm_servers"] = "vllm_servers"
    servers: Annotated[list[TeacherServer], Field(min_length=1, max_length=64)]
    """The servers; each text goes to the one that is free first, of those with its prompt's tag."""
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 32
    """Most likely tokens that are asked for at each position; the server must be started with --max-logprobs of as many."""
    max_concurrent: Annotated[int, Field(ge=1, le=1024)] = 16
    """Texts that are asked of one server at a time; its memory for scoring grows with them."""
    patience_seconds: Annotated[float, Field(ge=1, le=86_400)] = 120.0
    """How long the run waits when no server answers, before it fails and is tried again later."""

    @property
    def note(self) -> str:
        """What a reader of figures must know."""
        return (
            f"The teacher is served: of each position its {self.top_k} likeliest tokens are known and the rest as one, so that "
            "divergences are lower bounds."
        )


TeacherBackend = Annotated[EngineTeacher | VllmTeacher, Field(discriminator="kind")]
