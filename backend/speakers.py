"""Who is to answer a question: ids as the API has them become models, and what can be known before anything is queued is said."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.orm import Session

from backend.artifact_store import ArtifactStore
from backend.downloads import stored_checkpoint
from backend.limits import Limits
from backend.playground import CheckpointChoice, QuestionCreate
from backend.problems import Refusal
from backend.queries.checkpoints import checkpoint
from backend.queries.runs import run
from backend.schemas import Run
from backend.settings import Settings
from backend.tokenizer_files import num_differing_ids
from engine.findings import Finding
from engine.locations import resolve
from engine.playground_spec import BaseSpeaker, CheckpointSpeaker, PlaygroundSpec, Question, Speaker, TeacherSpeaker

_MAX_CONFIG_BYTES = 1024 * 1024


class Resolved(NamedTuple):
    """What became of a question; `spec` is None when a finding forbids it."""

    spec: PlaygroundSpec | None
    run_name: str
    findings: list[Finding]


class _Model(NamedTuple):
    """A speaker with where its files are, as far as they are on this machine."""

    field: str
    speaker: Speaker
    folder: Path | None
    of_run: str
    """The run whose student it is."""


def resolved(session: Session, asked: QuestionCreate, settings: Settings, store: ArtifactStore) -> Resolved:
    """The question for a worker, and its findings: errors that forbid it and warnings that do not."""
    found = run(session, asked.run_id)
    if found is None:
        message = f"run_id is {asked.run_id!r}, but there is no such run; choose one of the list."
        return Resolved(None, "", [Finding(field="run_id", message=message)])
    findings = list(_too_much(asked, settings.limits))
    models: list[_Model] = []
    for place, choice in enumerate(asked.speakers):
        model = _model(session, found, place, choice, settings.home, store)
        if isinstance(model, Finding):
            findings.append(model)
        elif model.speaker in (said := [one.speaker for one in models]):
            first = models[said.index(model.speaker)].field
            message = f"speakers.{place} is the same as {first} ({model.speaker.label}); remove one of them."
            findings.append(Finding(field=f"speakers.{place}", message=message))
        else:
            models.append(model)
    findings += _too_long(asked, found, models)
    findings += _unscored(found, models)
    if any(one.severity == "error" for one in findings):
        return Resolved(None, found.name, findings)
    question = {name: getattr(asked, name) for name in Question.model_fields}
    spec = PlaygroundSpec(**question, run=found.spec, speakers=[one.speaker for one in models])
    return Resolved(spec, found.name, findings)


def _too_much(asked: QuestionCreate, limits: Limits) -> Iterator[Finding]:
    for name in ("prompt", "system_message"):
        num_bytes = len((getattr(asked, name) or "").encode())
        if num_bytes > limits.playground_prompt_bytes:
            message = f"{name} has {num_bytes} bytes but may have {limits.playground_prompt_bytes}; shorten it."
            yield Finding(field=name, message=message)
    total = len(asked.speakers) * asked.num_samples * asked.max_completion_tokens
    if total > limits.playground_tokens:
        message = (
            f"max_completion_tokens is {asked.max_completion_tokens}, which with {len(asked.speakers)} speakers and {asked.num_samples} "
            f"answers of each makes {total} tokens, but a question may have {limits.playground_tokens}; lower one of the three."
        )
        yield Finding(field="max_completion_tokens", message=message)


def _model(
    session: Session,
    of: Run,
    place: int,
    choice: CheckpointChoice | BaseSpeaker | TeacherSpeaker,
    home: Path,
    store: ArtifactStore,
) -> _Model | Finding:
    field = f"speakers.{place}"
    if not isinstance(choice, CheckpointChoice):
        named = of.spec.student if isinstance(choice, BaseSpeaker) else of.spec.teacher
        return _Model(field, choice, _local_folder(named.location), of.id)
    found = checkpoint(session, choice.checkpoint_id)
    if found is None:
        message = (
            f"{field} is checkpoint {choice.checkpoint_id!r}, which does not exist or was removed; choose another one."
        )
        return Finding(field=field, message=message)
    record, _ = found
    try:
        stored = stored_checkpoint(*found, store)
        stored.check()
    except Refusal as refusal:
        return Finding(field=field, message=f"{field} is {record.run_name} at step {record.step}: {refusal.detail}")
    speaker = CheckpointSpeaker(
        folder=f"home:{stored.folder.relative_to(home).as_posix()}",
        run_name=record.run_name,
        step=record.step,
        manifest_sha256=record.manifest_sha256,
    )
    return _Model(field, speaker, stored.folder if stored.folder.is_dir() else None, record.run_id)


def _too_long(asked: QuestionCreate, of: Run, models: list[_Model]) -> Iterator[Finding]:
    """An answer that alone fills a context; the worker counts the prompt's tokens too."""
    teacher = _Model("run_id", TeacherSpeaker(), _local_folder(of.spec.teacher.location), of.id)
    for model in [*models, teacher]:
        context = None if model.folder is None else _context_tokens(model.folder)
        if context is not None and asked.max_completion_tokens >= context:
            message = (
                f"max_completion_tokens is {asked.max_completion_tokens} but {model.speaker.in_words} has a context of {context} tokens, "
                "the prompt included; lower it."
            )
            yield Finding(field="max_completion_tokens", message=message)
            return


def _unscored(of: Run, models: list[_Model]) -> Iterator[Finding]:
    """Speakers of other runs whose tokenizer is not the teacher's, where both files are on this machine."""
    teachers = [_local_folder(named.location) for named in (of.spec.teacher, of.spec.student)]
    ours = next((one for one in teachers if one is not None and (one / "tokenizer.json").is_file()), None)
    for model in models:
        if ours is None or model.folder is None or model.of_run == of.id:
            continue
        found = num_differing_ids(model.folder, ours)
        if found is not None and found[0]:
            message = (
                f"{model.field} is {model.speaker.in_words}, whose tokenizer is not the teacher's ({found[0]} of {found[1]} ids differ): "
                "its answers are shown as text, without scores and without aligned tokens."
            )
            yield Finding(field=model.field, message=message, severity="warning")


def _local_folder(location: str) -> Path | None:
    with suppress(ValueError, OSError):
        folder = Path(resolve(location)).expanduser()
        return folder if folder.is_dir() else None
    return None


def _context_tokens(folder: Path) -> int | None:
    path = folder / "config.json"
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            return None
        found = json.loads(path.read_bytes()).get("max_position_embeddings")
    except (OSError, ValueError, RecursionError, AttributeError):
        return None
    return found if isinstance(found, int) and found > 0 else None
