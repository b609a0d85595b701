"""Asks several models the same and has the teacher score what they say, token by token, as evaluations do.

The teacher stays in memory and the others come one after the other, so that never more than two models are there.
"""

from __future__ import annotations

import time
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from engine.analyses.setup import Report
from engine.language_model import LanguageModel
from engine.pairing import pair_findings, shared_vocabulary
from engine.playground_spec import Answer, PlaygroundResult, PlaygroundSpec, TeacherSpeaker
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.scoring import TokenColumns, score_rollouts
from engine.token_trace import TokenTrace, write_traces
from engine.trace import token_trace
from engine.truncation import Truncation
from engine.voices import (
    Voice,
    check_room,
    connected_teacher,
    opened_model,
    reader_of,
    refusal,
    served_teacher_notes,
    voices_of,
)

_MAX_TEXT = 32_768  # characters of an answer outside its trace
_REPORT_SECONDS = 0.5
_SAMPLING = (0.2, 0.9)  # from where to where in a speaker's work it writes; before, its model is opened; behind, scored


def ask(asked: PlaygroundSpec, report: Report, traces_path: Path) -> PlaygroundResult:
    """All answers; the tokens of those that are scored are written to a new Parquet file, see engine/token_trace.py.

    Raises RunError with findings at the fields of the question.
    """
    began = time.monotonic()
    report(0.0, "reading tokenizers")
    voices = voices_of(asked)
    teacher_voice = next((one for one in voices if isinstance(one.speaker, TeacherSpeaker)), None)
    students = [one for one in voices if one is not teacher_voice]
    reader = None if teacher_voice is None else reader_of(asked, students)
    opened = students if reader is None or reader in students else [*students, reader]
    report(0.02, "opening the teacher")
    teacher = opened_model(asked, TeacherSpeaker(), "run.teacher")
    heard: list[tuple[Answer, TokenTrace | None]] = []
    for number, voice in enumerate(opened):
        spoken = [one for one in (voice, teacher_voice if voice is reader else None) if one and one.place is not None]
        share = 0.95 / len(opened)
        part = _Part(report, 0.05 + share * number, share)
        heard += _answers(asked, voice, spoken, teacher, part)
    heard.sort(key=lambda one: (one[0].speaker, one[0].sample))
    report(1.0, "writing")
    traces: list[TokenTrace] = []
    answers: list[Answer] = []
    for answer, trace in heard:
        answers.append(answer if trace is None else answer.model_copy(update={"row": len(traces)}))
        traces += [] if trace is None else [trace]
    write_traces(traces_path, traces)
    return PlaygroundResult(
        answers=answers,
        reader=None if reader is None else reader.speaker.label,
        scoring_temperature=asked.run.sampling.temperature,
        notes=[*_notes(voices), *served_teacher_notes(asked.run.teacher_backend)],
        seconds=time.monotonic() - began,
    )


def _answers(
    asked: PlaygroundSpec, voice: Voice, spoken: list[Voice], teacher: LanguageModel, part: _Part
) -> list[tuple[Answer, TokenTrace | None]]:
    """What a student says, and what the teacher says where this student reads it. The student is gone afterwards."""
    part.say(0.0, f"opening {voice.speaker.in_words}")
    student = opened_model(asked, voice.speaker, voice.field)
    scorer = teacher
    if not voice.unscored:
        unfit = [one for one in pair_findings(student, teacher) if one.severity == "error"]
        if unfit:
            raise refusal("bad_model", voice.field, f"{voice.field} is {voice.speaker.in_words}: {unfit[0].message}")
        shared = shared_vocabulary(student, teacher)
        student, scorer = student.limited_to(shared), connected_teacher(asked, teacher.limited_to(shared), voice)
    found: list[tuple[Answer, TokenTrace | None]] = []
    for number, one in enumerate(spoken):
        author = student if one is voice else scorer
        models = [author] if one.unscored else [student, scorer]
        check_room(asked, one, models)
        inner = part.inner(number, len(spoken))
        rollouts = _sampled(asked, author, one, inner)
        inner.say(_SAMPLING[1], f"scoring {one.speaker.in_words}")
        columns: list[TokenColumns] | list[None] = [None] * len(rollouts)
        if not one.unscored:
            columns = score_rollouts(
                student, scorer, rollouts,
                temperature=asked.run.sampling.temperature, top_k=asked.run.traces.top_k, micro_batch=len(rollouts),
            )  # fmt: skip
        for sample, (rollout, of_rollout) in enumerate(zip(rollouts, columns, strict=True)):
            found.append(_answer(one, sample, rollout, of_rollout, author.tokenizer))
    return found


def _sampled(asked: PlaygroundSpec, model: LanguageModel, voice: Voice, part: _Part) -> list[Rollout]:
    low, high = _SAMPLING
    limit = asked.max_completion_tokens
    num_done = 0

    def on_token() -> None:
        nonlocal num_done
        num_done += 1
        part.say(
            low + (high - low) * num_done / limit, f"{voice.speaker.in_words} writes: {num_done} of {limit} tokens"
        )

    kept = Truncation(top_p=asked.top_p, min_p=asked.min_p)
    sampler = Sampler(model, asked.seed, asked.temperature, on_token, truncation=kept)
    return sampler.sample([RolloutRequest(0, voice.prompt_token_ids, asked.num_samples, 0)], limit)


def _answer(
    voice: Voice, sample: int, rollout: Rollout, columns: TokenColumns | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[Answer, TokenTrace | None]:
    assert voice.place is not None, "who only reads says nothing"
    if columns is not None and not bool((columns.reverse_kl.isfinite() & columns.forward_kl.isfinite()).all()):
        message = f"{voice.field} is {voice.speaker.in_words}, whose divergence from the teacher is not finite; choose another one."
        raise refusal("nan_loss", voice.field, message)
    text = tokenizer.decode(rollout.completion_token_ids)
    assert isinstance(text, str)
    answer = Answer(
        speaker=voice.place,
        sample=sample,
        row=None,
        unscored=voice.unscored,
        text=text[:_MAX_TEXT],
        num_prompt_tokens=len(rollout.prompt_token_ids),
        num_tokens=len(rollout.completion_token_ids),
        finish_reason=rollout.finish_reason,
        mean_reverse_kl=None if columns is None else float(columns.reverse_kl.mean()),
        max_reverse_kl=None if columns is None else float(columns.reverse_kl.max()),
    )
    return answer, None if columns is None else token_trace(columns, tokenizer)


def _notes(voices: list[Voice]) -> list[str]:
    scored = [one for one in voices if not one.unscored]
    if len({tuple(one.prompt_token_ids) for one in scored}) < 2:
        return []
    return [
        "The speakers' chat templates differ, so each saw the prompt in another frame; it stands above each answer."
    ]


class _Part:
    """A share of the work, from `start` on, that reports its own progress as part of the whole."""

    def __init__(self, report: Report, start: float, share: float) -> None:
        self._report, self._start, self._share = report, start, share
        self._said = 0.0

    def inner(self, number: int, of: int) -> _Part:
        """One of several equal parts."""
        return _Part(self._report, self._start + self._share * number / of, self._share / of)

    def say(self, done: float, detail: str) -> None:
        """Report, but not more often than anybody looks."""
        if time.monotonic() - self._said >= _REPORT_SECONDS:
            self._said = time.monotonic()
            self._report(self._start + self._share * done, detail)
