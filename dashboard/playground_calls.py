"""What the dashboard asks of the API about the playground."""

from backend.playground import AnswerDetail, PlaygroundQuestion, QuestionSummary
from dashboard.api_transport import ApiTransport, Document
from engine.findings import Finding

_QUESTIONS = "/api/v1/playground/questions"


class PlaygroundCalls(ApiTransport):
    """Part of ApiClient."""

    def ask(self, question: Document) -> PlaygroundQuestion:
        """Queue a question from the fields of QuestionCreate; the API judges them."""
        return self._create(_QUESTIONS, PlaygroundQuestion, question)

    def question_findings(self, question: Document) -> list[Finding]:
        """What can be said of a question before it is asked; empty when nothing is wrong."""
        return self._post("/api/v1/playground/validate", list[Finding], question)

    def questions(self) -> list[QuestionSummary]:
        """The last ones, newest first."""
        return self._get(_QUESTIONS, list[QuestionSummary])

    def question(self, question_id: str) -> PlaygroundQuestion:
        return self._get(f"{_QUESTIONS}/{question_id}", PlaygroundQuestion)

    def cancel_question(self, question_id: str) -> PlaygroundQuestion:
        return self._post(f"{_QUESTIONS}/{question_id}/cancel", PlaygroundQuestion, None)

    def answer(self, question_id: str, row: int) -> AnswerDetail:
        """A scored answer with its tokens."""
        return self._get(f"{_QUESTIONS}/{question_id}/answers/{row}", AnswerDetail)
