"""A few updates on one batch before a run: does the loss exist, does it fall, and what memory does it take?"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from engine.findings import Finding
from engine.flops import rollout_ledger
from engine.language_model import LanguageModel
from engine.policy_gradient import PolicyGradient
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from engine.setup import RunData
from engine.spec import RunSpec
from engine.student import Student

_UPDATES = 4
_CPU_ROLLOUTS = 4  # a preflight has minutes, and a CPU's memory does not depend on the batch as a GPU's does
_NO_LOSS = 1e-6  # nats; what does not differ cannot come closer


@dataclass(frozen=True)
class Trial:
    """What the updates showed."""

    losses: list[float]
    """Before each update, nats per token, all on the same rollouts."""
    facts: dict[str, int | float | str | None]
    findings: list[Finding]


def trial(spec: RunSpec, student: LanguageModel, teacher: LanguageModel, data: RunData) -> Trial:
    """Train `student` for some updates at the peak learning rate on the longest prompts; throw it away afterwards.

    Raises RunError("nan_loss") when loss or gradient is not finite.
    """
    began = time.monotonic()
    if student.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(student.device)
    horizon = spec.prefix_horizon_at(0, spec.prefix_state())
    count = min(spec.usual_micro_batch, spec.prompts_per_step)
    if student.device.type == "cpu":
        count = min(count, _CPU_ROLLOUTS)
    longest = sorted(range(len(data.train)), key=lambda i: -len(data.train[i].token_ids))[:count]
    requests = [RolloutRequest(i, data.train[i].token_ids, 1, 1) for i in longest]
    rollouts = Sampler(student, spec.seed, spec.sampling.temperature).sample(requests, horizon)
    trained = Student(student, spec)
    step = min(spec.optimizer.warmup_steps, spec.num_steps - 1)  # behind the warm-up
    updates = [trained.update(rollouts, teacher, step) for _ in range(_UPDATES)]
    losses = [update.loss for update in updates if update.loss is not None]  # every rollout has a supervised token
    sampling = sum(
        rollout_ledger(student.shape, len(r.prompt_token_ids), [len(r.completion_token_ids)]).rollout for r in rollouts
    )
    facts: dict[str, int | float | str | None] = {
        "trial_rollouts": len(rollouts),
        "trial_horizon_tokens": horizon,
        "trial_first_loss": losses[0],
        "trial_last_loss": losses[-1],
        "flops_per_rollout": (sampling + updates[0].flops.training) / len(rollouts),
        "peak_memory_bytes": _peak_bytes(student.device),
        "trial_seconds": round(time.monotonic() - began, 2),
    }
    return Trial(losses, facts, _findings(spec, losses))


def device_memory_bytes(device: torch.device) -> int:
    """All memory of a GPU, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    import psutil

    return int(psutil.virtual_memory().total)


def _findings(spec: RunSpec, losses: list[float]) -> list[Finding]:
    """A policy gradient's loss is no distance and need not fall."""
    if isinstance(spec.divergence, PolicyGradient) or losses[0] < _NO_LOSS or losses[-1] < losses[0]:
        return []
    message = (
        f"optimizer.learning_rate is {spec.optimizer.learning_rate:g} and the loss on one batch went from {losses[0]:.4g} to "
        f"{losses[-1]:.4g} nats in {len(losses) - 1} updates instead of falling; try a tenth of it."
    )
    return [Finding(field="optimizer.learning_rate", message=message, severity="warning")]


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in kilobytes, on macOS in bytes
    return used if sys.platform == "darwin" else used * 1024
