"""Rules that look at several fields of a spec at once. Each raises `misfit` with the field, the value, the limit and the fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.adaptive_prefixes import DivergenceSharePrefix, PlateauPrefix
from engine.anchoring import NoAnchoring
from engine.completion_spec import StudentCompletions, TeacherPrefix
from engine.early_stopping import StopByEvaluation
from engine.evaluation_spec import FALLING
from engine.findings import misfit
from engine.loss_region import SuffixRegion, WindowRegion
from engine.machine_rules import MACHINE_RULES
from engine.optimizer_spec import ConstantWithDecay
from engine.policy_gradient import PolicyGradient
from engine.prefixes import StagesPrefix
from engine.prompt_reference import GymTasks, ReadyTask, parsed_reference
from engine.scorers import ReasoningGym
from engine.selection_spec import ProbeSelection
from engine.sentinel_spec import GrowHorizon, WatchTail

if TYPE_CHECKING:
    from engine.spec import RunSpec


def _prefix_is_within_the_completion(spec: RunSpec) -> None:
    prefix, limit = spec.prefix, spec.max_completion_tokens
    lengths = {name: getattr(prefix, name, None) for name in _PREFIX_REMEDIES}
    if isinstance(prefix, StagesPrefix):
        lengths |= {f"stages.{i}.tokens": stage.tokens for i, stage in enumerate(prefix.stages)}
    for name, tokens in lengths.items():
        if tokens is not None and tokens > limit:
            remedy = _PREFIX_REMEDIES.get(name, "shorten the stage")
            raise misfit(
                f"prefix.{name}",
                f"prefix.{name} is {tokens} but max_completion_tokens is {limit}; {remedy} or raise max_completion_tokens.",
            )
    start, cap = lengths["start_tokens"], lengths["cap_tokens"]
    if start is not None and cap is not None and start > cap:
        raise misfit(
            "prefix.start_tokens",
            f"prefix.start_tokens is {start} but prefix.cap_tokens is {cap}; start shorter or raise the cap.",
        )


_PREFIX_REMEDIES = {
    "tokens": "shorten the prefix",
    "start_tokens": "start shorter",
    "end_tokens": "end shorter",
    "cap_tokens": "lower the cap",
}


def _warmup_is_within_the_run(spec: RunSpec) -> None:
    phase = spec.warmup_phase.num_steps
    if phase >= spec.num_steps:
        raise misfit(
            "warmup_phase.num_steps",
            f"warmup_phase.num_steps is {phase} but num_steps, which includes them, is {spec.num_steps}; "
            "shorten the warm-up phase or train longer.",
        )
    if spec.optimizer.warmup_steps > spec.num_distillation_steps:
        behind = f" and the warm-up phase takes {phase} of them" if phase else ""
        raise misfit(
            "optimizer.warmup_steps",
            f"optimizer.warmup_steps is {spec.optimizer.warmup_steps} but num_steps is {spec.num_steps}{behind}; "
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
    shortest = spec.prefix.shortest(spec.prefix_state())
    if region.start >= shortest:
        raise misfit(
            "loss_region.start",
            f"loss_region.start is {region.start} but the prefix has only {shortest} tokens at its shortest, "
            "so the window would be empty; start the window earlier or lengthen the prefix.",
        )


def _the_metrics_that_decide_are_measured(spec: RunSpec) -> None:
    evaluation = spec.evaluation
    for field, metric in spec.deciding_metrics.items():
        if metric == "avg_at_k" and not evaluation.samples_per_prompt:
            raise misfit(
                "evaluation.samples_per_prompt",
                f"evaluation.samples_per_prompt is 0 but {field} is avg_at_k, which needs samples; "
                "set samples_per_prompt to 1 or more, or choose another metric.",
            )
        if metric == "forward_kl_on_teacher_texts" and not evaluation.num_teacher_texts:
            raise misfit(
                "evaluation.num_teacher_texts",
                f"evaluation.num_teacher_texts is 0 but {field} is forward_kl_on_teacher_texts; "
                "set num_teacher_texts to 1 or more, or choose another metric.",
            )


def _a_target_can_be_reached(spec: RunSpec) -> None:
    rule = spec.early_stopping
    if (
        isinstance(rule, StopByEvaluation)
        and rule.target is not None
        and rule.target > 1
        and rule.metric not in FALLING
    ):
        raise misfit(
            "early_stopping.target",
            f"early_stopping.target is {rule.target:g} but {rule.metric} is a share and never above 1; lower it to 1 at most.",
        )


def _a_teacher_prefix_leaves_tokens_to_the_student(spec: RunSpec) -> None:
    if not isinstance(spec.completions, TeacherPrefix):
        return
    shortest = _shortest_rollout(spec)
    if spec.completions.tokens >= shortest:
        raise misfit(
            "completions.tokens",
            f"completions.tokens is {spec.completions.tokens} but a rollout has only {shortest} tokens where the prefix is "
            "shortest, which leaves the student nothing to write; let the teacher write less or lengthen the prefix.",
        )


def _shortest_rollout(spec: RunSpec) -> int:
    """Most tokens that a rollout may have where the prefix is shortest, which need not be at the first step."""
    return spec.loss_region.sampled_tokens(spec.prefix.shortest(spec.prefix_state()))


def _data_has_one_completion_for_each_prompt(spec: RunSpec) -> None:
    if spec.completions.reads_prompt_file and spec.rollouts_per_prompt > 1:
        raise misfit(
            "rollouts_per_prompt",
            f"rollouts_per_prompt is {spec.rollouts_per_prompt} but each row of the prompt file has one completion; "
            "set it to 1 or let a model write the completions.",
        )


def _a_probe_has_candidates_to_choose_from(spec: RunSpec) -> None:
    selection, n = spec.selection, spec.rollouts_per_prompt
    if not isinstance(selection, ProbeSelection):
        return
    if not isinstance(spec.completions, StudentCompletions):
        raise misfit(
            "selection",
            f"selection is a probe of what the student writes but completions.kind is {spec.completions.kind!r}; "
            "set completions to student or selection to all.",
        )
    if n < 2:
        raise misfit(
            "rollouts_per_prompt",
            f"rollouts_per_prompt is {n} but a probe keeps at least one rollout of each prompt, so it needs 2 or more to "
            "choose from; raise it or set selection to all.",
        )
    if selection.drop_share > 1 - 1 / n:
        raise misfit(
            "selection.drop_share",
            f"selection.drop_share is {selection.drop_share:g} but at most {1 - 1 / n:.3g} of {n} rollouts per prompt can be "
            "dropped, as one is kept for each; lower it or raise rollouts_per_prompt.",
        )
    shortest = _shortest_rollout(spec)
    if selection.probe_tokens > shortest:
        raise misfit(
            "selection.probe_tokens",
            f"selection.probe_tokens is {selection.probe_tokens} but a rollout has only {shortest} tokens where the prefix is "
            "shortest; shorten the probe or lengthen the prefix.",
        )


def _sentinel_has_prompts_and_something_to_change(spec: RunSpec) -> None:
    watched = spec.sentinel
    if not isinstance(watched, WatchTail):
        return
    if watched.prompts == "dev" and watched.num_rollouts > spec.evaluation.num_prompts:
        raise misfit(
            "sentinel.num_rollouts",
            f"sentinel.num_rollouts is {watched.num_rollouts} but evaluation.num_prompts is {spec.evaluation.num_prompts}; "
            "watch fewer rollouts, evaluate more prompts or watch training prompts.",
        )
    if watched.action.kind in ("grow", "anchor") and spec.trains_whole_completions:
        raise misfit(
            "sentinel.action",
            f"sentinel.action is {watched.action.kind} but a full prefix already trains every step to the full length; "
            "let it warn or stop, or choose another prefix.",
        )
    if isinstance(watched.action, GrowHorizon) and isinstance(spec.loss_region, WindowRegion):
        raise misfit(
            "sentinel.action",
            f"sentinel.action is grow but the window of loss_region ends at token {spec.loss_region.end} whatever the horizon is; "
            "let it anchor, warn or stop, or choose another loss_region.",
        )


def _the_scorer_has_what_it_needs(spec: RunSpec) -> None:
    evaluation = spec.evaluation
    for field, reference in (
        ("prompts.path", spec.prompts.path),
        ("evaluation.path", evaluation.path),
        ("evaluation.report_path", evaluation.report_path),
    ):
        source = parsed_reference(reference) if reference is not None else None
        if isinstance(source, ReadyTask) and field == "prompts.path":
            raise misfit(
                field, f"{field} is {reference!r}, but ready tasks are for evaluation; train on other prompts."
            )
        scorer = evaluation.scorer
        if isinstance(scorer, ReasoningGym) and source is not None and field != "prompts.path":
            if isinstance(source, ReadyTask) or (isinstance(source, GymTasks) and source.task == scorer.task):
                continue
            raise misfit(
                "evaluation.scorer",
                f"evaluation.scorer is that of the reasoning-gym task {scorer.task} but {field} is {reference!r}; "
                f"set the path to reasoning_gym:{scorer.task} or choose another scorer.",
            )


def _a_policy_gradient_has_tokens_of_the_student(spec: RunSpec) -> None:
    # On another writer's tokens the expectation is not over the student, and the gradient is that of no divergence.
    if not isinstance(spec.divergence, PolicyGradient):
        return
    if isinstance(spec.completions, TeacherPrefix) and spec.completions.loss_on == "all":
        raise misfit(
            "completions.loss_on",
            "completions.loss_on is 'all' but divergence policy_gradient is right only on tokens that the student sampled; "
            "set completions.loss_on to student or choose another divergence.",
        )
    if not isinstance(spec.completions, StudentCompletions | TeacherPrefix):
        raise misfit(
            "divergence",
            f"divergence is policy_gradient, which is right on tokens that the student sampled, but completions.kind is "
            f"{spec.completions.kind!r}; set completions to student or teacher_prefix, or choose another divergence.",
        )


def _a_prefix_that_goes_by_the_divergence_sees_one(spec: RunSpec) -> None:
    if isinstance(spec.divergence, PolicyGradient) and isinstance(spec.prefix, PlateauPrefix | DivergenceSharePrefix):
        raise misfit(
            "prefix",
            f"prefix.kind is {spec.prefix.kind!r}, which grows by the loss of the prefix's tokens, but divergence policy_gradient "
            "has a loss of either sign whose size says nothing; choose another prefix, such as validation, or another divergence.",
        )


RULES: list[Callable[[RunSpec], None]] = [
    _prefix_is_within_the_completion,
    _warmup_is_within_the_run,
    _only_one_decay_is_set,
    _anchoring_has_something_to_anchor,
    _loss_region_is_within_the_rollouts,
    _the_metrics_that_decide_are_measured,
    _a_target_can_be_reached,
    _a_teacher_prefix_leaves_tokens_to_the_student,
    _data_has_one_completion_for_each_prompt,
    _a_probe_has_candidates_to_choose_from,
    _sentinel_has_prompts_and_something_to_change,
    _the_scorer_has_what_it_needs,
    _a_policy_gradient_has_tokens_of_the_student,
    _a_prefix_that_goes_by_the_divergence_sees_one,
    *MACHINE_RULES,
]
