"""Why a run failed: the named cause, the last lines of its log, what to do, and forms that are filled in with what helps."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import streamlit as st

from backend.schemas import Run
from dashboard import notices
from engine.prefixes import ConstantPrefix
from engine.spec import RunSpec

ADVICE = {
    "bad_spec": "Correct the field that the message names and start again.",
    "bad_model": "Check the paths of student and teacher on the worker. *Check on a worker* in New run finds this before the start.",
    "bad_data": "Correct the line that the message names in the prompt or evaluation file.",
    "bad_checkpoint": "The checkpoint cannot be read; start a new run, or remove the damaged folder and retry.",
    "oom_host": "Halve *micro-batch rollouts* (the result stays the same), shorten the prefix, or use a worker with more memory.",
    "gpu_error": "Halve *micro-batch rollouts* if its memory ran out (the result stays the same); else look at the driver's log.",
    "nan_loss": "Lower the learning rate or raise the warm-up; bfloat16 may need float32 for very small models.",
    "server_unreachable": "Start a rollout server at one of the addresses of *rollouts*; the run goes on by itself from its last "
    "checkpoint.",
    "rank_lost": "Look at the log for what its processes said last, then try again from the last checkpoint.",
    "server_mismatch": "Start the rollout server as the message says, then try again from the last checkpoint.",
    "stalled": "See the log below for what it last did; then try again from the last checkpoint.",
    "start_timeout": "See the log below: a slow download or disk is usual. INCIPIT_START_SECONDS on the control process allows more.",
    "worker_lost": "See the worker's log and the machine's memory; then try again from the last checkpoint.",
    "engine_crashed": "The message and the log below have its last words; out of memory is usual, then fewer micro-batch rollouts help.",
    "disk_full": "Free space on the worker's disk, or keep fewer checkpoints, then start again.",
    "store_unavailable": "Mend what the message names; the run goes on by itself, and its worker stores first what it has kept.",
    "folder_unwritable": "Make the folder that the message names writable for the worker, then try again from the last checkpoint.",
    "internal": "This is a fault of Incipit or of its surroundings: the log below has the details.",
}
"""What a person can do, by the failure's kind; docs/troubleshooting.md says more of each."""
_MEMORY_KINDS = frozenset({"oom_host", "gpu_error", "engine_crashed"})
_MAX_FIXES = 3
_MAX_LOG_LINES = 5


def show(run: Run, log_lines: Sequence[tuple[str, str, str]]) -> None:
    """`log_lines` are time, kind and words of what the run has said, the newest first."""
    with st.container(border=True):
        cause, rest = notices.first_paragraph(run.failure_message or "The run failed without a message.")
        st.error(f"**{notices.plain(cause)}**", icon=":material/error:")
        if rest:
            st.code(rest, language=None, wrap_lines=True)
        kind = run.failure_kind or "internal"
        st.markdown(f"**What you can do.** {ADVICE.get(kind, ADVICE['internal'])}")
        st.caption(f"Kind: {notices.plain(kind)} · step {run.step:,} · attempt {run.attempt}")
        if log_lines:
            last = [" · ".join(line) for line in reversed(log_lines[:_MAX_LOG_LINES])]
            st.code("\n".join(last), language=None, wrap_lines=True)
        with st.container(horizontal=True):
            for label, changes in fixes(kind, run.spec):
                st.page_link(
                    "views/new_run.py", label=label, icon=":material/build:",
                    query_params={"from": run.id, "set": json.dumps(changes)},
                )  # fmt: skip
            st.page_link(
                "views/new_run.py", label="Edit and start again", icon=":material/content_copy:", query_params={"from": run.id}
            )  # fmt: skip


def fixes(kind: str, spec: RunSpec) -> list[tuple[str, dict[str, Any]]]:
    """What to press and which fields it changes, the one that costs least first; empty where no field helps."""
    return [one for _, one in zip(range(_MAX_FIXES), _fixes(kind, spec), strict=False)]


def _fixes(kind: str, spec: RunSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    if kind in _MEMORY_KINDS:
        if spec.usual_micro_batch > 1:
            half = spec.usual_micro_batch // 2
            yield f"Micro-batches of {half}", {"micro_batch_rollouts": half}
        if not spec.recomputes_blocks:
            yield "Recompute activations", {"gradient_checkpointing": "always"}
        if kind == "gpu_error" and spec.teacher_offload != "always" and not spec.shares_base:
            yield "Offload the teacher", {"teacher_offload": "always"}
        if isinstance(spec.prefix, ConstantPrefix) and spec.prefix.tokens > 1:
            yield f"A prefix of {spec.prefix.tokens // 2}", {"prefix.tokens": spec.prefix.tokens // 2}
    elif kind == "nan_loss":
        rate = float(f"{spec.optimizer.learning_rate / 3:.1g}")
        yield f"A learning rate of {rate:g}", {"optimizer.learning_rate": rate}
        if spec.precision != "float32":
            yield "Compute in float32", {"precision": "float32"}
    elif kind == "disk_full" and spec.checkpoints.keep_last > 1:
        yield "Keep only the newest checkpoint", {"checkpoints.keep_last": 1}
