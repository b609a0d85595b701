"""The student: model, optimizer and the one way its weights change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from engine.batch import RolloutBatch, micro_batches, num_tokens
from engine.errors import RunError, first_line, is_out_of_memory
from engine.flops import padded_update_flops, signal_flops, update_flops
from engine.fused_loss import FusedLoss, Heads, fused_divergence
from engine.gradient_checkpointing import checkpoint_blocks
from engine.language_model import LanguageModel
from engine.memory_plan import MemoryPlan, Shortage
from engine.objective import Objective
from engine.rollout import Rollout
from engine.spec import RunSpec
from engine.taught import taught_batches
from engine.token_weighting import weights_of_batch
from engine.top_tokens import TopTokens
from engine.update import Update, UpdateSums

T = TypeVar("T")


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
            return UpdateSums(0).update(None, rate, 0)
        num_supervised = sum(len(rollout.supervised) for rollout in trained)
        sums = self.accumulate(trained, teacher)
        norm = self.apply(sums.loss, rate, self.spec.warmup_phase.num_steps + step)
        return sums.update(norm, rate, num_supervised)

    def apply(self, loss: float, rate: float, step: int) -> float:
        """Change the weights by the gradient that lies in them, clipped; its norm before that. `step` is the run's, from 0.

        Raises RunError("nan_loss") before the weights change when `loss` or the gradient is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameter_names), self.spec.optimizer.max_grad_norm)
        if self.model.shards is not None:
            norm = norm.full_tensor()  # type: ignore[attr-defined]  # the norm over all parts
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

    def accumulate(self, rollouts: list[Rollout], teacher: LanguageModel) -> UpdateSums:
        """Leave the gradient of the mean loss on all supervised tokens of `rollouts` (one at least) in the parameters."""
        num_supervised = sum(len(rollout.supervised) for rollout in rollouts)
        ranks = self.model.ranks

        def take(groups: list[list[Rollout]]) -> UpdateSums:
            sums = UpdateSums(max(rollout.supervised.stop for rollout in rollouts))
            with teacher.on_device(head_alone=True):
                for group, (batch, hidden) in zip(groups, taught_batches(groups, self.model, teacher), strict=True):
                    self._backward(group, batch, hidden, teacher, num_supervised, sums)
            return sums

        return self.in_micro_batches(rollouts, take).over(ranks)

    def in_micro_batches(self, rollouts: list[Rollout], take: Callable[[list[list[Rollout]]], T]) -> T:
        """What `take` gives, which adds the gradients of all micro-batches to parameters that have none.

        Where a run has several processes, `take` gets the micro-batches of this rank's share, and gradients are summed over all.
        When memory runs out, their gradients are dropped and it is called again with micro-batches of half the size, which
        stays for the rest of the run. Raises RunError("oom_host" or "gpu_error") when a single rollout is too much.
        """
        # By length, so that all ranks have about as much to do.
        share = self.model.ranks.share(sorted(rollouts, key=num_tokens)) if self.model.ranks.size > 1 else rollouts
        while True:
            groups = micro_batches(share, self.plan.micro_batch_rollouts, self.model.device)
            try:
                taken = take(self._as_many_as_others(groups))
                break
            except Exception as error:
                if not (isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error)):
                    raise
                if self.model.shards is not None:
                    raise  # the other ranks are in the middle of the same pass and cannot begin again
                cause, is_of_gpu = first_line(error), isinstance(error, torch.OutOfMemoryError)
            # Behind the handler: as long as the error lives, its traceback holds the tensors of the failed pass.
            self.optimizer.zero_grad(set_to_none=True)
            if is_of_gpu:
                torch.cuda.empty_cache()  # blocks of the old sizes fit the new ones badly
            self._take_less_at_once(max(map(len, groups)), cause, is_of_gpu=is_of_gpu)
        self._sum_gradients()
        return taken

    def _as_many_as_others(self, groups: list[list[Rollout]]) -> list[list[Rollout]]:
        """The micro-batches, and passes over one token without loss behind them: ranks with shards run in step."""
        if self.model.shards is None:
            return groups
        idle = Rollout(0, [self.model.pad_token_id], [], [], "length")
        return groups + [[idle]] * (self.model.ranks.most(len(groups)) - len(groups))

    def _sum_gradients(self) -> None:
        # Of a sharded model, each backward pass has done so.
        if self.model.shards is None:
            self.model.ranks.sum_gradients(self.parameter_names)

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
        sums: UpdateSums,
    ) -> None:
        model = self.model
        heads = Heads(model.head, teacher.head, self.spec.sampling.temperature)
        objective = Objective.of(self.spec, model, teacher)
        losses: list[FusedLoss] = []

        def total() -> Tensor:
            with model.autocast():
                hidden = model.hidden(batch.token_ids, use_cache=False).flatten(0, 1)[batch.hidden_index]
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
            losses.append(loss)
            return loss.total

        model.run(total).backward()  # type: ignore[no-untyped-call]
        (loss,) = losses
        sums.loss += float(loss.total.detach())
        sums.student_entropy += float(loss.student_entropy.sum())
        sums.teacher_entropy += float(loss.teacher_entropy.sum())
        sampled = torch.tensor([rollout.completion_logprobs[at] for rollout in group for at in rollout.supervised])
        is_own = torch.tensor(
            [at in rollout.sampled_by_student for rollout in group for at in rollout.supervised], dtype=torch.bool
        )
        sums.logprob_gap += float((loss.student_logprob.cpu().float() - sampled)[is_own].abs().sum())
        sums.num_own += int(is_own.sum())
        for name, measure in loss.measures.items():
            sums.measures[name] += float(measure.sum())
        if isinstance(taught, TopTokens):
            sums.measures["teacher_kept_mass"] += float(taught.kept_mass.sum())
        sums.position_loss.index_add_(0, batch.position, loss.per_token.cpu().double())
        sums.position_count.index_add_(0, batch.position, torch.ones(len(batch.position), dtype=torch.long))
        for rollout in group if len(batch.target_ids) else []:  # an idle pass is of no use
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
