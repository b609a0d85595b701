"""Rules on how a run uses its machine: what overlaps, what waits in host memory, what servers do for it. See engine/spec_rules.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.adapter_spec import NoAdapter
from engine.adaptive_prefixes import DivergenceSharePrefix, PlateauPrefix, ValidationPrefix
from engine.findings import misfit
from engine.parallelism_spec import FullySharded, OneProcess
from engine.policy_gradient import PolicyGradient
from engine.rollout_backend_spec import EngineRollouts, VllmRollouts
from engine.selection_spec import ProbeSelection
from engine.sentinel_spec import WatchTail
from engine.served_teacher_rules import a_served_teacher_can_tell_what_is_asked

if TYPE_CHECKING:
    from engine.spec import RunSpec


def _what_overlaps_is_known_a_step_ahead(spec: RunSpec) -> None:
    if not spec.overlap:
        return
    if isinstance(spec.divergence, PolicyGradient):
        raise misfit(
            "overlap",
            "overlap is true but divergence policy_gradient is right only on tokens of the student that is updated, and "
            "overlap trains on those of the one before; set overlap to false or choose another divergence.",
        )
    if not isinstance(spec.adapter, NoAdapter):
        raise misfit(
            "overlap",
            f"overlap is true but adapter.kind is {spec.adapter.kind!r}, whose base serves student and teacher at once; "
            "set overlap to false or adapter to none.",
        )
    if isinstance(spec.prefix, PlateauPrefix | DivergenceSharePrefix | ValidationPrefix):
        raise misfit(
            "overlap",
            f"overlap is true but prefix.kind is {spec.prefix.kind!r}, whose next horizon follows from the update that goes "
            "on meanwhile; set overlap to false or choose a prefix that goes by the step.",
        )
    if isinstance(spec.sentinel, WatchTail) and spec.sentinel.action.kind in ("grow", "anchor"):
        raise misfit(
            "overlap",
            f"overlap is true but sentinel.action is {spec.sentinel.action.kind}, which changes the next step's rollouts when "
            "they are sampled already; set overlap to false, or let the sentinel warn or stop.",
        )


def _an_offloaded_teacher_has_weights_of_its_own(spec: RunSpec) -> None:
    if spec.teacher_offload == "always" and spec.shares_base:
        raise misfit(
            "teacher_offload",
            "teacher_offload is 'always' but the teacher is the student's own base, whose weights lie in memory once and are "
            "needed all the time; set teacher_offload to auto or never.",
        )


def _vllm_can_sample_what_is_asked(spec: RunSpec) -> None:
    if isinstance(spec.rollouts, EngineRollouts):
        return
    if isinstance(spec.selection, ProbeSelection):
        raise misfit(
            "selection",
            "selection.kind is 'probe', whose candidates wait half-written in the engine's memory, but rollouts.kind is "
            f"{spec.rollouts.kind!r}; set selection to all or rollouts to engine.",
        )
    if isinstance(spec.divergence, PolicyGradient) and spec.rollouts.sync_every_steps > 1:
        raise misfit(
            "rollouts.sync_every_steps",
            f"rollouts.sync_every_steps is {spec.rollouts.sync_every_steps} but divergence policy_gradient is right only on "
            "tokens of the student that is updated; set it to 1 or choose another divergence.",
        )
    if not isinstance(spec.rollouts, VllmRollouts):
        return
    addresses = [server.address.rstrip("/") for server in spec.rollouts.servers]
    for index, address in enumerate(addresses):
        if address in addresses[:index]:
            raise misfit(
                f"rollouts.servers.{index}.address",
                f"rollouts.servers.{index}.address is {address}, which stands there twice; name each server once.",
            )


def _several_processes_share_what_they_can(spec: RunSpec) -> None:
    """What is not known to give the same with several processes as with one is refused."""
    chosen = spec.parallelism
    if isinstance(chosen, OneProcess):
        return
    begin = f"parallelism.kind is {chosen.kind!r}"
    if spec.prompts_per_step < chosen.num_processes:
        raise misfit(
            "parallelism.num_processes",
            f"parallelism.num_processes is {chosen.num_processes} but prompts_per_step is {spec.prompts_per_step}, and each process "
            f"needs a prompt; lower it to {spec.prompts_per_step} or raise prompts_per_step.",
        )
    if spec.overlap:
        raise misfit("parallelism", f"{begin} but overlap is true, which is for one process; set overlap to false.")
    if not isinstance(spec.rollouts, EngineRollouts):
        raise misfit(
            "parallelism",
            f"{begin} but rollouts.kind is {spec.rollouts.kind!r}, whose weights come from one process; set rollouts to engine or "
            "parallelism to one_process.",
        )
    if isinstance(spec.selection, ProbeSelection):
        raise misfit(
            "parallelism",
            f"{begin} but selection.kind is 'probe', whose candidates wait in the memory of one process; set selection to all or "
            "parallelism to one_process.",
        )
    if not isinstance(chosen, FullySharded):
        return
    if not isinstance(spec.adapter, NoAdapter):
        raise misfit(
            "parallelism",
            f"{begin} but adapter.kind is {spec.adapter.kind!r}, whose layers are not cut into parts; set parallelism to "
            "data_parallel or adapter to none.",
        )
    if spec.teacher_offload == "always":
        raise misfit(
            "parallelism",
            f"{begin} but teacher_offload is 'always', and a teacher in parts has no whole weights to offload; set "
            "teacher_offload to auto or never.",
        )


MACHINE_RULES: list[Callable[[RunSpec], None]] = [
    _what_overlaps_is_known_a_step_ahead,
    _an_offloaded_teacher_has_weights_of_its_own,
    _vllm_can_sample_what_is_asked,
    a_served_teacher_can_tell_what_is_asked,
    _several_processes_share_what_they_can,
]
