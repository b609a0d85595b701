"""Every state, actor and target of the state machine, on both databases; and that nothing else sets a state."""

import ast
from pathlib import Path
from typing import get_args

import pytest

from backend.database import Database
from backend.queries.transitions import ALLOWED, Actor, TransitionRejected, transition
from backend.records import Event
from backend.run_states import ENDED_STATES, HELD_STATES, RunState
from tests.worker.runs import queue_runs, run_row, set_columns, short_spec

_ROOT = Path(__file__).parents[2]
_STATES: tuple[RunState, ...] = get_args(RunState)
_ACTORS: tuple[Actor, ...] = get_args(Actor)

# Written from the table of the design, not from the code: who may do what.
_WANTED = {
    "person": {"queued": ["paused", "cancelled"], "paused": ["queued", "cancelled"], "failed": ["queued"],
               "cancelled": ["queued"]},
    "holder": {"queued": ["starting"],
               "starting": ["running", "pausing", "paused", "cancelling", "queued", "succeeded", "failed", "cancelled"],
               "running": ["pausing", "paused", "cancelling", "queued", "succeeded", "failed", "cancelled"],
               "pausing": ["paused", "cancelling", "queued", "succeeded", "failed", "cancelled"],
               "cancelling": ["cancelled", "succeeded", "failed"]},
    "control": {"queued": ["paused", "cancelled"],
                "starting": ["queued", "paused", "failed", "cancelled"], "running": ["queued", "paused", "failed", "cancelled"],
                "pausing": ["queued", "paused", "failed", "cancelled"], "cancelling": ["failed", "cancelled"]},
}  # fmt: skip


@pytest.mark.parametrize("actor", _ACTORS)
@pytest.mark.parametrize("state", _STATES)
def test_an_actor_moves_a_run_where_the_table_says_and_nowhere_else(
    database: Database, actor: Actor, state: RunState
) -> None:
    moved = []
    for to in _STATES:
        (run_id,) = queue_runs(database, short_spec())
        set_columns(database, run_id, state=state)
        try:
            with database.write() as session:
                transition(session, run_id, to, actor=actor, reason="A test.")
            moved.append(to)
        except TransitionRejected:
            assert run_row(database, run_id).state == state
    assert set(moved) == set(_WANTED[actor].get(state, []))


def test_succeeded_is_the_end() -> None:
    assert not [key for key, befores in ALLOWED.items() if "succeeded" in befores]


def test_a_rejected_move_leaves_no_trace(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    before = run_row(database, run_id)
    with pytest.raises(TransitionRejected, match=r"cannot become running by holder with fence 7\.$"):  # noqa: SIM117
        with database.write() as session:
            transition(session, run_id, "running", actor="holder", reason="", fence=7)
    assert run_row(database, run_id).row_version == before.row_version
    with database.read() as session:
        assert session.query(Event).where(Event.run_id == run_id).count() == 1


@pytest.mark.parametrize("state", sorted(HELD_STATES))
def test_whoever_lets_go_of_a_run_gives_its_lease_back(database: Database, state: str) -> None:
    (run_id,) = queue_runs(database, short_spec())
    set_columns(database, run_id, state=state, lease_owner="worker", fence=3)
    with database.write() as session:
        assert transition(session, run_id, "failed", actor="holder", reason="A test.", fence=3) == 3
    run = run_row(database, run_id)
    assert (run.lease_owner, run.lease_until) == (None, None)
    assert (run.finished_at is not None) == (run.state in ENDED_STATES)


def test_nothing_but_the_state_machine_sets_the_state_of_a_run() -> None:
    offenders = []
    for package in ("backend", "worker", "dashboard", "incipit"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            if path.name != "transitions.py" and "migrations" not in path.parts:
                offenders += [f"{path}:{line}" for line in _state_writes(ast.parse(path.read_text()))]
    assert offenders == []


def test_the_check_of_the_syntax_tree_finds_what_it_looks_for() -> None:
    for source in (
        "run.state = 'failed'",
        "setattr(run, 'state', 'failed')",
        "update(Run).where(Run.id == 1).values(state='failed')",
        "update(RunRow).values({'state': 'failed'})",
        "session.execute(update(Run).values(**{'state': 'failed'}))",
        "hold(session, id, fence, state='failed')",
        "columns = {'state': 'failed', 'phase': ''}; hold(session, id, fence, **columns)",
    ):
        assert _state_writes(ast.parse(source)), source
    assert not _state_writes(ast.parse("update(Preflight).values(state='done')"))


def _state_writes(tree: ast.AST) -> list[int]:
    """Lines that could set the state of a run: by attribute, by UPDATE of runs, or by columns that are handed on."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [node.lineno for target in targets if isinstance(target, ast.Attribute) and target.attr == "state"]
            if isinstance(node.value, ast.Dict) and _names_state(node.value) and _name(targets[0]) == "columns":
                found.append(node.lineno)
        elif isinstance(node, ast.Call):
            named = {keyword.arg for keyword in node.keywords}
            given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg is None)]
            dictionary = any(isinstance(one, ast.Dict) and _names_state(one) for one in given)
            if _name(node.func) == "values" and ("state" in named or dictionary) and _updates_runs(node.func):
                found.append(node.lineno)
            if _name(node.func) in ("hold", "setattr") and ("state" in named or _has_word(node, "state")):
                found.append(node.lineno)
    return found


def _names_state(node: ast.Dict) -> bool:
    return any(isinstance(key, ast.Constant) and key.value == "state" for key in node.keys)


def _has_word(node: ast.Call, word: str) -> bool:
    return any(isinstance(one, ast.Constant) and one.value == word for one in node.args)


def _updates_runs(node: ast.AST) -> bool:
    return any(
        isinstance(one, ast.Call)
        and _name(one.func) == "update"
        and one.args
        and _name(one.args[0]) in ("Run", "RunRow")
        for one in ast.walk(node)
    )


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
