"""What a run will cost, beside the form: FLOPs by phase, memory by part, time, the horizon by step."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from backend.estimates import Estimate
from dashboard import charts, notices
from dashboard.quantities import bytes_text, flops_text, range_text, times_text


def show(estimate: Estimate, document: Mapping[str, Any]) -> None:
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
        show_horizons(estimate, document)
        with st.expander("By phase and part", icon=":material/table:"):
            phases = estimate.flops.by_phase() | {"evaluation": estimate.flops.evaluation}
            full = estimate.full_length_flops.by_phase() | {"evaluation": estimate.full_length_flops.evaluation}
            shown = {name: (flops_text(value), flops_text(full.get(name))) for name, value in phases.items() if value}
            st.table(pd.DataFrame(shown, index=["this run", "full length"]).T)
            parts = sorted(estimate.memory_bytes.items(), key=lambda part: -part[1])
            st.table(
                pd.DataFrame([{"memory": name.replace("_", " "), "size": bytes_text(size)} for name, size in parts]),
                hide_index=True,
            )
        for assumption in estimate.assumptions:
            st.caption(notices.plain(assumption))


def show_total(estimates: Sequence[Estimate], num_seeds: int) -> None:
    """All arms with all seeds: FLOPs, and time of one after the other where it is known for each."""
    with st.container(border=True):
        flops = num_seeds * sum(one.flops.training for one in estimates)
        most = "at most " if any(one.is_most for one in estimates) else ""
        st.markdown(f"**{len(estimates) * num_seeds} runs**: training **{most}{flops_text(flops)}**")
        known = [one.seconds for one in estimates if one.seconds is not None]
        if len(known) == len(estimates):
            low, high = (num_seeds * sum(getattr(one, end) for one in known) for end in ("low", "high"))
            st.markdown(f"One after the other **{range_text((low, high))}**; workers share them.")


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
