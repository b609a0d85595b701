"""Questions of the playground as the API takes and tells them."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from backend.analyses import AnalysisState, ListedId
from engine.findings import Finding
from engine.frozen import Frozen
from engine.playground_spec import (
    MAX_SPEAKERS,
    Answer,
    BaseSpeaker,
    PlaygroundResult,
    PlaygroundSpec,
    Question,
    TeacherSpeaker,
)
from engine.token_trace import TokenTrace


class CheckpointChoice(Frozen):
    """The student as a checkpoint holds it, of whichever run."""

    kind: Literal["checkpoint"] = "checkpoint"
    checkpoint_id: ListedId
    """As the list of checkpoints gives it."""


SpeakerChoice = Annotated[CheckpointChoice | BaseSpeaker | TeacherSpeaker, Field(discriminator="kind")]


class QuestionCreate(Question):
    """A prompt for up to four speakers; the teacher of the run scores what they say."""

    run_id: ListedId
    """The run whose teacher and base student are meant; the divergences have its temperature."""
    speakers: Annotated[list[SpeakerChoice], Field(min_length=1, max_length=MAX_SPEAKERS)]
    """Who answers, in this order."""


class QueuedQuestion(Frozen):
    """A question as it was asked, and what it means to a worker."""

    asked: QuestionCreate
    spec: PlaygroundSpec
    run_name: str


PLAYGROUND = "playground"
"""Kind of the questions that are none of an analysis."""


class QuestionSummary(Frozen):
    """A line of the list of questions."""

    id: str
    created_at: datetime
    state: AnalysisState
    run_name: str
    prompt: str
    """Its first 200 characters."""
    speakers: list[str]
    """Such as `prefix 8 at step 40`, `base student`, `teacher`."""


class PlaygroundQuestion(Frozen):
    """A question with its answers, once there are some."""

    id: str
    created_at: datetime
    asked: QuestionCreate
    run_name: str
    speakers: list[str]
    """Who answers, in words."""
    state: AnalysisState
    queue_position: int | None
    """1 is the next; None unless it is queued."""
    done: float
    """Share of the work that is done, 0 to 1."""
    detail: str
    """What the worker is doing."""
    eta_seconds: float | None
    """Seconds that are left at the present pace; None while nothing is known."""
    findings: list[Finding]
    """Why it failed, at the fields of the question."""
    result: PlaygroundResult | None
    started_at: datetime | None
    finished_at: datetime | None


class AnswerDetail(Frozen):
    """An answer with all that the token lens draws."""

    question_id: str
    label: str
    """Who said it."""
    answer: Answer
    pair: str
    """Whose distributions are compared at its tokens, in words."""
    trace: TokenTrace
    limit_nats: float
    """Upper end of the colour scale, the same for all answers to this question."""
    limit_words: str
    """What that limit is."""
