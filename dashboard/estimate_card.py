"""What a run will cost, beside the form: FLOPs by phase, memory by part, time, the horizon by step."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from backend.schemas import Estimate
from dashboard import charts, notices
from dashboard.quantities import bytes_text, flops_text, range_text, times_text


def show(estimate: Estimate, document: Mapping[str, Any]) -> None:
    with st.container(border=True):
        st.markdown("**Estimate**")
        against = f" · {times_text(estimate.saving)} less than at full length" if estimate.saving > 1.005 else ""
        st.markdown(f"Training **{flops_text(estimate.flops.training)}**{against}")
        seconds = estimate.seconds
        known = (
            f"Time **{range_text((seconds.low, seconds.high))}**, from earlier runs of these models"
            if seconds
            else "Time not known yet: no earlier run of these models"
        )
        st.markdown(known)
        st.markdown(f"Memory about **{bytes_text(estimate.memory_total_bytes)}**")
        if len(set(estimate.horizons)) > 1:
            st.caption("Horizon by step")
            frame = pd.DataFrame({"step": estimate.horizon_steps, "horizon": estimate.horizons})
            st.altair_chart(charts.horizon_chart(frame), key="horizon", alt="Horizon by step, as the schedule sets it")
        else:
            of_full = f" of {document.get('max_completion_tokens', '')}" if estimate.horizons else ""
            st.caption(
                f"Every step samples and trains the first {estimate.horizons[0] if estimate.horizons else '–'}{of_full} tokens."
            )
        with st.expander("By phase and part", icon=":material/table:"):
            phases = estimate.flops.model_dump()
            full = estimate.full_length_flops.model_dump()
            shown = {
                name.replace("_", " "): (flops_text(value), flops_text(full[name]))
                for name, value in phases.items()
                if value
            }
            st.table(pd.DataFrame(shown, index=["this run", "full length"]).T)
            parts = sorted(estimate.memory_bytes.items(), key=lambda part: -part[1])
            st.table(
                pd.DataFrame([{"memory": name.replace("_", " "), "size": bytes_text(size)} for name, size in parts]),
                hide_index=True,
            )
        for assumption in estimate.assumptions:
            st.caption(notices.plain(assumption))
