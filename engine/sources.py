"""Lets the source of a step write its completions: the student, the teacher, the prompt file, or teacher and student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.completion_spec import DataCompletions, StepSource, StudentCompletions, TeacherCompletions, TeacherPrefix
from engine.encode import completion_ids
from engine.evaluate import EncodedPrompt
from engine.flops import FlopLedger
from engine.language_model import LanguageModel
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.vllm_sampler import VllmSampler


@dataclass
class Writers:
    """Those who can write: both models, and the prompt file with its completions."""

    student: Sampler | VllmSampler
    teacher: Sampler
    prompts: list[EncodedPrompt]

    @classmethod
    def of(
        cls,
        student: LanguageModel,
        teacher: LanguageModel,
        prompts: list[EncodedPrompt],
        *,
        seed: int,
        temperature: float,
        on_token: Callable[[], None] = lambda: None,
    ) -> Writers:
        """Both models draw the same uniforms at the same position of the same rollout."""
        return cls(
            Sampler(student, seed, temperature, on_token), Sampler(teacher, seed, temperature, on_token), prompts
        )

    def write(self, source: StepSource, requests: list[RolloutRequest], horizon: int) -> list[list[Rollout]]:
        """The rollouts of each request, at most `horizon` tokens each; of the prompt file, one for each request."""
        match source:
            case StudentCompletions():
                return _by_request(self.student.sample(requests, horizon), requests)
            case TeacherCompletions():
                rollouts = [replace(r, author="teacher") for r in self.teacher.sample(requests, horizon)]
                return _by_request(rollouts, requests)
            case DataCompletions():
                return [[self._copied(request, horizon)] for request in requests]
            case TeacherPrefix():
                begun = _by_request(self.teacher.sample(requests, min(source.tokens, horizon)), requests)
                return [
                    [_with_loss(rollout, source) for rollout in rollouts]
                    for rollouts in self._continued(begun, requests, horizon)
                ]

    @property
    def executed(self) -> FlopLedger:
        """All that both models have computed."""
        return self.student.executed + self.teacher.executed

    def _copied(self, request: RolloutRequest, horizon: int) -> Rollout:
        """The row's completion with its end-of-text token, cut at the horizon."""
        text = self.prompts[request.prompt_index].row.completion
        assert text is not None, "read_prompts refuses rows without a completion when a source needs them"
        written = completion_ids(self.student.model, text)
        limit = request.limit(horizon)
        return Rollout(
            prompt_index=request.prompt_index,
            prompt_token_ids=request.prompt_token_ids,
            completion_token_ids=written[:limit],
            completion_logprobs=[0.0] * min(len(written), limit),
            finish_reason="eos" if len(written) <= limit else "length",
            author="data",
        )

    def _continued(
        self, begun: list[list[Rollout]], requests: list[RolloutRequest], horizon: int
    ) -> list[list[Rollout]]:
        """What the teacher has begun and the student goes on with; prompts with nothing left to write are not even read."""
        groups = list(begun)
        opened = [
            i
            for i, (request, group) in enumerate(zip(requests, begun, strict=True))
            if any(rollout.is_open(request.limit(horizon)) for rollout in group)
        ]
        asked = [replace(requests[i], begun=tuple(begun[i])) for i in opened]
        for i, group in zip(opened, _by_request(self.student.sample(asked, horizon), asked), strict=True):
            groups[i] = group
        return groups


def _with_loss(rollout: Rollout, source: TeacherPrefix) -> Rollout:
    """The rollout with its author and the source's loss; where the teacher has ended its text, all is the teacher's."""
    count = len(rollout.completion_token_ids)
    num_begun = min(source.tokens, count)
    return replace(
        rollout,
        author="teacher" if num_begun == count else "student",
        num_begun=num_begun,
        supervised_start=num_begun if source.loss_on == "student" else 0,
    )


def _by_request(rollouts: list[Rollout], requests: list[RolloutRequest]) -> list[list[Rollout]]:
    remaining = iter(rollouts)
    return [[next(remaining) for _ in range(request.num_rollouts)] for request in requests]
