"""Who speaks in the playground: its model named, its checkpoint verified, the prompt in the frame of its own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from engine.chat_template import TemplateFailed, chat_template
from engine.encode import token_ids_of
from engine.errors import RunError
from engine.events import FailureKind
from engine.findings import Finding
from engine.language_model import LanguageModel, describe_language_model, load_language_model, load_tokenizer
from engine.locations import resolve
from engine.manifest import Expected, damage_of
from engine.model_spec import ModelSpec
from engine.pairing import vocabulary_of
from engine.playground_spec import BaseSpeaker, CheckpointSpeaker, PlaygroundSpec, Speaker, TeacherSpeaker
from engine.setup import choose_device, choose_precision
from engine.teacher_backend_spec import TeacherBackend, VllmTeacher
from engine.teacher_servers import TeacherServers
from engine.vocabularies import differing_ids

_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Voice:
    """A speaker with what is known of it before its weights are opened."""

    place: int | None
    """Among the speakers; None for a student that only reads what the teacher says."""
    speaker: Speaker
    prompt_token_ids: list[int]
    unscored: str
    """Why the teacher cannot score its tokens; empty when it can."""

    @property
    def field(self) -> str:
        return "run.student" if self.place is None else f"speakers.{self.place}"


def voices_of(asked: PlaygroundSpec) -> list[Voice]:
    """All speakers, checkpoints verified and the prompt in the frame of each one's own tokenizer."""
    tokenizer = load_tokenizer(asked.run.teacher, "run.teacher")
    return [_voice(asked, speaker, place, tokenizer) for place, speaker in enumerate(asked.speakers)]


def _voice(asked: PlaygroundSpec, speaker: Speaker, place: int | None, teacher: PreTrainedTokenizerBase) -> Voice:
    where = "run.student" if place is None else f"speakers.{place}"
    if isinstance(speaker, CheckpointSpeaker):
        _verify(speaker, where)
    tokenizer = load_tokenizer(_model_of(asked, speaker), where)
    mine = vocabulary_of(tokenizer)
    different = differing_ids(mine, vocabulary_of(teacher))
    unscored = f"its tokenizer is not the teacher's ({len(different)} of {len(mine)} ids differ)" if different else ""
    return Voice(place, speaker, _prompt_token_ids(asked, tokenizer, speaker), unscored)


def reader_of(asked: PlaygroundSpec, students: list[Voice]) -> Voice:
    """Whom the teacher's own answers are compared with: the first student that can read them, else the base student."""
    found = next((one for one in students if not one.unscored), None)
    reader = found or _voice(asked, BaseSpeaker(), None, load_tokenizer(asked.run.teacher, "run.teacher"))
    if reader.unscored:
        message = f"run.teacher.path is {asked.run.teacher.path!r} and the base student cannot read its answers: {reader.unscored}."
        raise refusal("bad_model", "run.teacher.path", message)
    return reader


def _verify(speaker: CheckpointSpeaker, where: str) -> None:
    try:
        folder = Path(resolve(speaker.folder)).expanduser()
    except ValueError as error:
        raise refusal("bad_checkpoint", where, f"{where} is {speaker.in_words}: {error}") from None
    damage = damage_of(folder, Expected(step=speaker.step, manifest_sha256=speaker.manifest_sha256))
    if damage is not None:
        message = f"{where} is {speaker.in_words}, whose checkpoint is damaged: {damage}; choose another one."
        raise refusal("bad_checkpoint", where, message)


def _model_of(asked: PlaygroundSpec, speaker: Speaker) -> ModelSpec:
    match speaker:
        case CheckpointSpeaker():
            return ModelSpec(path=speaker.folder)
        case BaseSpeaker():
            return asked.run.student
        case TeacherSpeaker():
            return asked.run.teacher


def opened_model(asked: PlaygroundSpec, speaker: Speaker, where: str) -> LanguageModel:
    """A speaker's model with frozen weights, a served teacher's without any; RunError("bad_model") with a finding at `where`."""
    field: Literal["student", "teacher"] = "teacher" if isinstance(speaker, TeacherSpeaker) else "student"
    device = choose_device(asked.run)
    try:
        if field == "teacher" and asked.run.has_served_teacher:
            return describe_language_model(asked.run.teacher, field, device)
        model = load_language_model(_model_of(asked, speaker), field, device, choose_precision(asked.run, device))
    except RunError as error:
        raise refusal(error.failure, where, f"{where} is {speaker.in_words}: {error.message}") from error
    model.module.requires_grad_(False)
    return model


def connected_teacher(asked: PlaygroundSpec, teacher: LanguageModel, voice: Voice) -> LanguageModel:
    """The teacher with the servers that have its weights, where it is served, looked at with this voice's prompt.

    Of several teachers it is the one of the prompts without a tag, or else the first one. Raises RunError.
    """
    backend = asked.run.teacher_backend
    if not isinstance(backend, VllmTeacher):
        return teacher
    tag = _tag_asked(backend)
    servers = [one.model_copy(update={"tag": None}) for one in backend.servers if one.tag == tag]
    # Somebody waits for the answer.
    patience = min(backend.patience_seconds, _PATIENCE_SECONDS)
    changed = backend.model_copy(update={"servers": servers, "patience_seconds": patience})
    num_tokens = len(voice.prompt_token_ids) + asked.max_completion_tokens
    connected = TeacherServers(changed, teacher.tokenizer, teacher.head.vocabulary, num_tokens)
    connected.check(voice.prompt_token_ids)
    return replace(teacher, servers=connected)


def served_teacher_notes(backend: TeacherBackend) -> list[str]:
    """What a reader must know of a teacher on servers."""
    if not isinstance(backend, VllmTeacher):
        return []
    tag = _tag_asked(backend)
    return [
        backend.note,
        *([] if tag is None else [f"Of the run's teachers, that of the tag {tag!r} answers and scores."]),
    ]


def _tag_asked(backend: VllmTeacher) -> str | None:
    tags = [one.tag for one in backend.servers]
    return None if None in tags else tags[0]


def _prompt_token_ids(asked: PlaygroundSpec, tokenizer: PreTrainedTokenizerBase, speaker: Speaker) -> list[int]:
    if asked.template == "chat" and chat_template(tokenizer) is None:
        message = f"template is 'chat' but the tokenizer of {speaker.in_words} has no chat template; set it to plain."
        raise refusal("bad_data", "template", message)
    prompts = asked.run.prompts.model_copy(
        update={name: getattr(asked, name) for name in ("template", "system_message", "enable_thinking")}
    )
    try:
        (ids,) = token_ids_of(asked.run.model_copy(update={"prompts": prompts}), tokenizer, [asked.prompt])
    except TemplateFailed as error:
        name = "template" if asked.system_message is None else "system_message"
        advice = "set it to plain" if name == "template" else "leave it empty"
        message = f"{name}: the chat template of {speaker.in_words} fails ({error}); {advice}."
        raise refusal("bad_data", name, message) from None
    except Exception as error:  # whatever a tokenizer raises, it is about this prompt
        message = f"prompt cannot be encoded by the tokenizer of {speaker.in_words} ({error}); change it."
        raise refusal("bad_data", "prompt", message) from error
    if not ids:
        raise refusal("bad_data", "prompt", f"prompt has no token for {speaker.in_words}; write more.")
    return ids


def check_room(asked: PlaygroundSpec, voice: Voice, models: list[LanguageModel]) -> None:
    """RunError when the whole text does not fit into a context, or the prompt has a token that one of the models lacks."""
    num_prompt, limit = len(voice.prompt_token_ids), asked.max_completion_tokens
    for model in models:
        context = model.context_tokens
        if context is not None and num_prompt + limit > context:
            message = (
                f"prompt has {num_prompt} tokens for {voice.speaker.in_words} and max_completion_tokens is {limit}, together more "
                f"than the context of {context} tokens; shorten the prompt or lower max_completion_tokens."
            )
            raise refusal("bad_data", "prompt", message)
        if max(voice.prompt_token_ids) >= model.head.vocabulary:
            message = (
                f"prompt has a token of id {max(voice.prompt_token_ids)} but {voice.speaker.in_words} and the teacher share only the "
                f"first {model.head.vocabulary}; change the prompt."
            )
            raise refusal("bad_data", "prompt", message)


def refusal(failure: FailureKind, field: str, message: str) -> RunError:
    """A RunError with the one finding at this field."""
    return RunError(failure, message, [Finding(field=field, message=message)])
