"""The playground: a prompt that several models answer and the teacher scores, asked of a worker."""

from typing import Annotated, Any

import pyarrow
from fastapi import Body, Path, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from backend.dependencies import Artifacts, Bell, Caller, Config, Creation, Id, Reading, Store, errors, page_size
from backend.locked_route import locked_router
from backend.playground import AnswerDetail, PlaygroundQuestion, QuestionCreate, QuestionSummary
from backend.problems import Refusal, findings_in, invalid, not_found
from backend.queries import playground as queries
from backend.speakers import resolved
from engine.findings import Finding

_Page = Annotated[int, page_size(50)]
_Row = Annotated[int, Path(ge=0, le=1000, description="As the question's answers give it.")]
router = locked_router(prefix="/playground", tags=["playground"])


@router.post(
    "/questions",
    operation_id="create_question",
    status_code=201,
    response_model=PlaygroundQuestion,
    responses=errors(403, 409, 413, 415),
)
def create_question(
    body: QuestionCreate, once: Creation, caller: Caller, settings: Config, store: Artifacts, doorbell: Bell
) -> Response:
    """Have a worker ask up to four models the same and the teacher score what they say."""
    queued: list[str] = []

    def create(session: Session) -> tuple[PlaygroundQuestion, str]:
        found = resolved(session, body, settings, store)
        if found.spec is None:
            raise invalid([one for one in found.findings if one.severity == "error"])
        created = queries.create_question(
            session, body, found.spec, found.run_name, owner=caller, limits=settings.limits
        )
        queued.append(created.id)
        return created, f"/api/v1/playground/questions/{created.id}"

    answer = once.answer(body, create)
    for question_id in queued:
        # The worker looks for questions whenever it looks for runs.
        doorbell.ring_run(question_id)
    return answer


@router.post("/validate", operation_id="validate_question", responses=errors(403, 413, 415))
def validate_question(
    session: Reading,
    settings: Config,
    store: Artifacts,
    body: Annotated[Any, Body(description="A question, valid or not.")] = None,
) -> list[Finding]:
    """What can be said of a question before it is asked: errors forbid it, warnings do not; empty when nothing is wrong."""
    findings = findings_in(body, QuestionCreate)
    return findings or resolved(session, QuestionCreate.model_validate(body), settings, store).findings


@router.get("/questions", operation_id="list_questions", responses=errors())
def list_questions(session: Reading, limit: _Page) -> list[QuestionSummary]:
    """The last questions, newest first."""
    return queries.questions(session, limit=limit)


@router.get("/questions/{question_id}", operation_id="get_question", responses=errors(404))
def get_question(question_id: Id, session: Reading) -> PlaygroundQuestion:
    """One question: how far it is, and its answers."""
    found = queries.question(session, question_id)
    if found is None:
        raise not_found("question", question_id)
    return found


@router.post("/questions/{question_id}/cancel", operation_id="cancel_question", responses=errors(403, 404))
def cancel_question(question_id: Id, database: Store) -> PlaygroundQuestion:
    """End a question; one that has ended already stays as it is."""
    with database.write() as session:
        queries.cancel_question(session, question_id)
        session.expire_all()
        found = queries.question(session, question_id)
    if found is None:
        raise not_found("question", question_id)
    return found


@router.get("/questions/{question_id}/answers/{row}", operation_id="get_answer", responses=errors(404, 410))
def get_answer(question_id: Id, row: _Row, session: Reading) -> AnswerDetail:
    """One answer with what both models thought of each of its tokens."""
    try:
        found = queries.answer(session, question_id, row)
    except (OSError, IndexError, pyarrow.ArrowException, ValidationError):
        raise Refusal(410, f"The tokens of question {question_id} are damaged; ask it again.") from None
    if found is None:
        raise not_found("scored answer", f"{question_id}/{row}")
    return found
