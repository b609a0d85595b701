"""What a run will cost, beside the form: FLOPs by phase, memory by part, time, the horizon by step."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from backend.estimates import Estimate
from backend.schemas import Worker
from dashboard import charts, notices, worker_room
from dashboard.quantities import bytes_text, flops_text, range_text, share_text, times_text


def show(estimate: Estimate, document: Mapping[str, Any], workers: Sequence[Worker]) -> None:
    """One run of the spec, as `worker_room.on_their_device` has it."""
    fit = worker_room.fit(estimate, document, workers)
    with st.container(border=True):
        st.markdown("**Estimate**")
        against = f" · {times_text(estimate.saving)} less than at full length" if estimate.saving > 1.005 else ""
        most = "at most " if estimate.is_most else ""
        st.markdown(f"Training **{most}{flops_text(estimate.flops.training)}**{against}")
        seconds = estimate.seconds
        known = (
            f"Time **{most}{range_text((seconds.low, seconds.high))}**, from earlier runs of these models"
            if seconds
            else "Time not known yet: no earlier run of these models"
        )
        st.markdown(known)
        st.markdown(f"Memory about **{bytes_text(estimate.memory_total_bytes)}**")
        show_fit(fit)
        show_horizons(estimate, document)
        with st.expander("By phase and part", icon=":material/table:"):
            phases = estimate.flops.by_phase() | {"evaluation": estimate.flops.evaluation}
            full = estimate.full_length_flops.by_phase() | {"evaluation": estimate.full_length_flops.evaluation}
            shown = {name: (flops_text(value), flops_text(full.get(name))) for name, value in phases.items() if value}
            st.table(pd.DataFrame(shown, index=["this run", "full length"]).T)
            parts = sorted(estimate.memory_bytes.items(), key=lambda part: -part[1])
            st.table(pd.DataFrame([memory_row(name, size, fit.room_bytes) for name, size in parts]), hide_index=True)
        for assumption in estimate.assumptions:
            st.caption(notices.plain(assumption))


def show_fit(fit: worker_room.Fit) -> None:
    """Red where the run does not fit, a warning where that is in doubt, else a quiet line."""
    if fit.verdict == "too large":
        st.error(fit.sentence, icon=":material/memory_alt:")
    elif fit.verdict == "doubtful":
        st.warning(fit.sentence, icon=":material/memory_alt:")
    else:
        st.caption(f":material/{'check' if fit.verdict == 'fits' else 'question_mark'}: {fit.sentence}")


def memory_row(name: str, size: int, room_bytes: int | None) -> dict[str, str]:
    """A part of the memory, and its share of the roomiest connected worker's where that is known."""
    share = {} if room_bytes is None else {"of the worker's": share_text(size / room_bytes, 1)}
    return {"memory": name.replace("_", " "), "size": bytes_text(size)} | share


def show_total(arms: Sequence[tuple[Estimate, Mapping[str, Any]]], num_seeds: int, workers: Sequence[Worker]) -> None:
    """All arms with all seeds: FLOPs, time with the connected workers where it is known of each, and what may not fit."""
    estimates = [estimate for estimate, _ in arms]
    num_runs = len(arms) * num_seeds
    with st.container(border=True):
        flops = num_seeds * sum(one.flops.training for one in estimates)
        most = "at most " if any(one.is_most for one in estimates) else ""
        st.markdown(f"**{num_runs} runs**: training **{most}{flops_text(flops)}**")
        known = [(one.seconds.low, one.seconds.high) for one in estimates if one.seconds is not None]
        if len(known) == len(estimates):
            each = [one for one in known for _ in range(num_seeds)]
            st.markdown(worker_room.time_sentence(each, len(worker_room.connected(workers))))
        show_largest(arms, workers, num_runs)


def show_largest(arms: Sequence[tuple[Estimate, Mapping[str, Any]]], workers: Sequence[Worker], num_runs: int) -> None:
    """What the arm that fits worst needs; nothing where all fit."""
    fits = [
        (worker_room.fit(estimate, document, workers, num_runs=num_runs), estimate.memory_total_bytes, document)
        for estimate, document in arms
    ]
    worst, _, document = max(fits, key=lambda one: (worker_room.VERDICTS.index(one[0].verdict), one[1]))
    if worst.verdict in ("doubtful", "too large"):
        name = notices.plain(str(document.get("name", "")))
        show_fit(replace(worst, sentence=f"**{name}.** {worst.sentence}" if len(arms) > 1 else worst.sentence))


def show_horizons(estimate: Estimate, document: Mapping[str, Any]) -> None:
    """The horizon by step: a line, a band where training itself decides, a sentence where it never changes."""
    if estimate.longest_horizons:
        st.caption("Horizon by step: between never growing and growing as fast as it may")
    elif len(set(estimate.horizons)) > 1:
        st.caption("Horizon by step")
    else:
        of_full = f" of {document.get('max_completion_tokens', '')}" if estimate.horizons else ""
        tokens = estimate.horizons[0] if estimate.horizons else "–"
        is_whole = (document.get("loss_region") or {}).get("kind", "whole") == "whole"
        st.caption(f"Every step samples {'and trains ' if is_whole else ''}the first {tokens}{of_full} tokens.")
        return
    frame = horizon_frame(estimate)
    st.altair_chart(charts.horizon_chart(frame), key="horizon", alt="Horizon by step, as the schedule sets it")
    if estimate.flops_at_fastest_growth is not None:
        most = flops_text(estimate.flops_at_fastest_growth.training)
        st.caption(f"What training shows decides when the prefix grows; at the fastest growth training takes {most}.")


def horizon_frame(estimate: Estimate) -> pd.DataFrame:
    """step, horizon, longest; longest is the horizon where that is known beforehand."""
    longest = estimate.longest_horizons or estimate.horizons
    return pd.DataFrame({"step": estimate.horizon_steps, "horizon": estimate.horizons, "longest": longest})
