"""Questions of the playground in each state, as the API would tell of them, and the routes that do."""

from typing import Any, get_args

import fake_records as records
import fake_traces as traces
from fastapi import APIRouter, HTTPException
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from backend import playground
from backend.analyses import AnalysisState
from backend.schemas import Problem
from engine.findings import Finding, findings_of
from engine.playground_spec import Answer, PlaygroundResult

router = APIRouter(prefix="/api/v1/playground")
SPEAKERS = ["prefix 8 at step 120", "prefix 8, anchored at step 120", "base student", "teacher"]
_SAID = [
    ["m3", " 1+1", ";", "\n", " r2", " 4", " =", " 5", "<eos>"],
    ["m3", " 1+1", ";", " 2-3", " 7", traces.HOSTILE, "<eos>"],
    ["-", " r1", " 4", "<eos>"],
    ["m3", " 1+1", ";", " 3+1", "<eos>"],
]
_UNSCORED = 2


def _asked() -> playground.QuestionCreate:
    choices = [playground.CheckpointChoice(checkpoint_id=f"{one}.120") for one in ("r-p8", "r-mix8")]
    others: list[Any] = [{"kind": "base"}, {"kind": "teacher"}]
    return playground.QuestionCreate(run_id="r-p8", prompt=f"k3 {traces.HOSTILE}", speakers=[*choices, *others], seed=7)


def _answers() -> list[Answer]:
    found = []
    for at, said in enumerate(_SAID):
        is_scored = at != _UNSCORED
        row = at if at < _UNSCORED else at - 1
        found.append(
            Answer(
                speaker=at, sample=0, row=row if is_scored else None, text="".join(said), num_prompt_tokens=9, num_tokens=len(said),
                unscored="" if is_scored else "its tokenizer is not the teacher's (3 of 81 ids differ)", finish_reason="eos",
                mean_reverse_kl=0.4 if is_scored else None, max_reverse_kl=1.5 if is_scored else None,
            )
        )  # fmt: skip
    return found


def question(state: AnalysisState) -> playground.PlaygroundQuestion:
    """One in this state, called q-STATE."""
    failed = [Finding(field="prompt", message="prompt has 300 tokens for the teacher, more than its context.")]
    result = PlaygroundResult(
        answers=_answers(),
        reader=SPEAKERS[0],
        scoring_temperature=1.0,
        notes=["The speakers' chat templates differ."],
        seconds=3.2,
    )
    return playground.PlaygroundQuestion(
        id=f"q-{state}", created_at=records.NOW, asked=_asked(), run_name="prefix 8", speakers=SPEAKERS, state=state,
        queue_position=3 if state == "queued" else None, done={"running": 0.4, "succeeded": 1.0}.get(state, 0.0),
        detail="the teacher writes: 8 of 128 tokens", eta_seconds=12.0 if state == "running" else None,
        findings=failed if state == "failed" else [], result=result if state == "succeeded" else None,
        started_at=records.NOW, finished_at=None,
    )  # fmt: skip


def _known(question_id: str) -> AnalysisState:
    state: Any = question_id.removeprefix("q-")
    if state not in get_args(AnalysisState):
        raise HTTPException(404)
    found: AnalysisState = state
    return found


@router.get("/questions")
def questions() -> list[playground.QuestionSummary]:
    return [
        playground.QuestionSummary(
            id=f"q-{state}",
            created_at=records.NOW,
            state=state,
            run_name="prefix 8",
            prompt=_asked().prompt,
            speakers=SPEAKERS,
        )
        for state in get_args(AnalysisState)
    ]


@router.post("/questions")
def ask(body: playground.QuestionCreate) -> playground.PlaygroundQuestion:
    return question("queued").model_copy(update={"asked": body})


@router.post("/validate")
def validate(body: dict[str, Any]) -> list[Finding]:
    try:
        asked = playground.QuestionCreate.model_validate(body)
    except ValidationError as error:
        return findings_of(error, body)
    if asked.max_completion_tokens > 500:
        return [Finding(field="max_completion_tokens", message="max_completion_tokens is too many; lower it.")]
    is_odd = any(getattr(one, "checkpoint_id", "").startswith("r-full") for one in asked.speakers)
    message = "speakers.0 has a tokenizer that is not the teacher's: its answers are shown as text."
    return [Finding(field="speakers.0", message=message, severity="warning")] if is_odd else []


@router.get("/questions/{question_id}")
def get_question(question_id: str) -> Any:
    try:
        return question(_known(question_id))
    except HTTPException:
        told = f"There is no question {question_id!r}."
        body = Problem(type="about:blank", title="Not found", status=404, detail=told, instance="/")
        return JSONResponse(body.model_dump(), 404, media_type="application/problem+json")


@router.post("/questions/{question_id}/cancel")
def cancel(question_id: str) -> playground.PlaygroundQuestion:
    assert _known(question_id)
    return question("cancelled")


@router.get("/questions/{question_id}/answers/{row}")
def answer(question_id: str, row: int) -> playground.AnswerDetail:
    found = next(one for one in _answers() if one.row == row)
    label = SPEAKERS[found.speaker]
    is_teachers = label == "teacher"
    pair = f"written by the teacher, read by the student: {SPEAKERS[0]}" if is_teachers else f"student: {label}"
    return playground.AnswerDetail(
        question_id=question_id, label=label, answer=found, pair=pair, trace=traces.trace(0, _SAID[found.speaker], seed=row),
        limit_nats=3.9, limit_words="99th percentile of the run",
    )  # fmt: skip
