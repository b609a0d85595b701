"""The student: model, optimizer and the one way its weights change."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from engine.batch import RolloutBatch, micro_batches
from engine.errors import RunError, first_line, is_out_of_memory
from engine.flops import FlopLedger, padded_update_flops, signal_flops, update_flops
from engine.fused_loss import Heads, fused_divergence
from engine.gradient_checkpointing import checkpoint_blocks
from engine.language_model import LanguageModel
from engine.memory_plan import MemoryPlan, Shortage
from engine.objective import Objective
from engine.rollout import Rollout
from engine.spec import RunSpec
from engine.taught import taught_batches
from engine.token_weighting import weights_of_batch
from engine.top_tokens import TopTokens

T = TypeVar("T")


@dataclass(frozen=True)
class Update:
    """What one optimizer update did; [T] by completion position, nats. Means over no token at all are None."""

    loss: float | None
    """Mean divergence over all supervised tokens of the global batch, nats; None when there was none, and no update."""
    grad_norm: float | None
    learning_rate: float
    student_entropy: float | None
    teacher_entropy: float | None
    logprob_gap: float | None
    """Mean |sampler's log-prob − training pass's log-prob| of the student's own supervised tokens, nats: 0 but for rounding."""
    num_own_tokens: int
    """Supervised tokens that the student sampled."""
    position_loss: list[float]
    """Mean divergence by position up to the last supervised one; 0 where no rollout has a supervised token."""
    position_count: list[int]
    measures: dict[str, float]
    """What the objective measures beside the loss, such as kept_mass_teacher: means over all supervised tokens."""
    num_tokens: int
    """Supervised tokens of the global batch."""
    flops: FlopLedger
    """Useful FLOPs."""
    executed: FlopLedger
    """FLOPs of the padded micro-batches."""

    def metrics(self, rollouts: list[Rollout]) -> dict[str, float | None]:
        """The figures of a step event, see engine.events.StepDone."""
        rollout_tokens = sum(len(rollout.completion_token_ids) for rollout in rollouts)
        return {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "rollout_tokens": rollout_tokens,
            "supervised_tokens": self.num_tokens,
            "mean_tokens": rollout_tokens / len(rollouts),
            "natural_stop_rate": sum(rollout.finish_reason == "eos" for rollout in rollouts) / len(rollouts),
            "student_entropy": self.student_entropy,
            "teacher_entropy": self.teacher_entropy,
            "sampled_logprob_gap": self.logprob_gap,
            "own_token_share": self.num_own_tokens / self.num_tokens if self.num_tokens else None,
            **self.measures,
        }


class Student:
    """A language model with its AdamW state. Weights are float32."""

    def __init__(self, model: LanguageModel, spec: RunSpec, plan: MemoryPlan | None = None) -> None:
        """`plan` is how it keeps within its memory; None is as the spec says."""
        self.model = model
        self.spec = spec
        self.plan = MemoryPlan.stated(spec) if plan is None else plan
        self.on_shortage: Callable[[Shortage], None] = lambda shortage: None
        if self.plan.recomputes_blocks:
            checkpoint_blocks(model.module)
        # Norms and biases are not decayed, as is usual; they are the parameters with fewer than two axes.
        named = [(name, p) for name, p in model.module.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": spec.optimizer.weight_decay},
            {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.parameter_names = {p: name for name, p in named}
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=spec.optimizer.learning_rate,
            betas=(spec.optimizer.beta1, spec.optimizer.beta2),
            eps=spec.optimizer.eps,
            fused=True,
        )

    @property
    def num_trained_parameters(self) -> int:
        """Weights that an update changes."""
        return sum(parameter.numel() for parameter in self.parameter_names)

    def update(self, rollouts: list[Rollout], teacher: LanguageModel, step: int) -> Update:
        """One optimizer update on the supervised tokens of `rollouts`, none when there are none.

        `step` counts the steps of distillation from 0. Raises RunError("nan_loss") before the weights change when loss or
        gradient is not finite.
        """
        # A rollout without a supervised token has no gradient: neither model reads it.
        trained = [rollout for rollout in rollouts if rollout.supervised]
        rate = self.spec.optimizer.learning_rate_at(step, self.spec.num_distillation_steps)
        if not trained:
            return _Sums(0).update(None, rate, 0)
        num_supervised = sum(len(rollout.supervised) for rollout in trained)
        sums = self.accumulate(trained, teacher)
        norm = self.apply(sums.loss, rate, self.spec.warmup_phase.num_steps + step)
        return sums.update(norm, rate, num_supervised)

    def apply(self, loss: float, rate: float, step: int) -> float:
        """Change the weights by the gradient that lies in them, clipped; its norm before that. `step` is the run's, from 0.

        Raises RunError("nan_loss") before the weights change when `loss` or the gradient is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameter_names), self.spec.optimizer.max_grad_norm)
        if not (torch.isfinite(norm) and math.isfinite(loss)):
            owner = "warmup_phase" if step < self.spec.warmup_phase.num_steps else "optimizer"
            raise RunError(
                "nan_loss",
                f"Step {step + 1}: loss {loss:.4g}, gradient norm {float(norm):.4g} are not finite; "
                f"lower {owner}.learning_rate, lengthen warmup_steps or set precision to float32.",
            )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def accumulate(self, rollouts: list[Rollout], teacher: LanguageModel) -> _Sums:
        """Leave the gradient of the mean loss on all supervised tokens of `rollouts` (one at least) in the parameters."""
        num_supervised = sum(len(rollout.supervised) for rollout in rollouts)

        def take(groups: list[list[Rollout]]) -> _Sums:
            sums = _Sums(max(rollout.supervised.stop for rollout in rollouts))
            with teacher.on_device(head_alone=True):
                for group, (batch, hidden) in zip(groups, taught_batches(groups, self.model, teacher), strict=True):
                    self._backward(group, batch, hidden, teacher, num_supervised, sums)
            return sums

        return self.in_micro_batches(rollouts, take)

    def in_micro_batches(self, rollouts: list[Rollout], take: Callable[[list[list[Rollout]]], T]) -> T:
        """What `take` gives, which adds the gradients of all micro-batches to parameters that have none.

        When memory runs out, their gradients are dropped and it is called again with micro-batches of half the size, which
        stays for the rest of the run. Raises RunError("oom_host" or "gpu_error") when a single rollout is too much.
        """
        while True:
            groups = micro_batches(rollouts, self.plan.micro_batch_rollouts, self.model.device)
            try:
                return take(groups)
            except Exception as error:
                if not (isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error)):
                    raise
                cause, is_of_gpu = first_line(error), isinstance(error, torch.OutOfMemoryError)
            # Behind the handler: as long as the error lives, its traceback holds the tensors of the failed pass.
            self.optimizer.zero_grad(set_to_none=True)
            if is_of_gpu:
                torch.cuda.empty_cache()  # blocks of the old sizes fit the new ones badly
            self._take_less_at_once(max(map(len, groups)), cause, is_of_gpu=is_of_gpu)

    def _take_less_at_once(self, num_together: int, cause: str, *, is_of_gpu: bool) -> None:
        plan = self.plan.halved(num_together)
        if plan is None:
            raise RunError(
                "gpu_error" if is_of_gpu else "oom_host",
                f"The {'GPU' if is_of_gpu else 'machine'}'s memory ran out with one rollout at a time ({cause}), so that "
                "a smaller micro_batch_rollouts does not help; set gradient_checkpointing to always, "
                f"{'teacher_offload to always, ' if is_of_gpu else ''}shorten the prefix or "
                "max_completion_tokens, or use a machine with more memory.",
            )
        self.plan = plan
        self.on_shortage(Shortage(num_together, plan, cause))

    def _backward(
        self,
        group: list[Rollout],
        batch: RolloutBatch,
        taught: Tensor | TopTokens,
        teacher: LanguageModel,
        num_supervised: int,
        sums: _Sums,
    ) -> None:
        model = self.model
        with model.autocast():
            hidden = model.hidden(batch.token_ids, use_cache=False).flatten(0, 1)[batch.hidden_index]
        heads = Heads(model.head, teacher.head, self.spec.sampling.temperature)
        objective = Objective.of(self.spec, model, teacher)
        loss = fused_divergence(
            hidden,
            taught,
            batch.target_ids,
            heads=heads,
            objective=objective,
            num_supervised_tokens=num_supervised,
            weights=weights_of_batch(
                self.spec.token_weights, batch, hidden.detach(), taught, heads=heads, objective=objective
            ),
        )
        loss.total.backward()  # type: ignore[no-untyped-call]
        sums.loss += float(loss.total.detach())
        sums.student_entropy += float(loss.student_entropy.sum())
        sums.teacher_entropy += float(loss.teacher_entropy.sum())
        sampled = torch.tensor([rollout.completion_logprobs[at] for rollout in group for at in rollout.supervised])
        is_own = torch.tensor([at in rollout.sampled_by_student for rollout in group for at in rollout.supervised])
        sums.logprob_gap += float((loss.student_logprob.cpu().float() - sampled)[is_own].abs().sum())
        sums.num_own += int(is_own.sum())
        for name, measure in loss.measures.items():
            sums.measures[name] += float(measure.sum())
        if isinstance(taught, TopTokens):
            sums.measures["teacher_kept_mass"] += float(taught.kept_mass.sum())
        sums.position_loss.index_add_(0, batch.position, loss.per_token.cpu().double())
        sums.position_count.index_add_(0, batch.position, torch.ones(len(batch.position), dtype=torch.long))
        for rollout in group:
            sums.flops += update_flops(
                model.shape,
                teacher.shape,
                len(rollout.prompt_token_ids),
                len(rollout.completion_token_ids),
                num_supervised=len(rollout.supervised),
                recomputes_blocks=self.plan.recomputes_blocks,
            )
        sums.executed += padded_update_flops(
            model.shape,
            teacher.shape,
            len(group),
            batch.token_ids.shape[1],
            len(batch.target_ids),
            recomputes_blocks=self.plan.recomputes_blocks,
        )
        if self.spec.projects_twice:
            signal = signal_flops(model.shape, teacher.shape, len(batch.target_ids))
            sums.flops += signal
            sums.executed += signal


class _Sums:
    """Totals over the micro-batches of one update."""

    def __init__(self, num_positions: int) -> None:
        self.loss = self.student_entropy = self.teacher_entropy = self.logprob_gap = 0.0
        self.num_own = 0
        self.measures: dict[str, float] = defaultdict(float)
        self.position_loss: Tensor = torch.zeros(num_positions, dtype=torch.double)
        self.position_count: Tensor = torch.zeros(num_positions, dtype=torch.long)
        self.flops = self.executed = FlopLedger()

    def update(self, norm: float | None, rate: float, num_tokens: int) -> Update:
        def mean(total: float) -> float | None:
            return total / num_tokens if num_tokens else None

        return Update(
            loss=self.loss if num_tokens else None,
            grad_norm=norm,
            learning_rate=rate,
            student_entropy=mean(self.student_entropy),
            teacher_entropy=mean(self.teacher_entropy),
            logprob_gap=self.logprob_gap / self.num_own if self.num_own else None,
            num_own_tokens=self.num_own,
            measures={name: total / num_tokens for name, total in self.measures.items()},
            position_loss=(self.position_loss / self.position_count.clamp(min=1)).tolist(),
            position_count=self.position_count.tolist(),
            num_tokens=num_tokens,
            flops=self.flops,
            executed=self.executed,
        )
