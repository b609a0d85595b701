"""What a run was estimated to cost before its start, beside what it has cost so far."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from backend.schemas import Run, StoredEvent
from dashboard import cached
from dashboard.api_client import ApiClient
from dashboard.quantities import bytes_text, flops_text, range_text, seconds_text, share_text
from engine.flops import FlopLedger


def costs_frame(run: Run, estimated: Mapping[str, Any] | None, executed: FlopLedger | None) -> pd.DataFrame:
    """phase, estimate, useful, executed, share: FLOPs by phase, the training total and evaluation; None where not known.

    `estimated` is the payload of the run's `estimated` event; share is useful / estimate.
    """
    before = FlopLedger.model_validate(estimated["flops"]) if estimated else None
    columns = {"estimate": _lines(before), "useful": _lines(run.flops), "executed": _lines(executed)}
    phases = list(dict.fromkeys(phase for lines in columns.values() for phase in lines))
    order = [phase for phase in phases if phase not in _TOTALS] + [name for name in _TOTALS if name in phases]
    frame = pd.DataFrame([{"phase": p, **{name: lines.get(p) for name, lines in columns.items()}} for p in order],
                         columns=["phase", *columns])  # fmt: skip
    frame["share"] = frame["useful"] / frame["estimate"].where(frame["estimate"] > 0)
    return frame[(frame[list(columns)].fillna(0) != 0).any(axis=1)].reset_index(drop=True)


_TOTALS = ("training", "evaluation")


def _lines(ledger: FlopLedger | None) -> dict[str, float]:
    if ledger is None:
        return {}
    return ledger.by_phase() | {"training": ledger.training, "evaluation": ledger.evaluation}


def executed_of(events: Sequence[StoredEvent]) -> FlopLedger | None:
    """Executed FLOPs by phase as the newest of these evaluation events has them; None in records from before they were told."""
    for event in reversed(events):
        executed = FlopLedger.model_validate(event.payload.get("executed") or {})
        if executed.total:
            return executed
    return None


def show(client: ApiClient, run: Run) -> None:
    """Estimate beside actual: FLOPs by phase, training time, memory."""
    estimated: dict[str, Any] | None = next((one.payload for one in cached.notable(client, run, "estimated")), None)
    frame = costs_frame(run, estimated, executed_of(cached.notable(client, run, "evaluation")))
    if frame.empty:
        return
    st.markdown("**Estimate and actual**")
    shown = frame.assign(
        **{name: frame[name].map(lambda flops: flops_text(None if pd.isna(flops) else flops))
           for name in ("estimate", "useful", "executed")},
        share=frame["share"].map(lambda share: share_text(None if pd.isna(share) else share)),
    )  # fmt: skip
    st.dataframe(shown.rename(columns={"share": "useful / estimate"}), hide_index=True, key="costs")
    st.caption(
        "Useful: the tokens themselves, so far. Executed: with padding and rows that had ended, at the last evaluation. "
        "The estimate is of the whole run as it stood before its start, if no completion ends before its horizon."
    )
    if estimated is None:
        st.caption("No estimate was made before the start: the models' config.json could not be read on the worker.")
        return
    seconds = estimated.get("seconds")
    expected = range_text((seconds["low"], seconds["high"])) if seconds else "not known: no earlier run of these models"
    st.caption(f"Training time: estimate {expected}, actual {seconds_text(run.training_seconds)}.")
    peak = next((one for one in cached.metrics(client, run) if one.key == "peak_memory_bytes"), None)
    most = max((value for value in peak.values if value is not None), default=None) if peak else None
    actual = "not measured yet" if most is None else bytes_text(most)
    st.caption(
        f"Memory at the busiest moment: estimate {bytes_text(estimated['memory_total_bytes'])}, actual {actual}."
    )
