"""Answers to a question: side by side with the token lens, or two of them stacked with what differs."""

import altair as alt
import pandas as pd
import streamlit as st

from backend.playground import AnswerDetail, PlaygroundQuestion
from dashboard import cached, notices
from dashboard.api_client import ApiClient
from dashboard.quantities import nats_text, seconds_text
from dashboard.question_form import AB_VIEW
from dashboard.text_diff import MAX_WORDS, diff_markdown, from_where_they_part, num_common, word_diff
from dashboard.token_lens import answer_lens
from dashboard.token_lens.payload import METRICS
from engine.playground_spec import Answer

_METRIC_LABELS = {
    "reverse_kl": "reverse KL",
    "forward_kl": "forward KL",
    "jsd": "JSD",
    "delta_logprob": "Δ log-prob",
    "rank_difference": "rank difference",
    "student_entropy": "entropy, student",
    "teacher_entropy": "entropy, teacher",
}
_CHART_HEIGHT = 180


def show_answers(client: ApiClient, question: PlaygroundQuestion) -> None:
    """The answers of a question that has some, in the view of the address."""
    result = question.result
    assert result is not None, "a question that succeeded has answers"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        views = ["Side by side", AB_VIEW] if len(question.speakers) > 1 else ["Side by side"]
        view = st.segmented_control("View", views, default=views[0], required=True, key="view", bind="query-params")
        metric = st.selectbox(
            "Colour tokens by", METRICS, format_func=lambda one: _METRIC_LABELS[one], key="metric", bind="query-params",
            width=220,
        )  # fmt: skip
        sample = 0
        if question.asked.num_samples > 1:
            numbers = range(1, question.asked.num_samples + 1)
            chosen = st.segmented_control(
                "Answer", numbers, default=1, required=True, key=f"sample-{question.id}",
                help="Equal numbers were drawn with equal random numbers.",
            )  # fmt: skip
            sample = (chosen or 1) - 1
    for note in result.notes:
        st.info(notices.plain(note), icon=":material/info:")
    of_sample = [one for one in result.answers if one.sample == sample]
    if view == AB_VIEW:
        _show_pair(client, question, of_sample, metric)
    else:
        _show_columns(client, question, of_sample, metric)
    if result.reader is not None:
        st.caption(
            notices.plain(
                f"The teacher's column shows its own words as read by {result.reader}: colour stands where that student would have "
                "gone another way. Compared with itself the teacher would diverge nowhere."
            )
        )
    st.caption(
        f"All with seed {question.asked.seed} and the same random numbers · divergences at temperature "
        f"{result.scoring_temperature:g}, before top-p · {seconds_text(result.seconds)}"
    )
    st.download_button(
        "JSON", question.model_dump_json(indent=1), f"question-{question.id}.json", "application/json",
        icon=":material/download:", on_click="ignore",
    )  # fmt: skip


def _show_columns(client: ApiClient, question: PlaygroundQuestion, answers: list[Answer], metric: str) -> None:
    for column, answer in zip(st.columns(len(answers), gap="medium"), answers, strict=True):
        with column:
            _head(question, answer)
            if answer.row is None:
                _text_alone(answer)
            else:
                answer_lens(cached.answer(client, question.id, answer.row), metric)


def _head(question: PlaygroundQuestion, answer: Answer, name: str = "") -> None:
    ended = "ended by itself" if answer.finish_reason == "eos" else "cut"
    st.markdown(f"{name}**{notices.plain(question.speakers[answer.speaker])}**")
    figures = f"{answer.num_tokens} tokens, {ended}"
    if answer.mean_reverse_kl is not None:
        figures += f" · mean reverse KL {nats_text(answer.mean_reverse_kl)}, largest {nats_text(answer.max_reverse_kl)}"
    st.caption(notices.plain(figures))


def _text_alone(answer: Answer) -> None:
    st.info(notices.plain(f"Not scored: {answer.unscored}."), icon=":material/info:")
    st.code(answer.text, language=None, wrap_lines=True)


def _show_pair(client: ApiClient, question: PlaygroundQuestion, answers: list[Answer], metric: str) -> None:
    left, right = st.columns(2)
    places = range(len(answers))
    with left:
        first = st.selectbox("A", places, format_func=lambda at: question.speakers[at], key=f"a-{question.id}")
    with right:
        second = st.selectbox(
            "B", places, index=1, format_func=lambda at: question.speakers[at], key=f"b-{question.id}"
        )
    if first == second:
        st.info("A and B are the same answer; choose another B.", icon=":material/info:")
        return
    a, b = answers[first], answers[second]
    if a.row is None or b.row is None:
        unscored = a if a.row is None else b
        st.info(
            notices.plain(
                f"No tokens are aligned: of {question.speakers[unscored.speaker]}, {unscored.unscored}, so equal texts need not "
                "be equal tokens. The words are compared below."
            ),
            icon=":material/info:",
        )
        for name, answer in (("A ", a), ("B ", b)):
            _head(question, answer, name)
            if answer.row is None:
                _text_alone(answer)
            else:
                answer_lens(cached.answer(client, question.id, answer.row), metric)
        _show_words(a.text, b.text)
        return
    details = cached.answer(client, question.id, a.row), cached.answer(client, question.id, b.row)
    common = num_common(*(one.trace.token_ids for one in details))
    is_same = common == a.num_tokens == b.num_tokens
    st.markdown(_common_words(common, is_same=is_same))
    for name, answer, detail in zip(("A ", "B "), (a, b), details, strict=True):
        _head(question, answer, name)
        answer_lens(detail, metric, first_difference=None if is_same else common)
    _show_aligned(*details, common, question.id)
    if not is_same:
        _show_words(a.text, b.text)


def _common_words(common: int, *, is_same: bool) -> str:
    if is_same:
        return f"A and B say the same, all {common} tokens; what differs is how sure they were."
    if common == 0:
        return "A and B part at the **first token**; from there on they are different texts, and nothing is aligned."
    return (
        f"The first **{common}** tokens of A and B are the same and stand side by side below; from the *first difference* on "
        "they are different texts, and nothing is aligned."
    )


def aligned_frame(a: AnswerDetail, b: AnswerDetail, common: int) -> pd.DataFrame:
    """One row per shared token; position is counted from 1, all figures in nats."""
    mine, theirs = a.trace, b.trace
    return pd.DataFrame(
        {
            "position": range(1, common + 1),
            "token": mine.texts[:common],
            "reverse KL, A": mine.reverse_kl[:common],
            "reverse KL, B": theirs.reverse_kl[:common],
            "log-prob, A": mine.student_logprob[:common],
            "log-prob, B": theirs.student_logprob[:common],
            "log-prob, teacher": mine.teacher_logprob[:common],
        }
    )


def _show_aligned(a: AnswerDetail, b: AnswerDetail, common: int, question_id: str) -> None:
    """The shared tokens: what each student's divergence from the one teacher was."""
    if common < 2:
        return
    frame = aligned_frame(a, b, common)
    long = frame.melt(["position", "token"], ["reverse KL, A", "reverse KL, B"], "who", "nats")
    lines = alt.Chart(long).mark_line(strokeWidth=1.75, point=True).encode(
        x=alt.X("position:Q", title="completion position", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("nats:Q", title="reverse KL (nats)", scale=alt.Scale(type="sqrt", domainMin=0)),
        color=alt.Color("who:N", title=None, legend=alt.Legend(orient="top")),
        strokeDash=alt.StrokeDash("who:N", title=None),
        tooltip=["position:Q", "token:N", "who:N", alt.Tooltip("nats:Q", format=".4~g")],
    )  # fmt: skip
    st.markdown(f"**Their {common} shared tokens, scored by the same teacher**")
    st.altair_chart(
        lines.properties(height=_CHART_HEIGHT),
        key=f"aligned-{question_id}",
        alt="Reverse KL of A and B by position; data below",
    )
    notices.data_behind(frame, f"aligned-{question_id}-{a.answer.row}-{b.answer.row}", key="aligned")


def _show_words(a: str, b: str) -> None:
    st.markdown("**Word by word, from where they part**")
    st.caption(
        f"Struck out on orange: only in A. Bold on violet: only in B. Blanks are not compared; at most {MAX_WORDS:,} words of each."
    )
    with st.container(border=True):
        st.markdown(diff_markdown(from_where_they_part(word_diff(a, b))) or "They have the same words.")
