"""Where two answers part, and how they differ from there on. No Streamlit in here."""

import re
import string
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher

MAX_WORDS = 2000  # of each text: matching words takes the square of their number
_WORDS_BEFORE = 8  # enough to find the place again
_WORD = re.compile(r"\n|\S+")
_ESCAPED = str.maketrans({mark: f"\\{mark}" for mark in string.punctuation})
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def num_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading token ids two answers share."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(first), len(second)))


def word_diff(first: str, second: str) -> list[tuple[str, list[str]]]:
    """Runs of words as ("both" | "first" | "second", words), in reading order; a line break is a word, blanks are none."""
    mine, theirs = (_WORD.findall(text)[:MAX_WORDS] for text in (first, second))
    runs: list[tuple[str, list[str]]] = []
    for kind, from_mine, to_mine, from_theirs, to_theirs in SequenceMatcher(None, mine, theirs, False).get_opcodes():
        if kind == "equal":
            runs.append(("both", mine[from_mine:to_mine]))
            continue
        parts = (("first", mine[from_mine:to_mine]), ("second", theirs[from_theirs:to_theirs]))
        runs += [(whose, words) for whose, words in parts if words]
    return runs


def from_where_they_part(runs: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """The runs with but the last shared words before the first difference; none when there is no difference."""
    if not runs or runs == [("both", runs[0][1])]:
        return []
    whose, words = runs[0]
    if whose != "both" or len(words) <= _WORDS_BEFORE:
        return runs
    return [("both", ["…", *words[-_WORDS_BEFORE:]]), *runs[1:]]


def diff_markdown(runs: Sequence[tuple[str, list[str]]]) -> str:
    """The runs as Streamlit markdown: struck out on orange is only in the first, bold on violet only in the second."""
    return "".join(_marked(whose, words) for whose, words in runs).strip()


def _marked(whose: str, words: list[str]) -> str:
    before, after = {
        "both": ("", ""),
        "first": (":orange-background[~~", "~~]"),
        "second": (":violet-background[**", "**]"),
    }[whose]
    text = ""
    for line, is_break in _lines(words):
        text += f"{before}{line}{after} " if line else ""
        # A line break is shown where it differs: otherwise nobody could see that it does.
        text += ("" if whose == "both" else f"{before}⏎{after}") + "  \n" if is_break else ""
    return text


def _lines(words: list[str]) -> list[tuple[str, bool]]:
    """Words between line breaks, each escaped, and whether a break follows."""
    lines: list[tuple[str, bool]] = []
    line: list[str] = []
    for word in words:
        if word == "\n":
            lines.append((" ".join(line), True))
            line = []
        else:
            line.append(literal(word))
    return [*lines, (" ".join(line), False)]


def literal(text: str) -> str:
    """Text of a model that markdown shows as it is: every sign escaped, what turns or moves text replaced."""
    harmless = "".join("�" if one in _BIDI or unicodedata.category(one) == "Cc" else one for one in text)
    return harmless.translate(_ESCAPED)
