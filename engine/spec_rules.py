"""Rules that look at several fields of a spec at once. Each raises `misfit` with the field, the value, the limit and the fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.findings import misfit
from engine.loss_region import SuffixRegion, WindowRegion
from engine.optimizer_spec import ConstantWithDecay
from engine.prefixes import ConstantPrefix, LinearPrefix, NoAnchoring

if TYPE_CHECKING:
    from engine.spec import RunSpec


def _prefix_is_within_the_completion(spec: RunSpec) -> None:
    limit = spec.max_completion_tokens
    if isinstance(spec.prefix, ConstantPrefix) and spec.prefix.tokens > limit:
        raise misfit(
            "prefix.tokens",
            f"prefix.tokens is {spec.prefix.tokens} but max_completion_tokens is {limit}; "
            "shorten the prefix or raise max_completion_tokens.",
        )
    if isinstance(spec.prefix, LinearPrefix) and spec.prefix.start_tokens > limit:
        raise misfit(
            "prefix.start_tokens",
            f"prefix.start_tokens is {spec.prefix.start_tokens} but max_completion_tokens is {limit}; "
            "start shorter or raise max_completion_tokens.",
        )


def _warmup_is_within_the_run(spec: RunSpec) -> None:
    if spec.optimizer.warmup_steps > spec.num_steps:
        raise misfit(
            "optimizer.warmup_steps",
            f"optimizer.warmup_steps is {spec.optimizer.warmup_steps} but num_steps is {spec.num_steps}; "
            "shorten the warm-up or train longer.",
        )


def _only_one_decay_is_set(spec: RunSpec) -> None:
    if spec.optimizer.decay_fraction and not isinstance(spec.optimizer.schedule, ConstantWithDecay):
        raise misfit(
            "optimizer.decay_fraction",
            f"optimizer.decay_fraction is {spec.optimizer.decay_fraction} but optimizer.schedule is "
            f"{spec.optimizer.schedule.kind}, which falls by itself; set decay_fraction to 0 or schedule to constant_with_decay.",
        )


def _anchoring_has_something_to_anchor(spec: RunSpec) -> None:
    if spec.trains_whole_completions and not isinstance(spec.anchoring, NoAnchoring):
        raise misfit(
            "anchoring",
            "anchoring is set but a full prefix already runs every step to the full length; "
            "set anchoring to none or choose another prefix.",
        )


def _loss_region_is_within_the_rollouts(spec: RunSpec) -> None:
    region, limit = spec.loss_region, spec.max_completion_tokens
    if isinstance(region, SuffixRegion) and region.tokens > limit:
        raise misfit(
            "loss_region.tokens",
            f"loss_region.tokens is {region.tokens} but max_completion_tokens is {limit}; "
            "shorten the suffix or raise max_completion_tokens.",
        )
    if not isinstance(region, WindowRegion):
        return
    if region.start >= region.end:
        raise misfit(
            "loss_region.start",
            f"loss_region.start is {region.start} but the window ends at {region.end}; start earlier or raise loss_region.end.",
        )
    if region.end > limit:
        raise misfit(
            "loss_region.end",
            f"loss_region.end is {region.end} but max_completion_tokens is {limit}; "
            "end the window earlier or raise max_completion_tokens.",
        )
    shortest = spec.prefix.horizon_at(0, spec.prefix_state())
    if region.start >= shortest:
        raise misfit(
            "loss_region.start",
            f"loss_region.start is {region.start} but the prefix has only {shortest} tokens at its shortest, "
            "so the window would be empty; start the window earlier or lengthen the prefix.",
        )


RULES: list[Callable[[RunSpec], None]] = [
    _prefix_is_within_the_completion,
    _warmup_is_within_the_run,
    _only_one_decay_is_set,
    _anchoring_has_something_to_anchor,
    _loss_region_is_within_the_rollouts,
]
