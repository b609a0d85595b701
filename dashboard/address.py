"""What a view shows, kept in its URL, so that an address can be sent to a colleague."""

from collections.abc import Sequence

import streamlit as st


def asked(name: str) -> str | None:
    """The value of a query parameter; None when it is missing or empty."""
    return st.query_params.get(name) or None


def asked_whole(name: str) -> int | None:
    """A query parameter that is a whole number >= 0; anything else counts as missing."""
    value = asked(name)
    return int(value) if value is not None and value.isascii() and value.isdigit() else None


def asked_index(name: str, options: Sequence[object], default: int | None = 0) -> int | None:
    """Place of a query parameter's value among `options`, which are compared as text."""
    texts = [str(option) for option in options]
    value = asked(name)
    return texts.index(value) if value in texts else default if options else None


def keep(name: str, value: object | None) -> None:
    """Writes a query parameter, only when it changes: every write is a message to the browser."""
    text = None if value is None else str(value)
    if asked(name) == text:
        return
    if text is None:
        st.query_params.pop(name, None)
    else:
        st.query_params[name] = text
