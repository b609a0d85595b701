"""What every analysis opens: models and evaluation prompts, checked as a run would check them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.analysis_spec import AnalysisSpec
from engine.evaluate import EncodedPrompt, completion_text
from engine.language_model import LanguageModel
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.setup import RunData, choose_device, choose_precision, connected, fit_lengths, load_data, load_models
from engine.spec import RunSpec
from engine.task_spec import scorer_of
from engine.teacher_backend_spec import VllmTeacher

Report = Callable[[float, str], None]
"""Called with the share of the work that is done and what is being done."""


@dataclass(frozen=True)
class Subjects:
    """The models and prompts under analysis."""

    spec: RunSpec
    student: LanguageModel
    teacher: LanguageModel
    data: RunData
    report: Report

    def sample(
        self,
        model: LanguageModel,
        prompts: list[EncodedPrompt],
        starts: list[list[int]],
        max_tokens: int,
        temperature: float,
    ) -> list[Rollout]:
        """One completion of each prompt behind the given first completion tokens, at most `max_tokens` with them.

        The random numbers are those of evaluation, so that lengths and models share their noise.
        """
        by_start: dict[int, list[int]] = {}
        for index, start in enumerate(starts):
            by_start.setdefault(len(start), []).append(index)
        done: dict[int, Rollout] = {}
        for length, indices in by_start.items():
            is_ended = [bool(starts[i]) and starts[i][-1] in model.eos_token_ids for i in indices]
            open_ones = [i for i, ended in zip(indices, is_ended, strict=True) if not ended and length < max_tokens]
            requests = [RolloutRequest(i, prompts[i].token_ids + starts[i], 1, 0) for i in open_ones]
            if model.servers is not None:
                for i, request in zip(open_ones, requests, strict=True):
                    model.servers.routes.take_as(prompts[i].token_ids, request.prompt_token_ids)
            sampler = Sampler(model, self.spec.seed, temperature)
            sampled = sampler.sample(requests, max_tokens - length) if requests else []
            for i, rollout in zip(open_ones, sampled, strict=True):
                done[i] = _whole(prompts[i], starts[i], rollout)
            for i in set(indices) - set(open_ones):
                ended = bool(starts[i]) and starts[i][-1] in model.eos_token_ids
                done[i] = Rollout(i, prompts[i].token_ids, starts[i], [0.0] * length, "eos" if ended else "length")
        return [done[i] for i in range(len(prompts))]

    @property
    def served_teacher_note(self) -> list[str]:
        """What a reader of divergences must know of a teacher on servers."""
        backend = self.spec.teacher_backend
        return [backend.note] if isinstance(backend, VllmTeacher) else []

    def is_right(self, model: LanguageModel, prompt: EncodedPrompt, rollout: Rollout) -> bool:
        """Whether the completion has the row's answer by the spec's scorer."""
        assert prompt.row.answer is not None, "evaluation prompts are read with their answers"
        scorer = scorer_of(self.spec.evaluation.path, self.spec.evaluation.scorer)
        return scorer.is_right(completion_text(model, rollout), prompt.row.answer, prompt.row.entry)


def open_subjects(asked: AnalysisSpec, report: Report) -> Subjects:
    """Load and check everything, the servers of the teacher too; RunError with findings at the fields of the run's spec."""
    spec = asked.run
    report(0.0, "loading models")
    device = choose_device(spec)
    student, teacher = load_models(spec, device, choose_precision(spec, device))
    data = fit_lengths(spec, load_data(spec, student.tokenizer), student, teacher)
    teacher = connected(spec, teacher, data)
    if teacher.servers is not None:
        report(0.0, "looking at the teacher's servers")
        teacher.servers.check(max((prompt.token_ids for prompt in data.train), key=len))
    return Subjects(spec, student, teacher, data, report)


def _whole(prompt: EncodedPrompt, start: list[int], rollout: Rollout) -> Rollout:
    """The rollout with its given start as part of the completion."""
    return Rollout(
        prompt_index=rollout.prompt_index,
        prompt_token_ids=prompt.token_ids,
        completion_token_ids=start + rollout.completion_token_ids,
        completion_logprobs=[0.0] * len(start) + rollout.completion_logprobs,
        finish_reason=rollout.finish_reason,
    )
