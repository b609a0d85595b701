"""Compare: accuracy or another figure against what it cost, and whether a short prefix was enough."""

from typing import get_args

import pandas as pd
import streamlit as st

from backend.comparison import Comparison, compare
from backend.schemas import Evaluation, Positions, Run, RunSummary
from backend.unique_labels import run_labels, unique_labels
from dashboard import address, cached, charts, frames, notices, saved_views
from dashboard.api_client import ApiClient
from dashboard.compared_runs import first_compared
from dashboard.comparison_frames import (
    arms_frame,
    arms_table,
    config_differences,
    curve_points,
    parallel_frame,
    pareto_front,
    reference_lines,
    seed_curves,
    seeds_table,
    share_problems,
)
from dashboard.measures import measured, telling
from dashboard.quantities import flops_text

_MAX_COMPARED = 10
_BASE = "base student"
_PLAIN_FORMAT = "%.4g"


def _count(num_runs: int) -> str:
    return f"{num_runs} run{'' if num_runs == 1 else 's'}"


def choose_runs(client: ApiClient) -> list[RunSummary]:
    """Runs named in the URL by `runs=a,b`, or those of the experiment in `experiment=`, else of the newest one."""
    named = address.asked("runs")
    if named is not None:
        ids = list(dict.fromkeys(one for one in named.split(",") if one))
        num_offered = len(ids)
        listed: list[RunSummary] = [cached.run(client, one) for one in ids[:_MAX_COMPARED]]
        st.page_link(
            "views/compare.py", label="Compare an experiment instead", icon=":material/science:", query_params={}
        )
    else:
        experiments = {one.id: one for one in cached.experiments(client)}
        wanted = address.asked("experiment")
        if wanted is not None and wanted not in experiments:
            # Older than the list, or not there at all.
            experiments = {wanted: cached.experiment(client, wanted), **experiments}
        if not experiments:
            return []
        ids = list(experiments)
        titles = unique_labels({one.id: f"{one.name} · {_count(one.num_runs)}" for one in experiments.values()})
        first = next((at for at, one in enumerate(experiments.values()) if one.num_runs > 1), 0)
        chosen = st.selectbox(
            "Experiment", ids, index=address.asked_index("experiment", ids, first), key="chosen-experiment",
            format_func=lambda one: titles.get(one, one),
        )  # fmt: skip
        address.keep("experiment", chosen)
        if chosen is None:
            return []
        if experiments[chosen].note:
            st.caption(notices.plain(experiments[chosen].note))
        listed = cached.experiment_runs(client, chosen)
        num_offered = len(listed)
    by_id = {one.id: one for one in listed}
    labels = run_labels(listed)
    begun = [one for one in listed if one.step > 0 or one.state == "succeeded"]
    kept = st.multiselect(
        "Runs", list(by_id), default=first_compared(begun, _MAX_COMPARED), format_func=lambda one: labels.get(one, one),
        max_selections=_MAX_COMPARED, key=f"compared-{named or listed[0].experiment_id if listed else ''}",
    )  # fmt: skip
    if num_offered > _MAX_COMPARED:
        st.caption(
            f"{len(kept)} of {_count(num_offered)} {'is' if len(kept) == 1 else 'are'} shown, at most {_MAX_COMPARED} at once: "
            "what is said below is of these, not of the others."
        )
    waiting = len(listed) - len(begun)
    if waiting:
        st.caption(f"Left out: {_count(waiting)} of {len(listed)} without a step of training yet.")
    return [by_id[one] for one in kept]


def cost_section(runs: list[tuple[Run, list[Evaluation]]]) -> None:
    st.header("Result against cost", anchor=False)
    known = {measure.key: measure for measure in measured(runs)}
    chosen = st.selectbox(
        "Result", list(known), index=telling(runs, list(known.values())), key="measure", bind="query-params",
        format_func=lambda one: known[one].name, width=340,
    )  # fmt: skip
    measure = known[chosen]
    axes = list(get_args(charts.XAxis))
    x = st.segmented_control(
        "Cost",
        axes,
        default=axes[0],
        required=True,
        format_func=lambda one: charts.X_TITLES[one],
        key="x",
        bind="query-params",
        label_visibility="collapsed",
    )
    points = curve_points(runs, measure.key)
    if points.empty:
        st.caption("No student has been evaluated yet.")
        return
    if points[x].isna().all():
        st.caption(f"These runs did not count {charts.X_TITLES[x].lower()}; choose another cost.")
        return
    seeds = seed_curves(points, is_share=measure.is_share)
    is_comparable = share_problems(runs)
    # Of what should be as the teacher's nothing is better for less.
    has_front = is_comparable and measure.falls is not None
    front = pareto_front(points, x, falls=bool(measure.falls)) if has_front else points.iloc[:0]
    st.altair_chart(
        charts.measure_chart(points, seeds, front, reference_lines(runs, measure.key), x, measure), key="by-cost",
        alt=f"{measure.name} of each run at full length by its cost, with base student and teacher as lines; data in the table below",
    )  # fmt: skip
    over_seeds = "" if seeds.empty else " The thick line is the mean over seeds, its band 95 % of it (Student's t)."
    better = {
        None: "Good is what is near the teacher's.",
        True: "Less is better; the broad grey line is the Pareto front: nothing measured is better for less.",
        False: "The broad grey line is the Pareto front: nothing measured is better for less.",
    }[measure.falls]
    if is_comparable:
        words = f"Every evaluation is at full length on the same dev prompts. {better}"
    else:
        words = "Every evaluation is at full length, but these runs were not evaluated on the same prompts: hold none against another."
    st.caption(f"{words} A diamond marks the best checkpoint of a run.{over_seeds}")
    notices.data_behind(points, f"{measure.key.replace('_', '-')}-by-cost")


def table_section(comparison: Comparison) -> None:
    st.header("What came out", anchor=False)
    if not comparison.arms:
        st.caption("No run has succeeded yet: the table follows when the first one has.")
        return
    wide, share = st.column_config.TextColumn(width="medium"), st.column_config.NumberColumn(format="percent")
    plain = st.column_config.NumberColumn(format=_PLAIN_FORMAT)
    st.dataframe(
        arms_table(comparison), hide_index=True, key="arms", placeholder=notices.NOTHING,
        column_config={
            "arm": wide, "horizon": wide, "share inside": share, "EOS": share, "training, GFLOP": plain,
            f"GFLOP to reach {comparison.target:.2f}": plain, "McNemar p": st.column_config.NumberColumn(format="%.2g"),
            "exact": st.column_config.NumberColumn(format="%.3f"), "saving": st.column_config.NumberColumn(format="%.1f×"),
            "time, s": plain,
        },
    )  # fmt: skip
    full = next((arm.name for arm in comparison.arms if arm.is_baseline), None)
    against = (
        f"Saving is against *{notices.plain(full)}* (1.0×), for arms of its student that were evaluated on its problems."
        if full
        else "None of the arms shown trains at full length, so no saving can be stated."
    )
    st.caption(
        "Accuracy is the best checkpoint's: on the report prompts where a run has some, else on the dev prompts that chose it, "
        f"which flatters it. Brackets are 95 % over prompts. {against} "
        "McNemar p is the exact test against the baseline, problem by problem: below 0.05 the two arms differ on these "
        "problems, whatever their brackets say. Share inside and tail are reverse KL of full-length samples. "
        "No figure under GFLOP to reach: the target was not reached. Columns with brackets or arrows are sorted as text."
    )
    # With several seeds the summary comes first, and the sentences about each of many runs are there for who asks.
    place = st.expander("Run by run, in words", icon=":material/notes:") if comparison.has_seeds else st.container()
    for sentence in comparison.sentences:
        place.markdown(f"- {notices.plain(sentence)}")
    with st.container(horizontal=True):
        notices.csv_button(arms_frame(comparison), "comparison")
        st.download_button(
            "JSON", data=comparison.model_dump_json(indent=1), file_name="comparison.json", mime="application/json",
            icon=":material/download:", on_click="ignore", key="comparison-json",
        )  # fmt: skip


def seeds_section(comparison: Comparison) -> None:
    if not comparison.arms:
        return
    st.header("By variant, over its seeds", anchor=False)
    st.dataframe(
        seeds_table(comparison), hide_index=True, key="seeds",
        column_config={"training, GFLOP": st.column_config.NumberColumn(format=_PLAIN_FORMAT)},
    )  # fmt: skip
    st.caption("Columns with brackets or words are sorted as text, not by size.")
    if comparison.has_seeds:
        st.caption(
            "Brackets are 95 % over seeds (Student's t); compute to reach the target is a geometric mean, its ratio by "
            "Welch's interval on the logarithms, and stated only when every seed of both sides reached the target."
        )
    else:
        st.caption("One seed: no interval. Start the same experiment with three seeds or more to see what chance does.")


def parallel_section(runs: list[tuple[Run, list[Evaluation]]], comparison: Comparison) -> None:
    frame = parallel_frame(runs, comparison)
    if frame.empty or frame["run"].nunique() < 2:
        return
    st.header("Settings beside results", anchor=False)
    st.altair_chart(
        charts.parallel_chart(frame), key="parallel",
        alt="Parallel coordinates of the settings that differ, training FLOPs and accuracy; data in the table below",
    )  # fmt: skip
    notices.data_behind(
        frame[["run", "axis", "label"]].pivot(index="run", columns="axis", values="label").reset_index(), "settings"
    )


def phases_section(comparison: Comparison) -> None:
    rows = [
        {"who": arm.name, "phase": phase, "flops": flops, "order": order}
        for arm in comparison.arms
        for order, (phase, flops) in enumerate(arm.flops.by_phase().items())
        if flops
    ]
    if not rows:
        return
    st.header("Training FLOPs by phase", anchor=False)
    frame = pd.DataFrame(rows)
    st.altair_chart(
        charts.flops_bars(frame), key="phases", alt="Training FLOPs by phase and arm; data in the table below"
    )
    notices.data_behind(frame.drop(columns="order").assign(shown=frame["flops"].map(flops_text)), "flops-by-phase")


def positions_section(client: ApiClient, runs: list[Run]) -> None:
    st.header("Divergence by position", anchor=False)
    series: dict[str, Positions] = {}
    labels = run_labels(runs, taken=[_BASE])
    for run in runs:
        student = [one for one in cached.positions(client, run.id, "student") if one.split == "dev"]
        if student:
            series[labels[run.id]] = student[-1]
    base = next((one for run in runs for one in cached.positions(client, run.id, "base") if one.split == "dev"), None)
    if not series:
        st.caption("Nothing is measured by position yet.")
        return
    drawn = ({_BASE: base} if base else {}) | series
    frame = pd.concat([frames.positions_frame(one, name) for name, one in drawn.items()])
    horizons = {f"L = {one.horizon}": one.horizon for one in series.values() if one.horizon < len(one.mean)}
    st.altair_chart(
        charts.positions_chart(frame, frames.horizons_frame(horizons), "reverse KL (nats)", band=False), key="positions",
        alt="Reverse KL by position of each run at its last evaluation; data in the table below",
    )  # fmt: skip
    st.caption(
        "Full-length samples at each run's last evaluation. A line that rises behind its dashed horizon is a tail that drifts."
    )
    notices.data_behind(frame, "reverse-kl-by-position")


st.title("Compare", anchor=False)
client = cached.api()
with notices.problems_shown():
    chosen = choose_runs(client)
    if not chosen:
        notices.empty(
            "Nothing to compare yet", "Start an experiment with several variants, or `make demo` in a terminal."
        )
        st.page_link("views/new_run.py", label="New run", icon=":material/add_circle:")
        st.stop()
    saved_views.popover(client, [one.id for one in chosen])
    compared = [cached.run(client, one.id) for one in chosen]
    pairs = [(run, cached.evaluations(client, run)) for run in compared]
    cost_section(pairs)
    with st.container(horizontal=True):
        target = st.number_input(
            "Compute to reach an accuracy of", 0.05, 1.0, 0.95, 0.01, key="target", bind="query-params", width=240
        )
        budget = st.number_input(
            "Accuracy at a budget of GFLOP", min_value=0.0, value=None, key="budget", bind="query-params", width=240,
            placeholder="such as 50", help="The best dev accuracy that each variant reached within so much training.",
        )  # fmt: skip
    comparison = compare(pairs, target, None if budget is None else budget * 1e9)
    sections = [table_section, seeds_section]
    for section in reversed(sections) if comparison.has_seeds else sections:
        section(comparison)
    phases_section(comparison)
    positions_section(client, [run for run, _ in pairs])
    parallel_section(pairs, comparison)
    st.header("What differs in the specs", anchor=False)
    differences = config_differences([run for run, _ in pairs])
    if differences.empty:
        st.caption("Nothing but names and seeds.")
    else:
        st.dataframe(differences, hide_index=True, key="differences")
