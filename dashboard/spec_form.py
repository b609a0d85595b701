"""The spec as a form, made from its JSON schema: widgets in, document out, the server's findings at their fields.

No `st.form`: fields depend on each other (another kind of prefix has other fields), and a form hides changes until it is
sent. Widgets have no limits of their own: what is wrong is said by the server, in the same words everywhere.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard import doc_pages, notices
from dashboard.spec_schema import FormField, put_at, value_at
from engine.findings import Finding

# Groups by what people think of together. A field that no group names comes last, so that new ones are not lost.
GROUPS: dict[str, tuple[str, ...]] = {
    "Models and prompts": ("name", "student", "teacher", "teacher_backend", "prompts"),
    "Prefix and divergence": (
        "max_completion_tokens", "prefix", "loss_region", "anchoring", "completions", "selection", "divergence",
        "token_weights", "merge_stop_tokens", "termination_guard",
    ),
    "Training": (
        "num_steps", "warmup_phase", "prompts_per_step", "rollouts_per_prompt", "micro_batch_rollouts", "gradient_checkpointing",
        "teacher_offload", "overlap", "rollouts", "sampling", "adapter", "optimizer", "training_flops_budget",
        "parallelism", "device", "precision",
    ),
    "Evaluation and storage": ("evaluation", "early_stopping", "sentinel", "health", "traces", "checkpoints"),
}  # fmt: skip
# Shown at once; the rest of a group waits under Advanced.
_FIRST = frozenset(
    {
        "name", "student.path", "teacher.path", "prompts.path", "prompts.template", "max_completion_tokens", "prefix", "anchoring",
        "divergence", "num_steps", "prompts_per_step", "optimizer.learning_rate", "evaluation.path", "evaluation.every_steps",
        "evaluation.scorer",
    }
)  # fmt: skip
_ELSEWHERE = frozenset({"seed"})  # asked for once, for all arms
# Where the length is chosen stands what was found of it.
_QUOTED, _STUDY, _FINDINGS = "Prefix and divergence", "prefix-vs-full", "findings"
_COLUMNS = 2
_CLEARED = frozenset({"flag", "whole", "number"})  # kinds whose widgets hold on to a value that they are drawn with


@dataclass
class DrawnForm:
    """A form on the page: the document that its widgets make, and a place for notes under each of them."""

    document: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, DeltaGenerator] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def show_notes(self, findings: Sequence[Finding], preset: Mapping[str, Any]) -> None:
        """Under each field what is wrong with it, else whether it differs from the preset."""
        by_field: dict[str, list[Finding]] = defaultdict(list)
        for finding in findings:
            by_field[self.place_of(finding)].append(finding)
        for path, note in self.notes.items():
            if by_field[path]:
                colours = {"error": "red", "warning": "orange"}
                lines = [f":{colours[one.severity]}[{notices.plain(one.message)}]" for one in by_field[path]]
                note.markdown("  \n".join(lines))
            elif preset and differs(self.document, preset, path):
                note.caption(f":blue[● changed] · preset: {notices.plain(_shown(value_at(preset, path)))}")

    def place_of(self, finding: Finding) -> str:
        """The drawn field that a finding belongs to: its own, or the nearest one above; empty for none."""
        path = finding.field
        while path and path not in self.notes:
            path = path.rpartition(".")[0]
        return path


def differs(document: Mapping[str, Any], preset: Mapping[str, Any], path: str) -> bool:
    """Whether a field was changed; of a union only its kind counts, its other fields are fields of their own."""
    mine, theirs = value_at(document, path), value_at(preset, path)
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        return bool(mine.get("kind") != theirs.get("kind"))
    return bool(mine != theirs)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return kind_label(str(value.get("kind", "")))
    return "empty" if value is None else str(value)


def draw_form(
    fields: Sequence[FormField], seed: Mapping[str, Any], preset: Mapping[str, Any], revision: int
) -> DrawnForm:
    """Draw the form, starting from the document `seed`; another `revision` starts afresh."""
    form = DrawnForm()
    by_name = {one.path: one for one in fields if one.path not in _ELSEWHERE}
    named = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "Further fields": tuple(name for name in by_name if name not in named)}
    for title, names in groups.items():
        leaves = [leaf for name in names if name in by_name for leaf in by_name[name].leaves()]
        if not leaves:
            continue
        st.header(title, anchor=False)
        if title == _QUOTED and (found := doc_pages.verdicts(_STUDY)):
            with st.expander("What our studies of the prefix's length found", icon=":material/science:"):
                st.markdown("\n".join(f"* {line}" for line in [*doc_pages.verdicts(_FINDINGS), *found]))
                st.markdown(
                    f"[The whole study]({doc_pages.address(f'studies/{_STUDY}.md')}) · "
                    f"[all studies]({doc_pages.address(f'studies/{_FINDINGS}.md')})"
                )
        _draw_columns(form, [leaf for leaf in leaves if leaf.path in _FIRST], seed, revision)
        later = [leaf for leaf in leaves if leaf.path not in _FIRST]
        if later:
            changed = sum(_is_changed(leaf, preset, f"form-{revision}-{leaf.path}") for leaf in later)
            words = (
                f"Advanced ({changed} changed)"
                if changed
                else f"Advanced: {', '.join(_label(leaf).lower() for leaf in later[:3])}…"
            )
            with st.expander(words, icon=":material/tune:", key=f"advanced-{title}-{revision}"):
                _draw_columns(form, later, seed, revision)
    return form


def _is_changed(leaf: FormField, preset: Mapping[str, Any], key: str) -> bool:
    """Whether a widget that was drawn before holds something else than the preset does."""
    if key not in st.session_state or not preset:
        return False
    if leaf.kind == "table":  # a data editor keeps its edits, not its rows
        return any(st.session_state[key].values())
    before = value_at(preset, leaf.path)
    before = before.get("kind") if isinstance(before, Mapping) else before
    before = words_of(before) if leaf.kind == "list" else before
    return (st.session_state[key] or None) != (before or None)


def _draw_columns(form: DrawnForm, leaves: Sequence[FormField], seed: Mapping[str, Any], revision: int) -> None:
    for start in range(0, len(leaves), _COLUMNS):
        for column, leaf in zip(st.columns(_COLUMNS, gap="medium"), leaves[start : start + _COLUMNS], strict=False):
            with column:
                draw_field(form, leaf, seed, f"form-{revision}")


def _label(leaf: FormField) -> str:
    """With the name of what it belongs to, where the bare word could be of several: `Student path`."""
    above = leaf.path.rpartition(".")[0].replace("_", " ").replace(".", " ")
    return (
        leaf.label
        if not above or above in ("optimizer", "analysis", "export")
        else f"{above} {leaf.label.lower()}".capitalize()
    )


def kind_label(kind: str) -> str:
    """A union member's kind in words: `reverse KL`, `every nth step`."""
    return " ".join(word.upper() if word in ("kl", "jsd", "gguf") else word for word in kind.split("_"))


def draw_field(form: DrawnForm, leaf: FormField, seed: Mapping[str, Any], key: str) -> None:
    """Draw one leaf with what `seed` holds for it; `key` tells its widget from that of another form."""
    if leaf.kind == "union":
        _draw_union(form, leaf, seed, key)
        return
    stored = value_at(seed, leaf.path)
    is_emptied = leaf.is_nullable and _is_in(seed, leaf.path)  # null was chosen, it is not missing
    given = stored if stored is not None or is_emptied else leaf.default
    value = _widget(leaf, given, f"{key}-{leaf.path}")
    if value is not None or leaf.is_nullable:
        put_at(form.document, leaf.path, value)
    form.notes[leaf.path] = st.empty()
    form.labels[leaf.path] = _label(leaf)


def _is_in(document: Mapping[str, Any], path: str) -> bool:
    above, _, last = path.rpartition(".")
    holder = value_at(document, above) if above else document
    return isinstance(holder, Mapping) and last in holder


def _draw_union(form: DrawnForm, union: FormField, seed: Mapping[str, Any], key: str) -> None:
    kinds = list(union.members)
    given = (value_at(seed, union.path) or union.default or {}).get("kind")
    kind = st.selectbox(
        _label(union), kinds, index=kinds.index(given) if given in kinds else 0, key=f"{key}-{union.path}",
        format_func=kind_label, help=_help(union),
    )  # fmt: skip
    member = union.members[kind or kinds[0]]
    st.caption(member.help)
    put_at(form.document, union.path, {"kind": kind})
    form.notes[union.path] = st.empty()
    form.labels[union.path] = _label(union)
    for inner in member.fields:
        for leaf in inner.leaves():
            # The kind is part of the key: the `tokens` of one kind are not those of another.
            draw_field(form, leaf, seed if kind == given else {}, f"{key}-{kind}")


def _widget(leaf: FormField, given: Any, key: str) -> Any:
    label, said = _label(leaf), _help(leaf)
    if leaf.is_nullable and leaf.kind in _CLEARED:
        return _cleared(leaf, given, key)
    if leaf.kind == "flag":
        return st.checkbox(label, value=bool(given), key=key, help=said)
    if leaf.kind == "list":
        return list_of(st.text_input(label, words_of(given), key=key, help=f"{said} Separate entries by commas."), leaf)
    if leaf.kind == "table":
        return _table(leaf, label, said, given or [], key)
    if leaf.kind == "choice":
        return st.selectbox(
            label, leaf.choices, index=leaf.choices.index(given) if given in leaf.choices else 0, key=key, help=said
        )
    if leaf.kind == "text":
        return (
            st.text_input(
                label, value=given or "", key=key, help=said, placeholder="empty" if leaf.is_nullable else None
            )
            or None
        )
    if leaf.kind == "whole or word":
        typed = st.text_input(label, value="" if given is None else str(given), key=key, help=said).strip()
        return _read(typed, int) if typed else None
    if leaf.kind == "whole":
        return st.number_input(label, value=None if given is None else int(given), step=1, key=key, help=said)
    return st.number_input(
        label, value=None if given is None else float(given), step=_step(given), format="%g", key=key, help=said
    )


def _cleared(leaf: FormField, given: Any, key: str) -> Any:
    """A widget that can be emptied: a browser puts a widget's own value back when it is cleared, so it is drawn without one."""
    label, said = _label(leaf), _help(leaf)
    if key not in st.session_state:
        kind = {"flag": bool, "whole": int, "number": float}[leaf.kind]
        st.session_state[key] = None if given is None else kind(given)
    if leaf.kind == "flag":
        return st.selectbox(
            label, (True, False), index=None, key=key, help=said, placeholder="empty",
            format_func=lambda value: "yes" if value else "no",
        )  # fmt: skip
    if leaf.kind == "whole":
        return st.number_input(label, value=None, step=1, key=key, help=said, placeholder="empty")
    return st.number_input(label, value=None, step=_step(given), format="%g", key=key, help=said, placeholder="empty")


def words_of(values: Any) -> str:
    """A list as a person types it: `16, 64, 256`."""
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values or ())


def list_of(text: str, leaf: FormField) -> list[Any] | None:
    """What a person typed, as a list; an entry that is no number stays text, and the server says what is wrong with it."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words and leaf.is_nullable:
        return None
    reader = {"whole": int, "number": float}.get(leaf.item.kind if leaf.item else "text", str)
    return [_read(word, reader) for word in words]


def _read(word: str, reader: Callable[[str], Any]) -> Any:
    try:
        return reader(word)
    except ValueError:
        return word


def _table(leaf: FormField, label: str, said: str, given: list[Any], key: str) -> list[dict[str, Any]]:
    """A list of small objects as rows that can be added, changed and removed."""
    st.markdown(label, help=said)
    names = {column.path.rpartition(".")[2]: column for column in leaf.fields}
    rows = pd.DataFrame(given, columns=list(names))
    edited = st.data_editor(
        rows, key=key, num_rows="dynamic", hide_index=True, width="stretch",
        column_config={
            name: st.column_config.NumberColumn(column.label, help=_help(column), step=1 if column.kind == "whole" else None)
            if column.kind in ("whole", "number") else st.column_config.TextColumn(column.label, help=_help(column))
            for name, column in names.items()
        },
    )  # fmt: skip
    records = edited.to_dict("records")
    return [{str(name): _cell(value) for name, value in row.items() if not pd.isna(value)} for row in records]


def _cell(value: Any) -> Any:
    """A number without the fraction that pandas gives whole numbers beside an empty cell."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _step(value: Any) -> float:
    """A tenth to a whole of the value's own size: 0.0001 for 0.0005."""
    return float(10 ** math.floor(math.log10(abs(value)))) if value else 0.1


def _help(leaf: FormField) -> str:
    return f"{leaf.help} ({leaf.limits})" if leaf.limits else leaf.help
