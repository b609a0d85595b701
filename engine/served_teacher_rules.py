"""Rules on what a served teacher can be asked: it tells of its likeliest tokens alone, at temperature 1. See engine/spec_rules.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from engine.findings import misfit
from engine.parallelism_spec import OneProcess
from engine.selection_spec import ProbeSelection
from engine.teacher_backend_spec import VllmTeacher
from engine.termination_guard import NoGuard
from engine.topk_divergences import TeacherOrder, TopKKL

if TYPE_CHECKING:
    from engine.spec import RunSpec


def a_served_teacher_can_tell_what_is_asked(spec: RunSpec) -> None:
    """Raise for the first field that needs more of the teacher than its servers tell."""
    if not isinstance(spec.teacher_backend, VllmTeacher):
        return
    for field, value, why, fix in _asking_too_much(spec):
        raise misfit(
            field,
            f"{field} is {value}, {why}, but teacher_backend.kind is 'vllm_servers'; {fix}, or set teacher_backend to engine.",
        )
    named = [(server.address.rstrip("/"), server.tag) for server in spec.teacher_backend.servers]
    for index, one in enumerate(named):
        if one in named[:index]:
            field = f"teacher_backend.servers.{index}.address"
            raise misfit(field, f"{field} is {one[0]}, which stands there twice; name each server once for a tag.")


def _asking_too_much(spec: RunSpec) -> Iterator[tuple[str, str, str, str]]:
    """Field, value, what it needs, and what helps."""
    if spec.sampling.temperature != 1:
        needs = "at which probabilities cannot be had from those of the likeliest tokens at 1"
        yield "sampling.temperature", f"{spec.sampling.temperature:g}", needs, "set it to 1"
    if isinstance(spec.divergence, TopKKL | TeacherOrder):
        needs = "which chooses tokens by probabilities that a server does not tell"
        help_ = (
            "choose reverse_kl, forward_kl, jsd or skew_kl, which then look at the server's top_k and the rest as one"
        )
        yield "divergence", spec.divergence.kind, needs, help_
    if spec.token_weights.needs_signals:
        yield "token_weights", spec.token_weights.kind, "which needs the teacher's whole distribution", "set it to none"
    if spec.merge_stop_tokens:
        yield "merge_stop_tokens", "true", "which needs the probability of each stop token", "set it to false"
    if not isinstance(spec.termination_guard, NoGuard):
        needs = "which needs the probability of each stop token"
        yield "termination_guard", spec.termination_guard.kind, needs, "set it to none"
    if isinstance(spec.selection, ProbeSelection):
        needs = "whose candidates wait half-written while the teacher reads them"
        yield "selection", spec.selection.kind, needs, "set it to all"
    if spec.teacher_offload == "always":
        needs = "which keeps the teacher's weights in this machine's memory"
        yield "teacher_offload", "always", needs, "set it to auto or never"
    if not isinstance(spec.parallelism, OneProcess):
        needs = "whose processes would each ask the servers"
        yield "parallelism", spec.parallelism.kind, needs, "set it to one_process"
