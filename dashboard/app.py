"""Start with `streamlit run dashboard/app.py`: page configuration, navigation and sign-in, nothing else."""

from pathlib import Path

import streamlit as st

from dashboard import alert_notices, cached, notices, sign_in

# A file, not an emoji or a Material icon: browsers would fetch those from the internet.
_ICON = str(Path(__file__).parent / "incipit.svg")

st.set_page_config(
    page_title="Incipit", page_icon=_ICON, layout="wide"
)  # before the navigation, which would take the icon of a page
st.logo(_ICON)
st.html("<style>.stMainBlockContainer { padding-top: 4.5rem }</style>")  # Streamlit leaves 6rem, for a bar half as high
page = st.navigation(
    [
        st.Page("views/home.py", title="Home", icon=":material/home:", default=True),
        st.Page("views/new_run.py", title="New run", icon=":material/add_circle:", url_path="new"),
        st.Page("views/runs.py", title="Runs", icon=":material/list:", url_path="runs"),
        st.Page("views/run.py", title="Run", icon=":material/monitoring:", url_path="run", visibility="hidden"),
        st.Page("views/inspect.py", title="Inspect", icon=":material/manage_search:", url_path="inspect"),
        st.Page("views/compare.py", title="Compare", icon=":material/compare_arrows:", url_path="compare"),
        st.Page("views/analyses.py", title="Analyses", icon=":material/biotech:", url_path="analyses"),
        st.Page("views/playground.py", title="Playground", icon=":material/forum:", url_path="playground"),
        st.Page("views/checkpoints.py", title="Checkpoints", icon=":material/save:", url_path="checkpoints"),
        st.Page("views/alerts.py", title="Alerts", icon=":material/notifications:", url_path="alerts"),
        st.Page("views/system.py", title="System", icon=":material/dns:", url_path="system"),
        st.Page("views/help.py", title="Help", icon=":material/help:", url_path="help"),
    ],
    position="top",  # the token lens and the tables need the width that a sidebar would take
)
if sign_in.credential() is None:
    sign_in.ask()
else:
    st.set_page_config(page_title=f"{page.title} · Incipit")
    if not sign_in.is_local():
        with st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center"):
            with notices.problems_shown():
                me = cached.me(cached.api())
            st.caption(notices.plain(f"{me.role} · {'all projects' if me.project_id == '*' else me.project_id}"))
            st.button("Sign out", icon=":material/logout:", type="tertiary", key="sign-out", on_click=sign_in.sign_out)
    alert_notices.toasts(cached.api())
    page.run()
