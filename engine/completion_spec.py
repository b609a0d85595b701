"""Who writes the completions that a step trains on: the student, the teacher, the prompt file, or two of them.

A source is a value of the spec: data plus pure functions. `source_at` says who writes at a step, `sampling_ledger` what
that costs; engine/sources.py lets them write. It imports without torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.flops import FlopLedger, ModelShape, continuation_ledger, rollout_ledger
from engine.frozen import Frozen
from engine.prefix_state import Tokens


class _Source(Frozen):
    """What most sources have in common."""

    @property
    def reads_prompt_file(self) -> bool:
        """Whether each prompt needs a completion beside it."""
        return False


class StudentCompletions(_Source):
    """The student writes: on-policy distillation."""

    kind: Literal["student"] = "student"

    def source_at(self, seed: int, step: int) -> StudentCompletions:
        """Who writes at a step, counted from 0: the student, always."""
        return self

    def sampling_ledger(
        self, student: ModelShape, teacher: ModelShape, prompt_tokens: int, completion_tokens: list[int]
    ) -> FlopLedger:
        """FLOPs of writing one prompt's completions, given the tokens of each."""
        return rollout_ledger(student, prompt_tokens, completion_tokens)


class TeacherCompletions(_Source):
    """The teacher writes, sampled to the same horizon: off-policy, its sampling is paid with the teacher's FLOPs."""

    kind: Literal["teacher"] = "teacher"

    def source_at(self, seed: int, step: int) -> TeacherCompletions:
        """Who writes at a step, counted from 0: the teacher, always."""
        return self

    def sampling_ledger(
        self, student: ModelShape, teacher: ModelShape, prompt_tokens: int, completion_tokens: list[int]
    ) -> FlopLedger:
        """FLOPs of writing one prompt's completions, given the tokens of each."""
        return rollout_ledger(teacher, prompt_tokens, completion_tokens)


class DataCompletions(_Source):
    """The prompt file brings them: each row's `completion`, cut at the horizon; nothing is sampled."""

    kind: Literal["data"] = "data"

    @property
    def reads_prompt_file(self) -> bool:
        """Whether each prompt needs a completion beside it."""
        return True

    def source_at(self, seed: int, step: int) -> DataCompletions:
        """Who writes at a step, counted from 0: the prompt file, always."""
        return self

    def sampling_ledger(
        self, student: ModelShape, teacher: ModelShape, prompt_tokens: int, completion_tokens: list[int]
    ) -> FlopLedger:
        """FLOPs of writing one prompt's completions: none."""
        return FlopLedger()


class MixedCompletions(_Source):
    """Each step is on-policy or off-policy as a whole (GKD, Agarwal et al. 2024, arXiv 2306.13649), drawn from seed and step."""

    kind: Literal["mixture"] = "mixture"
    on_policy_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that the student writes the completions of a step (lambda in GKD)."""
    otherwise: Literal["teacher", "data"] = "teacher"
    """Who writes the completions of the other steps: the teacher, or the prompt file."""

    @property
    def reads_prompt_file(self) -> bool:
        """Whether each prompt needs a completion beside it."""
        return self._off_policy.reads_prompt_file

    @property
    def _off_policy(self) -> TeacherCompletions | DataCompletions:
        return TeacherCompletions() if self.otherwise == "teacher" else DataCompletions()

    def source_at(self, seed: int, step: int) -> StudentCompletions | TeacherCompletions | DataCompletions:
        """Who writes at a step, counted from 0: it depends on seed and step alone."""
        # The 2 keeps clear of the numbers of the prompt order (0) and of the rollouts (1).
        import numpy as np  # where it is drawn: supervisors, which read specs, do without it

        draw = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, step, 2, 0])).random()
        return StudentCompletions() if draw < self.on_policy_share else self._off_policy

    def sampling_ledger(
        self, student: ModelShape, teacher: ModelShape, prompt_tokens: int, completion_tokens: list[int]
    ) -> FlopLedger:
        """Expected FLOPs of writing one prompt's completions, over the draw of the step."""
        costs = [
            source.sampling_ledger(student, teacher, prompt_tokens, completion_tokens)
            for source in (StudentCompletions(), self._off_policy)
        ]
        return costs[0] * self.on_policy_share + costs[1] * (1 - self.on_policy_share)


class TeacherPrefix(_Source):
    """The teacher writes the first tokens and the student goes on behind them to the horizon (ours)."""

    kind: Literal["teacher_prefix"] = "teacher_prefix"
    tokens: Tokens = 8
    """Tokens that the teacher writes; the student continues them unless the teacher has ended its text."""
    loss_on: Literal["student", "all"] = "student"
    """Which tokens carry loss: those that the student wrote, or all."""

    def source_at(self, seed: int, step: int) -> TeacherPrefix:
        """Who writes at a step, counted from 0: both, always."""
        return self

    def sampling_ledger(
        self, student: ModelShape, teacher: ModelShape, prompt_tokens: int, completion_tokens: list[int]
    ) -> FlopLedger:
        """FLOPs of writing one prompt's completions, given the tokens of each; both models read the prompt."""
        begun = [min(count, self.tokens) for count in completion_tokens]
        return rollout_ledger(teacher, prompt_tokens, begun) + continuation_ledger(
            student, prompt_tokens, completion_tokens, self.tokens
        )


StepSource = StudentCompletions | TeacherCompletions | DataCompletions | TeacherPrefix
CompletionSource = Annotated[
    StudentCompletions | TeacherCompletions | DataCompletions | MixedCompletions | TeacherPrefix,
    Field(discriminator="kind"),
]
