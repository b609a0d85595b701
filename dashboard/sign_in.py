"""With whose credential this session asks the API. The dashboard has none of its own but the token of a local stack."""

import os

import streamlit as st

from dashboard.api_client import ApiClient
from dashboard.api_errors import ApiError, SignedOut

_DEFAULT_API_URL = "http://127.0.0.1:8000"
# In the session's memory on the server: not in the address, not in a cookie, gone when the tab is closed.
_KEY = "api-key"


def api_url() -> str:
    """Where the API is, by INCIPIT_API_URL."""
    return os.environ.get("INCIPIT_API_URL", _DEFAULT_API_URL)


def is_local() -> bool:
    """Whether this is the dashboard of a local stack, where nobody signs in."""
    return bool(os.environ.get("INCIPIT_LOCAL_TOKEN"))


def credential() -> str | None:
    """The local stack's token, else the signed-in person's token or API key; None when nobody has signed in."""
    if is_local():
        return os.environ["INCIPIT_LOCAL_TOKEN"]
    if _is_logged_in():
        tokens = st.user.tokens
        return tokens.get("access") or tokens.get("id")
    key: str | None = st.session_state.get(_KEY)
    return key


def sign_out() -> None:
    """Forget the credential of this session and all else that it holds: the next person in this tab is to see none of it."""
    st.session_state.clear()
    if _is_logged_in():
        st.logout()


def ask() -> None:
    """The sign-in page: the provider's button if one is configured for Streamlit, and a box for an API key."""
    st.title("Sign in", anchor=False)
    if _has_provider():
        if _is_logged_in():
            st.error("The provider gives this dashboard no token; set expose_tokens in [auth] of its secrets.toml.")
        st.button("Sign in with your organisation", icon=":material/login:", on_click=st.login, key="log-in")
    with st.form("sign-in", clear_on_submit=True, width=560):
        typed = st.text_input("API key", type="password", key="typed-key", autocomplete="off")
        is_sent = st.form_submit_button("Sign in", icon=":material/key:", type="primary")
    st.caption(
        "An admin makes one with `incipit keys create NAME --role operator`. It is forgotten when this tab closes."
    )
    if is_sent:
        problem = _problem_with(typed.strip())
        if problem is None:
            st.session_state[_KEY] = typed.strip()
            st.rerun()
        st.error(problem, icon=":material/key_off:")


def _problem_with(key: str) -> str | None:
    """Why a typed key cannot be used, in a sentence that does not repeat it; None when the API takes it."""
    if not key:
        return "There is no key in the box; paste one."
    if not (key.isascii() and key.isprintable()):  # no header can carry it
        return "This key is not valid; copy it again, or ask an admin for another one."
    try:
        with ApiClient(api_url(), token=key) as client:
            client.me()
    except SignedOut:
        return "This key is not valid; copy it again, or ask an admin for another one."
    except ApiError as error:
        return f"{error.message} {error.advice}"
    return None


def _has_provider() -> bool:
    return "is_logged_in" in st.user


def _is_logged_in() -> bool:
    return bool(st.user.get("is_logged_in", False))
