"""Prompts as student and teacher see them, side by side, with the tokens that differ marked."""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import streamlit as st

from dashboard import notices

_SHA256 = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")
_TITLES = ("Student (both models are given this)", "Teacher's own")


def show(previews: Sequence[Mapping[str, Any]]) -> None:
    """One prompt under the other, of the fields of engine.prompt_preview.PromptPreview."""
    for preview in previews:
        student, teacher = preview["student"], preview["teacher"]
        differing = differing_tokens(student, teacher) if teacher else ([False] * len(student), [])
        count = max(map(sum, differing))
        told = "the same tokens" if not count else f"{count} token{' differs' if count == 1 else 's differ'}, marked"
        place = _SHA256.sub(r"\1…", preview["place"])
        st.caption(notices.plain(f"{place} · {told if teacher else 'only the student'}"))
        for title, tokens, marks, column in zip(_TITLES, (student, teacher), differing, st.columns(2), strict=True):
            with column:
                st.caption(title)
                st.markdown(marked(tokens, marks) if tokens else notices.plain(f"({preview['problem']})"))


def differing_tokens(student: Sequence[str], teacher: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """For each token of both, whether the other one lacks it at this place."""
    mine, theirs = [True] * len(student), [True] * len(teacher)
    for block in SequenceMatcher(None, student, teacher, autojunk=False).get_matching_blocks():
        mine[block.a : block.a + block.size] = theirs[block.b : block.b + block.size] = [False] * block.size
    return mine, theirs


def marked(tokens: Sequence[str], marks: Sequence[bool]) -> str:
    """Tokens as markdown in which nothing of theirs is a sign; the marked ones have a coloured ground."""
    # Tokens that carry their spaces join as they are; whole words need one in between.
    gap = "" if any(token[:1].isspace() for token in tokens) else " "
    return gap.join(
        _marked(token) if is_marked else _line(notices.plain(token))
        for token, is_marked in zip(tokens, marks, strict=True)
    )


def _marked(token: str) -> str:
    shown = notices.plain(token).replace("\n", "⏎").replace("\t", "⇥")
    return f":orange-background[{shown if shown.strip() else '␣' * max(1, len(shown))}]"


def _line(text: str) -> str:
    return text.replace("\n", "⏎  \n")
