"""Which of the rollouts of a step are trained on. It imports without torch.

A selection is a value of the spec: data plus pure functions. engine/selection.py decodes the candidates and scores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from engine.completion_spec import CompletionSource
from engine.flops import FlopLedger, ModelShape
from engine.frozen import Frozen
from engine.prefix_state import Tokens


class AllRollouts(Frozen):
    """Every rollout of a step is trained on."""

    kind: Literal["all"] = "all"

    def num_trained(self, num_prompts: int, rollouts_per_prompt: int) -> int:
        """How many rollouts of a step are trained on."""
        return num_prompts * rollouts_per_prompt

    def expected_ledger(
        self, source: CompletionSource, models: tuple[ModelShape, ModelShape], prompt_tokens: int, lengths: list[int]
    ) -> FlopLedger:
        """FLOPs of getting one prompt's rollouts, by student and teacher, if each gets the tokens given."""
        return source.sampling_ledger(*models, prompt_tokens, lengths)


class ProbeSelection(Frozen):
    """Candidates are decoded to a probe, and those go on that begin where both models see the same tokens ahead (PG-OPD).

    Prefix-Guided OPD, arXiv 2606.21994: a candidate's score is the overlap of the models' top-k tokens, averaged over the
    probe. The best of each prompt goes on, the other places go to the best of the step; the rest is dropped without loss.
    """

    kind: Literal["probe"] = "probe"
    probe_tokens: Tokens = 32
    """Tokens of each candidate that are decoded before the choice; the paper finds 128 of 5000 best and 32 too few."""
    top_k: Annotated[int, Field(ge=1, le=1024)] = 16
    """Most likely tokens of each model whose overlap is the score; the paper's 16."""
    drop_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a step's candidates that is dropped; the paper tries 0.25, 0.5 and 0.75."""

    def num_trained(self, num_prompts: int, rollouts_per_prompt: int) -> int:
        """How many rollouts of a step are trained on: the share that is not dropped, and at least one for each prompt."""
        total = num_prompts * rollouts_per_prompt
        return max(num_prompts, total - round(self.drop_share * total))

    def kept(self, scores: Sequence[Sequence[float]]) -> list[list[bool]]:
        """Which candidates go on, given the scores of each prompt's, equally many; of equal ones the earlier."""
        flags = [[False] * len(own) for own in scores]
        for prompt, own in enumerate(scores):
            flags[prompt][max(range(len(own)), key=own.__getitem__)] = True
        others = [(prompt, i) for prompt, own in enumerate(flags) for i, is_best in enumerate(own) if not is_best]
        others.sort(key=lambda place: -scores[place[0]][place[1]])
        for prompt, i in others[: self.num_trained(len(scores), len(scores[0])) - len(scores)]:
            flags[prompt][i] = True
        return flags

    def scoring_ledger(self, teacher: ModelShape, prompt_tokens: int, lengths: list[int]) -> FlopLedger:
        """FLOPs of scoring one prompt's probes: the teacher reads and projects each; the student has done so in sampling."""
        return FlopLedger(teacher=sum(teacher.forward(prompt_tokens + count, count) for count in lengths))

    def expected_ledger(
        self, source: CompletionSource, models: tuple[ModelShape, ModelShape], prompt_tokens: int, lengths: list[int]
    ) -> FlopLedger:
        """FLOPs of getting one prompt's rollouts, by student and teacher, if those that go on get the tokens given."""
        probes = [min(self.probe_tokens, length) for length in lengths]
        whole, probed = (source.sampling_ledger(*models, prompt_tokens, counts) for counts in (lengths, probes))
        scoring = self.scoring_ledger(models[1], prompt_tokens, probes)
        return whole * (1 - self.drop_share) + probed * self.drop_share + scoring


RolloutSelection = Annotated[AllRollouts | ProbeSelection, Field(discriminator="kind")]
