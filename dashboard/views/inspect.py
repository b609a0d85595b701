"""Inspect: where student and teacher disagree, token by token, for the same prompts as training goes on, and over all of them."""

from collections.abc import Callable

import pandas as pd
import streamlit as st

from backend.schemas import Positions, Rollout, RolloutDetail, RunSummary
from dashboard import across_panels, address, cached, charts, frames, notices
from dashboard.api_client import ApiClient
from dashboard.quantities import nats_text, share_text
from dashboard.run_choice import choose_run
from dashboard.token_lens import token_lens

_SORTS: dict[str, Callable[[Rollout], float]] = {
    "most divergent": lambda one: -one.mean_reverse_kl,
    "hottest token": lambda one: -one.max_reverse_kl,
    "longest": lambda one: -one.num_tokens,
    "prompt": lambda one: one.prompt_index,
}


_FILTERS: dict[str, Callable[[Rollout], bool]] = {
    "all": lambda one: True,
    "right": lambda one: one.is_right is True,
    "wrong": lambda one: one.is_right is False,
    "ended by itself": lambda one: one.finish_reason == "eos",
    "cut at full length": lambda one: one.finish_reason == "length",
}


def rollout_label(rollout: Rollout) -> str:
    mark = {True: "right", False: "wrong", None: "unmarked"}[rollout.is_right]
    return f"prompt {rollout.prompt_index} · {mark} · mean {rollout.mean_reverse_kl:.3f} nats · {rollout.num_tokens} tokens"


def choose_step(steps: list[int]) -> int:
    """The step of the query parameter `step`, else the newest with traces."""
    at = address.asked_index("step", steps, default=len(steps) - 1)
    if len(steps) == 1 or at is None:
        return steps[0]
    step = st.select_slider("Step: the same prompts as training goes on", steps, value=steps[at], key="chosen-step")
    address.keep("step", step)
    return int(step)


def choose_rollout(rollouts: list[Rollout]) -> Rollout:
    """By default the first of the order chosen; a prompt that was chosen once stays when the step changes.

    Ends the view with a notice when no rollout passes the filters.
    """
    first, second, third = st.columns(3, vertical_alignment="bottom")
    order = first.selectbox("Order", list(_SORTS), key="order", bind="query-params")
    kind = second.selectbox("Which", list(_FILTERS), key="which", bind="query-params")
    text = third.text_input("Prompt or completion contains", key="contains", bind="query-params", max_chars=200)
    kept = [
        one
        for one in rollouts
        if _FILTERS[kind](one) and text.casefold() in f"{one.prompt}\0{one.completion}".casefold()
    ]
    if not kept:
        sought = f" that contains `{notices.plain(text)}`" if text else ""
        notices.empty("No rollout matches", f"None of the {len(rollouts)} rollouts of this step is *{kind}*{sought}.")
        st.button("Clear the filters", icon=":material/filter_alt_off:", on_click=_clear_filters)
        st.stop()
    by_prompt = {one.prompt_index: one for one in sorted(kept, key=_SORTS[order])}
    prompts = list(by_prompt)
    chosen = st.selectbox(
        f"Rollout ({len(kept)} of {len(rollouts)})" if len(kept) < len(rollouts) else "Rollout",
        prompts,
        index=address.asked_index("prompt", prompts),
        format_func=lambda one: rollout_label(by_prompt[one]),
        key="chosen-prompt",
    )
    address.keep("prompt", chosen)
    return by_prompt[prompts[0] if chosen is None else chosen]


def _clear_filters() -> None:
    st.session_state["which"], st.session_state["contains"] = "all", ""


def summary_line(rollout: RolloutDetail) -> None:
    mark = {True: ":green-badge[:material/check: right] ", False: ":orange-badge[:material/close: wrong] ", None: ""}
    ended = "it ended by itself" if rollout.finish_reason == "eos" else "it was cut at the full length"
    inside = ""
    if rollout.inside_share is not None and rollout.num_tokens > rollout.horizon:
        inside = f" · {share_text(rollout.inside_share)} of its reverse KL in the first {rollout.horizon} tokens"
    words = (
        f"{rollout.subject} at step {rollout.step} · {rollout.num_tokens} tokens, {ended} · "
        f"mean reverse KL {nats_text(rollout.mean_reverse_kl)}, largest {nats_text(rollout.max_reverse_kl)}{inside}"
    )
    st.markdown(mark[rollout.is_right] + notices.plain(words))


def show_lens(rollout: RolloutDetail) -> None:
    metric, token = token_lens(rollout, address.asked("metric") or "reverse_kl", address.asked_whole("tok"))
    address.keep("metric", metric if metric != "reverse_kl" else None)
    address.keep("tok", token)


def curves_at(client: ApiClient, run_id: str, step: int) -> dict[str, Positions]:
    """Base and student (at the last evaluation up to `step`) on full-length dev samples."""
    base = [one for one in cached.positions(client, run_id, "base") if one.split == "dev"]
    student = [one for one in cached.positions(client, run_id, "student") if one.split == "dev" and one.step <= step]
    return {
        f"{name}, step {curves[-1].step}": curves[-1]
        for name, curves in (("base student", base), ("student", student))
        if curves
    }


def show_positions(client: ApiClient, run: RunSummary, step: int) -> None:
    st.header("By position", anchor=False)
    series = curves_at(client, run.id, step)
    if not series:
        st.caption("No full-length evaluation has measured this run by position yet.")
        return
    frame = pd.concat([frames.positions_frame(one, name) for name, one in series.items()])
    horizon = list(series.values())[-1].horizon
    st.caption(
        "Mean reverse KL on full-length samples of all evaluated prompts; the shade reaches up to the 90th percentile. "
        "Tokens right of the dashed line were not trained at that step."
    )
    shown = frames.horizons_frame({f"L = {horizon}": horizon})
    st.altair_chart(
        charts.positions_chart(frame, shown, "reverse KL (nats)", band=True), key="positions",
        alt="Mean reverse KL by completion position, base student and student; data in the table below",
    )  # fmt: skip
    notices.data_behind(frame, f"positions-{run.id}-step-{step}", key="positions")


def show_rollout(client: ApiClient, run: RunSummary, step: int) -> None:
    page = cached.rollouts(client, run.id, step)
    if not page.items:
        notices.empty("No rollouts at this step", "Choose another step.")
        st.stop()
    rollout = cached.rollout(client, choose_rollout(page.items).id)
    summary_line(rollout)
    show_lens(rollout)
    notices.csv_button(frames.trace_frame(rollout), f"rollout-{rollout.id}")
    here = {"run": run.id, "rollout": rollout.id, "view": "A and B"}
    st.page_link(
        "views/playground.py", label="Compare checkpoints on this prompt", icon=":material/forum:", query_params=here
    )
    show_positions(client, run, step)
    notices.data_behind(
        frames.rollouts_frame(page.items),
        f"rollouts-{run.id}-step-{step}",
        label=f"All {len(page.items)} rollouts of step {step}",
        key="rollouts",
    )


_VIEWS: dict[str, Callable[[ApiClient, RunSummary, int], None]] = {
    across_panels.ROLLOUT: show_rollout,
    across_panels.ACROSS: across_panels.across,
    across_panels.PREFIX: across_panels.prefix_aid,
}

st.title("Inspect", anchor=False)
client = cached.api()
with notices.problems_shown():
    runs = cached.runs(client)
    if not runs and address.asked("run") is None:
        notices.empty("Nothing to inspect yet", "A run stores token traces at each of its evaluations.")
        st.page_link("views/new_run.py", label="New run", icon=":material/add_circle:")
        st.stop()
    left, right = st.columns(2, gap="medium")
    with left:
        run = choose_run(client, runs)
    first = cached.rollouts(client, run.id)
    if not first.steps:
        notices.empty(
            "This run has stored no rollouts",
            "It stores them at its evaluations, the first one before training. `traces.num_rollouts` 0 turns them off; "
            "raise it in *New run* to see them.",
        )
        st.page_link("views/run.py", label="To the run", icon=":material/monitoring:", query_params={"id": run.id})
        st.stop()
    with right:
        step = choose_step(first.steps)
    view = st.segmented_control(
        "View", list(_VIEWS), default=across_panels.ROLLOUT, required=True, key="tab", bind="query-params",
        label_visibility="collapsed",
    )  # fmt: skip
    _VIEWS[view](client, run, step)
