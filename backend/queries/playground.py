"""Questions of the playground: asked and read. How they are claimed and answered is in backend/queries/analyses.py."""

from io import BytesIO

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session, load_only

from backend.access import Principal
from backend.limits import Limits
from backend.playground import (
    PLAYGROUND,
    AnswerDetail,
    PlaygroundQuestion,
    QuestionCreate,
    QuestionSummary,
    QueuedQuestion,
)
from backend.problems import Refusal
from backend.queries.analyses import cancel, eta_seconds, queue_position, queued
from backend.queries.rollouts import p99_reverse_kl
from backend.queries.runs import hold_queue_of
from backend.records import Rollout
from backend.tables import Analysis as Row
from engine.playground_spec import PlaygroundResult, PlaygroundSpec, TeacherSpeaker
from engine.token_trace import read_trace

_SHOWN = 200  # characters of a prompt in a list
_ENDED = ("succeeded", "failed", "cancelled")
_IS_QUESTION = Row.kind == PLAYGROUND


def create_question(
    session: Session, asked: QuestionCreate, spec: PlaygroundSpec, run_name: str, *, owner: Principal, limits: Limits
) -> PlaygroundQuestion:
    """Queue a question; Refusal (409) when its owner has too many there. The oldest beyond what is kept are removed."""
    hold_queue_of(session, owner.id)
    mine = (_IS_QUESTION, Row.state == "queued", Row.created_by == owner.id)
    waiting = session.scalar(select(func.count()).select_from(Row).where(*mine)) or 0
    if waiting >= limits.playground_queued:
        raise Refusal(
            409,
            f"You have {waiting} questions in the queue, and at most {limits.playground_queued} may wait; wait until one is "
            "answered, or cancel some.",
        )
    wanted = QueuedQuestion(asked=asked, spec=spec, run_name=run_name)
    row = queued(session, wanted, PLAYGROUND, owner, run_id=asked.run_id)
    _forget_oldest(session, row.project_id, limits.playground_kept)
    return _record(session, row)


def question(session: Session, id: str) -> PlaygroundQuestion | None:
    """One question with its answers, if there are some."""
    row = _row(session, id)
    return None if row is None else _record(session, row)


def questions(session: Session, *, limit: int) -> list[QuestionSummary]:
    """The last questions, newest first."""
    columns = load_only(Row.id, Row.created_at, Row.state, Row.spec)
    query = select(Row).where(_IS_QUESTION).options(columns).order_by(Row.id.desc()).limit(limit)
    return [
        QuestionSummary.model_validate(
            {
                "id": row.id,
                "created_at": row.created_at,
                "state": row.state,
                "run_name": _asked(row).run_name,
                "prompt": _asked(row).asked.prompt[:_SHOWN],
                "speakers": _labels(row),
            }
        )
        for row in session.scalars(query)
    ]


def cancel_question(session: Session, id: str) -> None:
    """End a question that waits or is at work; its worker notices at its next report."""
    cancel(session, id, _IS_QUESTION)


def answer(session: Session, id: str, number: int) -> AnswerDetail | None:
    """A scored answer with its tokens, by its row; None when there is no such answer."""
    row = _row(session, id)
    result = None if row is None else row.result
    if row is None or not isinstance(result, PlaygroundResult) or row.traces is None:
        return None
    found = next((one for one in result.answers if one.row == number), None)
    if found is None:
        return None
    speaker = _asked(row).spec.speakers[found.speaker]
    is_teachers = isinstance(speaker, TeacherSpeaker)
    pair = (
        f"written by the teacher, read by the student: {result.reader}" if is_teachers else f"student: {speaker.label}"
    )
    limit, words = _scale(session, _asked(row).asked.run_id, result)
    return AnswerDetail(
        question_id=id,
        label=speaker.label,
        answer=found,
        pair=pair,
        trace=read_trace(BytesIO(row.traces), number),
        limit_nats=limit,
        limit_words=words,
    )


def _scale(session: Session, run_id: str, result: PlaygroundResult) -> tuple[float, str]:
    """Upper end of the colours, and what it is: that of the run's rollouts where it has traced some, as Inspect has it."""
    if session.scalar(select(Rollout.id).where(Rollout.run_id == run_id).limit(1)) is not None:
        return p99_reverse_kl(session, run_id), "99th percentile of the run"
    return max((one.max_reverse_kl or 0.0) for one in result.answers), "largest of these answers"


def _row(session: Session, id: str) -> Row | None:
    return session.scalars(select(Row).where(Row.id == id, _IS_QUESTION)).one_or_none()


def _asked(row: Row) -> QueuedQuestion:
    assert isinstance(row.spec, QueuedQuestion), "its kind says so"
    return row.spec


def _labels(row: Row) -> list[str]:
    return [speaker.label for speaker in _asked(row).spec.speakers]


def _forget_oldest(session: Session, project_id: str, kept: int) -> None:
    of_project = (_IS_QUESTION, Row.project_id == project_id)
    newest = select(Row.id).where(*of_project).order_by(Row.id.desc()).limit(kept)
    removed = delete(Row).where(*of_project, Row.state.in_(_ENDED), Row.id.not_in(newest))
    session.execute(removed.execution_options(synchronize_session=False))


def _record(session: Session, row: Row) -> PlaygroundQuestion:
    derived = {"asked", "run_name", "speakers", "queue_position", "eta_seconds"}
    values = {name: getattr(row, name) for name in PlaygroundQuestion.model_fields if name not in derived}
    return PlaygroundQuestion.model_validate(
        {
            **values,
            "asked": _asked(row).asked,
            "run_name": _asked(row).run_name,
            "speakers": _labels(row),
            "queue_position": queue_position(session, row),
            "eta_seconds": eta_seconds(row),
        }
    )
