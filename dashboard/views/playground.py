"""Playground: one prompt for several models, their answers side by side, each token scored by the teacher."""

import streamlit as st

from backend.playground import PlaygroundQuestion, QuestionSummary
from backend.unique_labels import unique_labels
from dashboard import address, answer_panels, cached, notices, rights
from dashboard.api_client import ApiClient
from dashboard.quantities import age_text, moment_text, range_text
from dashboard.question_form import draw_question_form

_POLL_SECONDS = 1.0
_SHOWN = 60  # characters of a prompt in the list
_OPEN = "playground-form-open"  # the question beside which the form is open


def label_of(question: QuestionSummary) -> str:
    """Without its state and age: the browser names its choice by the label, which must still be there when it arrives."""
    prompt = " ".join(question.prompt.split())
    shown = prompt if len(prompt) <= _SHOWN else prompt[:_SHOWN] + "…"
    return f"“{shown}” · {', '.join(question.speakers)} · {moment_text(question.created_at)}"


def choose_question(client: ApiClient) -> str | None:
    """The question of the address, also one that the list no longer has; None until one is asked or chosen."""
    known = cached.questions(client)
    by_id = {one.id: label_of(one) for one in known}
    wanted = address.asked("question")
    if wanted is not None and wanted not in by_id:
        by_id = {wanted: f"question {wanted}"} | by_id
    if not by_id:
        notices.empty(
            "Nothing was asked yet",
            "Choose who answers and write a prompt. A worker answers; the page may be closed meanwhile.",
            icon=":material/forum:",
        )
        return None
    ids, labels = list(by_id), unique_labels(by_id)
    # With another question in the address it is another list, which starts at the address.
    chosen = st.selectbox(
        "Questions", ids, index=address.asked_index("question", ids, None), format_func=lambda one: labels.get(one, one),
        placeholder=f"{len(ids)} earlier ones, with their answers",
        key=f"chosen-question-{wanted}-{ids[0]}",
    )  # fmt: skip
    address.keep("question", chosen)
    return chosen


def show(client: ApiClient, question: PlaygroundQuestion) -> None:
    asked = question.asked
    with st.container(border=True):
        st.code(asked.prompt, language=None, wrap_lines=True)
        chat = " in each one's chat template" if asked.template == "chat" else ""
        st.caption(
            notices.plain(
                f"{', '.join(question.speakers)} · scored by the teacher of {question.run_name}{chat} · temperature "
                f"{asked.temperature:g}, top-p {asked.top_p:g}, min-p {asked.min_p:g}, at most {asked.max_completion_tokens} tokens, "
                f"seed {asked.seed} · asked {age_text(question.created_at)}"
            )
        )
        with st.container(horizontal=True):
            st.button(
                "Ask again with changes", icon=":material/edit:", key="ask-again", on_click=_ask_again, args=(question,)
            )
            if question.state in ("queued", "running") and rights.refusal(client) is None:
                st.button(
                    "Cancel",
                    icon=":material/cancel:",
                    key="cancel-question",
                    on_click=_cancel,
                    args=(client, question.id),
                )
    if question.state in ("queued", "running"):
        st.fragment(_poll, run_every=_POLL_SECONDS)(client, question.id)
    elif question.state == "succeeded":
        answer_panels.show_answers(client, question)
    elif question.state == "cancelled":
        st.info("It was cancelled; nothing was kept.", icon=":material/cancel:")
    else:
        st.error("It could not be answered.", icon=":material/error:")
        for finding in question.findings:
            st.markdown(f"- {notices.plain(finding.message)}")


def _ask_again(question: PlaygroundQuestion) -> None:
    """Fill the form with it; the run's list would otherwise keep its own choice."""
    address.keep("again", question.id)
    address.keep("run", question.asked.run_id)
    st.session_state["chosen-run"] = question.asked.run_id
    st.session_state[_OPEN] = question.id


def _cancel(client: ApiClient, question_id: str) -> None:
    with notices.problems_shown():
        client.cancel_question(question_id)
        cached.questions.clear()


def _poll(client: ApiClient, question_id: str) -> None:
    with notices.problems_shown():
        question = client.question(question_id)
        if question.state not in ("queued", "running"):
            cached.questions.clear()
            st.rerun()
        if question.state == "running":
            seconds = question.eta_seconds
            left = f", about {range_text((seconds, seconds))} left" if seconds else ""
            st.progress(min(1.0, question.done), text=f"{notices.plain(question.detail)}{left}")
            return
        st.progress(0.0, text=f"Place {question.queue_position} in the queue; it starts when a worker is free.")
        if cached.health(client).workers == 0:
            st.warning("No worker was heard of within the last minute, so it waits for one.", icon=":material/warning:")


st.title("Playground", anchor=False)
st.caption(
    "One prompt for several models, with the same random numbers. The teacher scores each token of every answer, as it does in training."
)
client = cached.api()
with notices.problems_shown():
    runs = cached.runs(client)
    if not runs and address.asked("run") is None:
        notices.empty("Nobody to ask yet", "A run names the teacher and the student; its checkpoints can speak here.")
        st.page_link("views/new_run.py", label="New run", icon=":material/add_circle:")
        st.stop()
    shown = address.asked("question")
    is_open = shown is None or st.session_state.get(_OPEN) == shown
    with st.expander("Ask", icon=":material/edit_square:", expanded=is_open):
        draw_question_form(client, runs)
    question_id = choose_question(client)
    if question_id is not None:
        show(client, client.question(question_id))
