"""What a run minimises at each token: its divergence on the models' actions, and the termination guard beside it.

N tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.divergences import TokenScores
from engine.language_model import LanguageModel
from engine.objective_spec import Divergence
from engine.spec import RunSpec
from engine.termination_guard import ForwardKLGuard


@dataclass(frozen=True)
class StopMerge:
    """Several end-of-text ids as one action, which stands behind all other tokens."""

    stop_ids: Tensor
    """[E] the merged ids, two at least."""
    other_ids: Tensor
    """[V - E]"""
    new_id: Tensor
    """[V] where each id stands afterwards."""

    @classmethod
    def of(cls, stop_ids: Tensor, vocabulary: int) -> StopMerge:
        """The merge of `stop_ids` [E] in a vocabulary of V tokens."""
        is_other = torch.ones(vocabulary, dtype=torch.bool, device=stop_ids.device).index_fill(0, stop_ids, False)
        new_id = (is_other.cumsum(0) - 1).index_fill(0, stop_ids, vocabulary - len(stop_ids))
        return cls(stop_ids, is_other.nonzero().squeeze(-1), new_id)

    def logprobs(self, logprobs: Tensor) -> Tensor:
        """[N, V] to [N, V - E + 1]."""
        stop = logprobs.index_select(-1, self.stop_ids).logsumexp(-1, keepdim=True)
        return torch.cat([logprobs.index_select(-1, self.other_ids), stop], dim=-1)


@dataclass(frozen=True)
class Terms:
    """The objective at N tokens."""

    loss: Tensor
    """[N] what is summed, with gradient."""
    divergence: Tensor
    """[N] without weights and guard, detached, nats."""
    measures: tuple[Tensor, ...]
    """[N] of each of the objective's `measure_names`, detached."""


@dataclass(frozen=True)
class Objective:
    """The divergence of a run with the stop ids of its two models."""

    divergence: Divergence
    guard: ForwardKLGuard | None = None
    stop_ids: Tensor | None = None
    """[E] ids with which either model ends a text; the guard needs them."""
    merge: StopMerge | None = None

    @classmethod
    def of(cls, spec: RunSpec, student: LanguageModel, teacher: LanguageModel) -> Objective:
        """The objective of a run on its models, whose heads have one vocabulary."""
        stop_ids = torch.tensor(shared_stop_ids(student, teacher), device=student.device)
        merge = None
        if spec.merge_stop_tokens and len(stop_ids) > 1:
            merge = StopMerge.of(stop_ids, student.head.vocabulary)
        guard = spec.termination_guard if isinstance(spec.termination_guard, ForwardKLGuard) else None
        return cls(spec.divergence, guard, stop_ids, merge)

    @property
    def measure_names(self) -> tuple[str, ...]:
        """What is measured beside the divergence; the means over all tokens are metrics of a step."""
        return self.divergence.measure_names + (("termination_guard",) if self.guard else ())

    def scores(self, student_logprobs: Tensor, teacher_logprobs: Tensor, token_ids: Tensor) -> TokenScores:
        """What the divergence looks at: the models' log-probabilities [N, V], stop ids merged if they are to be."""
        if self.merge is None:
            return TokenScores(student_logprobs, teacher_logprobs, token_ids)
        merged = self.merge
        return TokenScores(
            merged.logprobs(student_logprobs), merged.logprobs(teacher_logprobs), merged.new_id[token_ids]
        )

    def terms(
        self, student_logprobs: Tensor, teacher_logprobs: Tensor, token_ids: Tensor, weights: Tensor | None = None
    ) -> Terms:
        """The objective at N tokens, [N, V] log-probabilities and [N] ids; `weights` [N] belong to the divergence alone."""
        divergence, measures = self.divergence.measured(self.scores(student_logprobs, teacher_logprobs, token_ids))
        loss = divergence if weights is None else divergence * weights
        if self.guard is not None:
            assert self.stop_ids is not None, "a guard knows its stop ids"
            stopping = self.guard.per_token(student_logprobs, teacher_logprobs, self.stop_ids)
            loss = loss + self.guard.weight * stopping
            measures = (*measures, stopping.detach())
        return Terms(loss, divergence.detach(), measures)


def shared_stop_ids(student: LanguageModel, teacher: LanguageModel) -> list[int]:
    """Ids with which either model ends a text, of those that both models know; ascending."""
    vocabulary = min(student.head.vocabulary, teacher.head.vocabulary)
    return sorted(token_id for token_id in student.eos_token_ids | teacher.eos_token_ids if token_id < vocabulary)
