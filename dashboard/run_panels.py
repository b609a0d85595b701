"""The panels of the run view. Each takes the client and the run, and draws one thing."""

import json

import pandas as pd
import streamlit as st

from backend.schemas import Evaluation, Run
from dashboard import cached, charts, estimate_panel, frames, notices, tail_panel
from dashboard.api_client import ApiClient
from dashboard.quantities import accuracy_text, flops_text, nats_text, seconds_text

# What a person can do about a failure, by its kind; the run's own message says what happened.
_METRICS = {
    "loss": "loss (nats per token)",
    "cross_entropy": "cross-entropy of the warm-up phase (nats per token)",
    "horizon": "horizon (tokens)",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "student_entropy": "student entropy (nats)",
    "teacher_entropy": "teacher entropy (nats)",
    "mean_tokens": "tokens per rollout",
    "natural_stop_rate": "share ended by EOS",
    "peak_memory_bytes": "peak memory (bytes)",
}
_ACCURACY_HELP = "At full length: on dev prompts on the way; on report prompts once, with the best checkpoint."


def figures(client: ApiClient, run: Run) -> None:
    """The strip of figures under the header."""
    known = {metric.key: metric for metric in cached.metrics(client, run)} if run.step else {}
    loss = known.get("loss")
    last = next((value for value in reversed(loss.values) if value is not None), None) if loss else None
    with st.container(horizontal=True):
        st.metric("Step", f"{run.step:,} / {run.num_steps:,}", border=True, width="content")
        reported = run.report_accuracy is not None
        st.metric(
            "Accuracy, report" if reported else "Accuracy, dev (best)",
            accuracy_text(run.report_accuracy if reported else run.best_accuracy),
            border=True, width="content", help=_ACCURACY_HELP,
        )  # fmt: skip
        st.metric(
            "Loss in the prefix", nats_text(last), border=True, width="content",
            help="The run's divergence per trained token. A falling loss does not show what happens behind the prefix: see Evaluations.",
        )  # fmt: skip
        st.metric(
            "Training FLOPs",
            flops_text(run.training_flops),
            border=True,
            width="content",
            help="All phases but evaluation, from actual token counts.",
        )
        st.metric("Training time", seconds_text(run.training_seconds), border=True, width="content")


def references(evaluations: list[Evaluation]) -> pd.DataFrame:
    """label, accuracy of base student and teacher on the dev split."""
    names = {"base": "base student", "teacher": "teacher"}
    measured = {
        names[one.subject]: one.metrics.get("accuracy")
        for one in evaluations
        if one.subject in names and one.split == "dev"
    }
    return pd.DataFrame([{"label": label, "accuracy": value} for label, value in measured.items() if value is not None],
                        columns=["label", "accuracy"])  # fmt: skip


def overview(client: ApiClient, run: Run) -> None:
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**Accuracy at full length**")
        _accuracy(client, run)
    with right:
        st.markdown("**Loss in the prefix**")
        loss = next((metric for metric in cached.metrics(client, run) if metric.key == "loss"), None)
        if loss is None:
            st.caption("No step is done yet.")
        else:
            st.altair_chart(
                charts.metric_line(frames.metric_frame(loss), _METRICS["loss"]).properties(height=260), key="overview-loss",
                alt="Loss by step; data in the Metrics panel",
            )  # fmt: skip
    if run.flops is not None and run.flops.training:
        st.markdown("**Training FLOPs by phase**")
        rows = [
            {"who": run.name, "phase": phase, "flops": flops, "order": order}
            for order, (phase, flops) in enumerate(run.flops.by_phase().items())
            if flops
        ]
        frame = pd.DataFrame(rows)
        st.altair_chart(
            charts.flops_bars(frame), key="overview-flops", alt="Training FLOPs by phase; data in the table below"
        )
        st.caption(f"Evaluation took {flops_text(run.flops.evaluation)} more; it is not part of the training total.")
        notices.data_behind(frame.drop(columns="order"), f"flops-{run.id}")
    estimate_panel.show(client, run)


def _accuracy(client: ApiClient, run: Run) -> None:
    measured = cached.evaluations(client, run)
    frame = frames.evaluations_frame(measured)
    if frame.empty or "accuracy" not in frame:
        st.caption("Nothing is measured yet; base student and teacher come first.")
        return
    student = frame[(frame["subject"] == "student") & (frame["split"] == "dev")]
    st.altair_chart(
        charts.progress_chart(student[["step", "accuracy", "is_best"]], references(measured)), key="overview-accuracy",
        alt="Full-length accuracy by step with base student and teacher as lines; data in the Evaluations panel",
    )  # fmt: skip


def metrics(client: ApiClient, run: Run) -> None:
    # The sentinel's figures have a panel of their own, beside the teacher's.
    known = {one.key: one for one in cached.metrics(client, run) if not one.key.startswith(tail_panel.PREFIX)}
    if not known:
        st.caption("No step is done yet.")
        return
    shown = [key for key in _METRICS if key in known] + sorted(set(known) - set(_METRICS))
    columns = st.columns(2, gap="medium")
    for at, key in enumerate(shown):
        with columns[at % 2]:
            title = _METRICS.get(key, key.replace("_", " "))
            st.altair_chart(
                charts.metric_line(frames.metric_frame(known[key]), title), key=f"metric-{key}", alt=f"{title} by step"
            )
    wide = pd.DataFrame({"step": known[shown[0]].steps}).set_index("step")
    for key in shown:
        wide = wide.join(pd.Series(known[key].values, index=known[key].steps, name=key), how="outer")
    notices.data_behind(wide.reset_index(names="step"), f"metrics-{run.id}")


def evaluations(client: ApiClient, run: Run) -> None:
    frame = frames.evaluations_frame(cached.evaluations(client, run))
    if frame.empty:
        st.caption("Nothing is measured yet; base student and teacher come first.")
        return
    st.caption(
        "Every evaluation runs to the full length, whatever the horizon. `inside` and `beyond` are nats per token before and "
        "behind the horizon; "
        "EOS rate, tokens and repetition show a tail that collapses while the loss still falls."
    )
    st.dataframe(frames.evaluation_table(frame), hide_index=True, key="evaluations")
    notices.csv_button(frame, f"evaluations-{run.id}")


def positions(client: ApiClient, run: Run) -> None:
    curves = cached.positions(client, run.id)
    training = [one for one in curves if one.source == "training"]
    full = [one for one in curves if one.source != "training" and one.split == "dev"]
    if not training and not full:
        st.caption("Nothing is measured by position yet.")
        return
    if training:
        last = max(training, key=lambda one: one.step)
        st.markdown(f"**Loss by position, training step {last.step}**")
        frame = frames.positions_frame(last, f"step {last.step}")
        mark = frames.horizons_frame({f"L = {last.horizon}": last.horizon})
        st.altair_chart(
            charts.positions_chart(frame, mark, "loss (nats)", band=False),
            key="training-positions",
            alt="Loss by position",
        )
        notices.data_behind(frame, f"loss-by-position-{run.id}")
    if full:
        st.markdown("**Reverse KL by position at full length**")
        steps = sorted({one.step for one in full})
        chosen = {steps[0], steps[len(steps) // 2], steps[-1]}
        frame = pd.concat(
            [frames.positions_frame(one, f"{one.source}, step {one.step}") for one in full if one.step in chosen]
        )
        mark = frames.horizons_frame({f"L = {full[-1].horizon}": full[-1].horizon})
        st.altair_chart(
            charts.positions_chart(frame, mark, "reverse KL (nats)", band=False),
            key="full-positions",
            alt="Reverse KL by position",
        )
        notices.data_behind(frame, f"kl-by-position-{run.id}")


def log(client: ApiClient, run: Run) -> None:
    lines = frames.log_lines(cached.events(client, run))
    st.dataframe(pd.DataFrame(lines, columns=["time", "event", "what"]), hide_index=True, key="log",
                 column_config={"what": st.column_config.TextColumn(width="large")})  # fmt: skip


def spec(client: ApiClient, run: Run) -> None:  # noqa: ARG001  # all panels are called alike
    document = json.dumps(run.spec.model_dump(mode="json"), indent=2)
    st.code(document, language="json", height=480)
    st.download_button(
        "Download the spec",
        data=document,
        file_name=f"{run.id}.json",
        mime="application/json",
        icon=":material/download:",
        on_click="ignore",
    )
    st.caption("The same run without the dashboard:")
    st.code(f"incipit train {run.id}.json --out out/{run.id}", language="bash")
