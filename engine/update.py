"""What one optimizer update did, from the sums over its micro-batches and over all ranks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.flops import FlopLedger
from engine.ranks import Ranks
from engine.rollout import Rollout


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


_PLAIN = ("loss", "student_entropy", "teacher_entropy", "logprob_gap", "num_own")


class UpdateSums:
    """Totals over the micro-batches of one update."""

    def __init__(self, num_positions: int) -> None:
        self.loss = self.student_entropy = self.teacher_entropy = self.logprob_gap = 0.0
        self.num_own = 0
        self.measures: dict[str, float] = defaultdict(float)
        self.position_loss: Tensor = torch.zeros(num_positions, dtype=torch.double)
        self.position_count: Tensor = torch.zeros(num_positions, dtype=torch.long)
        self.flops = self.executed = FlopLedger()

    def over(self, ranks: Ranks) -> UpdateSums:
        """The totals of all ranks, on each of them."""
        if ranks.size == 1:
            return self
        total = UpdateSums(len(self.position_loss))
        for told in ranks.gathered(self._told()):
            total._add(told)
        return total

    def _told(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in _PLAIN}
        ledgers = {"flops": self.flops.model_dump(), "executed": self.executed.model_dump()}
        positions = {"loss_at": self.position_loss.tolist(), "count_at": self.position_count.tolist()}
        return plain | ledgers | positions | {"measures": dict(self.measures)}

    def _add(self, told: dict[str, Any]) -> None:
        for name in _PLAIN:
            setattr(self, name, getattr(self, name) + told[name])
        for name, value in told["measures"].items():
            self.measures[name] += value
        self.position_loss += torch.tensor(told["loss_at"], dtype=torch.double)
        self.position_count += torch.tensor(told["count_at"], dtype=torch.long)
        self.flops += FlopLedger(**told["flops"])
        self.executed += FlopLedger(**told["executed"])

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
