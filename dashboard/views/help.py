"""Help: the method in two hundred words, the documentation, the words of this dashboard, how each figure is measured, the keys."""

from collections.abc import Iterable

import pandas as pd
import streamlit as st

from dashboard import address, cached, doc_pages, notices
from dashboard.spec_schema import FormField, form_fields

_METHOD = """
A **student** (small) learns to follow a **teacher** (large). Ordinary distillation shows the student the teacher's texts; then, at
work, the student meets its own mistakes, which it never saw. *On-policy* distillation lets the student write, and the teacher says
at every token what it would have written instead. That is better, and dear: the student writes whole answers, and both models
read them.

Incipit lets the student write only the **first L tokens**, the *prefix*. Much of what makes an answer right or wrong is decided
there: the plan, the first step, the form. Sampling stops at L, both models read L tokens instead of thousands, and the student's
own continuation follows from a better beginning. The paper behind it (arXiv 2602.15260) reports the accuracy of full on-policy
distillation with 2 to 47 times fewer training FLOPs.

It can fail. If the fault lies behind the prefix, nothing on the prefix corrects it, and training on beginnings alone can empty the
tail of the texts. So evaluations are always at **full length**, the divergence behind the horizon is measured beside that inside,
and the *sentinel* can watch the tail, lengthen the prefix or stop. The **Analyses** page asks, before anything is trained, how long
the prefix should be.
"""

_WORDS = {
    "prompt": "The text that the models continue.",
    "completion": "What a model writes after the prompt.",
    "rollout": "A prompt with a completion and the sampler's log-probabilities.",
    "prefix": "The first tokens of a completion, on which the student is trained.",
    "horizon": "The length of the prefix at a step, in tokens. Schedules change it.",
    "anchoring": "Every n-th step trains at full length, so that the tail stays in view.",
    "step": "One update of the student's weights.",
    "attempt": "One try at a run. A run whose worker died goes on in the next one, from its last checkpoint.",
    "checkpoint": "The student's weights at a step, with all that is needed to go on.",
    "playground": "One prompt for several models (checkpoints, base student, teacher) with the same random numbers. The teacher "
    "scores every token; its own words are compared with a student that reads them.",
    "dev, report": "Prompts on which the best checkpoint is chosen, and other ones on which it is reported.",
}

_FIGURES = {
    "reverse KL": "KL(student ‖ teacher) in nats: what the teacher thinks of what the student writes. Full vocabulary.",
    "forward KL": "KL(teacher ‖ student) in nats: how well the student covers the teacher. Full vocabulary.",
    "JSD": "Divergence of both from their mixture with weight β; at β = 0.5 at most ln 2 = 0.693 nats.",
    "Δ log-prob": "Teacher's minus student's log-probability of the token that was written.",
    "rank difference": "Rank of the written token under the student minus that under the teacher.",
    "entropy": "How undecided a model is before it writes the token, in nats.",
    "accuracy": "Share of full-length greedy answers that the task's scorer calls right; brackets are Wilson intervals, 95 %.",
    "McNemar p": "Exact paired test: whether two runs differ on the same problems.",
    "share inside": "Share of the base student's divergence that lies where the loss applies.",
    "training FLOPs": "Rollout + teacher + student forward + backward + recompute, by formula from the shapes. Evaluation is "
    "counted apart. What torch executes is shown beside it.",
    "saving": "Training FLOPs of the full-length baseline divided by those of the arm.",
}

_KEYS = {
    "← →": "The token before, the next one",
    "↑ ↓": "The token in the line above, below",
    "Home, End": "The first token, the last one",
    "n, N": "The next of the most divergent tokens, the one before",
    "1 to 7": "Colour by reverse KL, forward KL, JSD, Δ log-prob, rank difference, student's entropy, teacher's entropy",
    "p, Enter": "Keep the card of this token, or let it go",
    "w": "Show marks for blanks and line ends",
    "?": "Show these keys",
    "Esc": "Close the card",
}


def two_columns(rows: dict[str, str], first: str, second: str) -> None:
    st.table(pd.DataFrame({first: list(rows), second: list(rows.values())}), hide_index=True)


def field_rows(fields: Iterable[FormField], of_kind: str = "") -> list[dict[str, str]]:
    """field, of kind, is, allowed: every field below, those of alternatives with the kind that has them."""
    rows: list[dict[str, str]] = []
    for one in fields:
        allowed = ", ".join(one.choices or tuple(one.members)) or one.limits
        if one.help:
            rows.append({"field": one.path, "of kind": of_kind, "is": " ".join(one.help.split()), "allowed": allowed})
        for kind, member in one.members.items():
            rows += field_rows(member.fields, kind)
        if one.kind == "group":
            rows += field_rows(one.fields, of_kind)
    return rows


st.title("Help", anchor=False)
method, documentation, words, figures, keys, fields = st.tabs(
    ["The method", "Documentation", "Words", "Figures", "Keys", "Fields of a run"],
    default="Documentation" if address.asked("page") else None,
)
with method:
    st.container(width=820).markdown(_METHOD)
    with st.container(horizontal=True):
        st.page_link("views/new_run.py", label="Start a run", icon=":material/add_circle:")
        st.page_link("views/analyses.py", label="How long should my prefix be?", icon=":material/biotech:")
with documentation:
    pages = doc_pages.pages()
    page = st.selectbox(
        "Page",
        list(pages),
        format_func=lambda name: pages[name],
        key="page",
        bind="query-params",
        required=True,
        width=420,
    )
    with st.container(width=900):
        doc_pages.show(page)
with words:
    two_columns(_WORDS, "word", "is")
with figures:
    two_columns(_FIGURES, "figure", "how it is measured")
with keys:
    st.caption("In the token view of Inspect, when it has the focus.")
    two_columns(_KEYS, "key", "does")
with fields:
    st.caption("Every field of a run's spec, from the schema that the API checks it with.")
    with notices.problems_shown():
        spec = form_fields(cached.spec_schema(cached.api()))
    st.table(pd.DataFrame(field_rows(spec)), hide_index=True)
