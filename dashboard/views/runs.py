"""All runs, with filters. Choose one to open it, several to compare them."""

import hashlib

import streamlit as st

from backend.schemas import RunSummary
from dashboard import cached, notices, run_search, waiting
from dashboard.frames import accuracy_of, runs_frame
from dashboard.quantities import age_text, flops_text

_PER_PAGE = 25
_MAX_COMPARED = 10


def as_table(shown: list[RunSummary]) -> None:
    # The browser keeps ticks by their place in the table: other runs make it another table, without any.
    rows = hashlib.sha256(",".join(run.id for run in shown).encode()).hexdigest()[:16]
    event = st.dataframe(
        runs_frame(shown),
        hide_index=True,
        key=f"runs-table-{rows}",
        on_select="rerun",
        selection_mode="multi-row",
        column_order=[
            "name",
            "state",
            "accuracy",
            "prefix",
            "progress",
            "training",
            "time",
            "experiment",
            "seed",
            "created",
        ],
        column_config={
            "name": st.column_config.TextColumn("Run", width="medium"),
            "state": "State",
            "accuracy": st.column_config.NumberColumn(
                "Accuracy", format="%.3f", help="Reported accuracy, or the best on dev so far"
            ),
            "prefix": "Prefix",
            "progress": st.column_config.ProgressColumn(
                "Progress", format="%.0f %%", min_value=0, max_value=100, width="small"
            ),
            "training": st.column_config.NumberColumn(
                "Training (GFLOP)", format="%.4g", help="Training FLOPs, evaluation not counted"
            ),
            "time": st.column_config.NumberColumn("Time (s)", format="%.4g"),
            "experiment": st.column_config.TextColumn("Experiment", width="medium"),
            "seed": st.column_config.NumberColumn("Seed", width="small"),
            "created": st.column_config.DatetimeColumn("Created", format="distance"),
        },
        placeholder=notices.NOTHING,
        alt="Runs with state, accuracy, prefix and cost; the list view holds the same as text",
    )
    chosen = [shown[row] for row in event["selection"]["rows"] if row < len(shown)]
    with st.container(horizontal=True, vertical_alignment="center"):
        if not chosen:
            st.caption("Tick a row to open it; tick several to compare them.")
        elif len(chosen) == 1:
            st.page_link(
                "views/run.py",
                label=f"Open {notices.plain(chosen[0].name)}",
                icon=":material/monitoring:",
                query_params={"id": chosen[0].id},
            )
            st.page_link(
                "views/inspect.py", label="Inspect", icon=":material/manage_search:", query_params={"run": chosen[0].id}
            )
        elif len(chosen) <= _MAX_COMPARED:
            ids = ",".join(run.id for run in chosen)
            st.page_link(
                "views/compare.py",
                label=f"Compare {len(chosen)} runs",
                icon=":material/compare_arrows:",
                query_params={"runs": ids},
            )
        else:
            st.caption(f"{len(chosen)} runs are chosen; at most {_MAX_COMPARED} can be compared at once.")


def as_list(shown: list[RunSummary]) -> None:
    for run in shown:
        with st.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.page_link("views/run.py", label=f"**{notices.plain(run.name)}**", query_params={"id": run.id})
                notices.state_badge(run.state)
            st.caption(
                notices.plain(
                    f"accuracy {accuracy_of(run)} · prefix {run.prefix} · {flops_text(run.training_flops)} · "
                    f"step {run.step:,} of {run.num_steps:,} · {run.experiment_name} · {age_text(run.created_at)}"
                )
            )


st.title("Runs", anchor=False)
client = cached.api()
with notices.problems_shown():
    runs = cached.runs(client)
if not runs:
    notices.empty("No runs yet", "Start one, or type `make demo` in a terminal.")
    st.page_link("views/new_run.py", label="New run", icon=":material/add_circle:")
    st.stop()

with st.container(horizontal=True, vertical_alignment="bottom"):
    text = st.text_input(
        "Search", placeholder="prefix 8 acc>0.9", key="q", bind="query-params", width=280, help=run_search.HELP
    )
    states = st.multiselect("State", list(notices.STATE_LOOKS), key="state", bind="query-params", width=240)
    experiment = st.selectbox(  # by name, as addresses have it: those of one name are shown together
        "Experiment", list(dict.fromkeys(run.experiment_name for run in runs)), index=None, key="experiment",
        bind="query-params", width=240, placeholder="all",
    )  # fmt: skip
    view = st.segmented_control(
        "View", ["table", "list"], default="table", required=True, key="layout", bind="query-params"
    )

if states and cached.is_cut(runs):  # further back than the list of all goes
    with notices.problems_shown():
        runs = cached.runs(client, sorted(states))
among = f"{'the newest ' if cached.is_cut(runs) else ''}{len(runs):,}"
try:
    shown = run_search.found(runs, text or "")
except ValueError as error:
    st.error(notices.plain(str(error)), icon=":material/error:")
    st.stop()
shown = [
    run
    for run in shown
    if (not states or run.state in states) and (experiment is None or run.experiment_name == experiment)
]
if not shown:
    notices.empty(
        f"No run matches among {among}" if cached.is_cut(runs) else "No run matches",
        "Loosen the search, the state or the experiment above.",
        ":material/filter_alt_off:",
    )
    st.stop()
older = "; choose a state to see older ones" if cached.is_cut(runs) and not states else ""
st.caption(f"{len(shown):,} of {among} runs, newest first{older}")
waiting.notices_of(shown)
num_pages = -(-len(shown) // _PER_PAGE)
page = st.pagination(num_pages, key="page", bind="query-params") if num_pages > 1 else 1
(as_list if view == "list" else as_table)(shown[(page - 1) * _PER_PAGE : page * _PER_PAGE])
