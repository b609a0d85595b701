"""Where the student's completions are sampled during training. It imports without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Count, Frozen

SyncSteps = Annotated[
    Count,
    Field(
        description="Steps between two loads of the student's weights; more than 1 makes the steps between them off-policy."
    ),
]
LogprobGap = Annotated[
    float,
    Field(
        gt=0,
        le=10,
        description="Mean difference in nats between vLLM's and the engine's log-probabilities of the same tokens from which on their "
        "weights are taken to differ; bfloat16 alone makes some 0.07.",
    ),
]
ServerAddress = Annotated[str, Field(max_length=512, pattern=r"^https?://[A-Za-z0-9._\-\[\]:]+(/[A-Za-z0-9._\-/]*)?$")]


class EngineRollouts(Frozen):
    """The engine samples them itself, in its own process."""

    kind: Literal["engine"] = "engine"


class RolloutServer(Frozen):
    """One vLLM server."""

    address: ServerAddress
    """Where it answers, such as http://gpu-7:8000. But for loopback, INCIPIT_ROLLOUT_SERVERS on the worker must list it."""


class VllmRollouts(Frozen):
    """vLLM servers sample them, after they have loaded the student's weights of the step; evaluation stays in the engine.

    Each server is started with VLLM_SERVER_DEV_MODE=1 on the student's model and serves one run at a time. The weights go through
    the run's folder, or that of INCIPIT_WEIGHTS_FOLDER, which engine and servers see under the same path.
    """

    kind: Literal["vllm_servers"] = "vllm_servers"
    servers: Annotated[list[RolloutServer], Field(min_length=1, max_length=64)]
    """The servers; each rollout goes to the one that is free first."""
    sync_every_steps: SyncSteps = 1
    max_concurrent: Annotated[int, Field(ge=1, le=1024)] = 64
    """Rollouts that are asked of one server at a time."""
    patience_seconds: Annotated[float, Field(ge=1, le=86_400)] = 120.0
    """How long the run waits when no server answers, before it fails and is tried again later."""
    max_logprob_gap: LogprobGap = 0.2


class ColocatedVllm(Frozen):
    """vLLM in the engine's own process samples them, with the student's weights of the step; evaluation stays in the engine.

    On a GPU it sleeps while the student is trained. The engine runs in an environment that has vLLM: INCIPIT_VLLM_PYTHON of the
    worker names its Python.
    """

    kind: Literal["vllm_colocated"] = "vllm_colocated"
    sync_every_steps: SyncSteps = 1
    cache_gb: Annotated[float, Field(gt=0, le=4096)] = 1.0
    """Memory for vLLM's keys and values, beside its copy of the student's weights, GB."""
    max_concurrent: Annotated[int, Field(ge=1, le=1024)] = 64
    """Rollouts that are sampled together."""
    max_logprob_gap: LogprobGap = 0.2


SampledByVllm = VllmRollouts | ColocatedVllm
RolloutBackend = Annotated[EngineRollouts | VllmRollouts | ColocatedVllm, Field(discriminator="kind")]
