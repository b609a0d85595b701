"""Whose run comes next: any order of submissions, claims and endings against the rule in Python, on both databases.

The rule: the most urgent first; of equally urgent runs those of the project with the fewest at work, then of the one that was served
longest ago; inside it the same of its people; of one person's runs the oldest.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import delete

from backend.access import Principal
from backend.database import Database
from backend.expansion import PlannedRun
from backend.queries.claims import Claim, Ending, claim_run, end_attempt
from backend.queries.experiments import create_experiment
from backend.queries.runs import run
from backend.queries.wishes import set_priority
from backend.tables import Experiment
from tests.worker.runs import short_spec

Owner = tuple[str, str]
_OWNERS = st.tuples(st.sampled_from(["lab", "shop"]), st.sampled_from(["ada", "bob"]))
_SPEC = short_spec()
_DONE = Ending("succeeded", "Finished.")
_BACK = Ending("queued", "The worker shuts down.", counts=False)


def submit(database: Database, owner: Owner, number: int = 1) -> list[str]:
    """Runs of somebody in a project; their ids, oldest first."""
    project, user = owner
    planned = [PlannedRun(variant="", note="", spec=_SPEC)] * number
    with database.write() as session:
        principal = Principal(id=user, role="operator", project_id=project)
        return create_experiment(session, "q", "", planned, owner=principal)[1]


def claimed(database: Database) -> Claim | None:
    with database.write() as session:
        return claim_run(session, owner="w", host="here", boot_id="")


def end(database: Database, claim: Claim, ending: Ending = _DONE) -> None:
    with database.write() as session:
        end_attempt(session, claim, ending)


class Turns(RuleBasedStateMachine):
    """A queue in a real database beside its model. `open_database` is set by the test."""

    open_database: Callable[[], Database]

    def __init__(self) -> None:
        super().__init__()
        self.database = type(self).open_database()
        with self.database.write() as session:
            session.execute(delete(Experiment))
        self.owner_of: dict[str, Owner] = {}
        self.queued: dict[str, int] = {}  # by id: priority
        self.held: dict[str, Claim] = {}
        self.served: list[Owner] = []

    def teardown(self) -> None:
        """Everybody who waits is served."""
        while self.queued:
            self.claim()
        self.database.close()

    @initialize()
    def begin(self) -> None:
        self.submit(("lab", "ada"), 2)

    @rule(owner=_OWNERS, number=st.integers(1, 3))
    def submit(self, owner: Owner, number: int) -> None:
        for run_id in submit(self.database, owner, number):
            self.owner_of[run_id], self.queued[run_id] = owner, 0

    @rule(data=st.data(), priority=st.integers(0, 1))
    def hurry(self, data: st.DataObject, priority: int) -> None:
        if self.queued:
            run_id = data.draw(st.sampled_from(sorted(self.queued)))
            with self.database.write() as session:
                set_priority(session, run_id, priority)
            self.queued[run_id] = priority

    @rule()
    def claim(self) -> None:
        expected = self._next()
        found = claimed(self.database)
        assert (found and found.run_id) == expected
        if found is not None:
            assert found.run_id not in self.held, "claimed twice"
            del self.queued[found.run_id]
            self.held[found.run_id] = found
            self.served.append(self.owner_of[found.run_id])

    @rule(data=st.data(), ending=st.sampled_from([_DONE, _BACK]))
    def end(self, data: st.DataObject, ending: Ending) -> None:
        if self.held:
            run_id = data.draw(st.sampled_from(sorted(self.held)))
            end(self.database, self.held.pop(run_id), ending)
            if ending is _BACK:
                self.queued[run_id] = 0
                with self.database.write() as session:
                    set_priority(session, run_id, 0)

    def _next(self) -> str | None:
        if not self.queued:
            return None
        most = max(self.queued.values())
        at_work = Counter(self.owner_of[run_id] for run_id in self.held)
        of_project = Counter(self.owner_of[run_id][0] for run_id in self.held)
        last = {owner: number for number, owner in enumerate(self.served)}
        last_of_project = {project: number for number, (project, _) in enumerate(self.served)}

        def place(run_id: str) -> tuple[int | str, ...]:
            owner = self.owner_of[run_id]
            project = (of_project[owner[0]], last_of_project.get(owner[0], -1))
            return (*project, at_work[owner], last.get(owner, -1), run_id)

        return min((run_id for run_id, priority in self.queued.items() if priority == most), key=place)


def test_the_claim_follows_the_rule_and_serves_everybody(database_url: str) -> None:
    class Opened(Turns):
        open_database = staticmethod(lambda: Database(database_url))

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Opened,
        settings=settings(
            max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_with_one_slot_everybody_has_a_turn_before_anybody_has_two(database: Database) -> None:
    owners = [("lab", "ada"), ("lab", "bob"), ("shop", "cleo")]
    owner_of = {run_id: owner for owner in owners for run_id in submit(database, owner, 6)}
    order = []
    for _ in range(8):
        found = claimed(database)
        assert found is not None
        order.append(owner_of[found.run_id])
        end(database, found)
    projects = [project for project, _ in order]
    assert all(first != second for first, second in itertools.pairwise(projects)), "the two projects take turns"
    inside = [user for project, user in order if project == "lab"]
    assert all(first != second for first, second in itertools.pairwise(inside)), "and so do the people in one"


def test_free_slots_are_shared_and_a_late_comer_gets_the_next_one(database: Database) -> None:
    owner_of = dict.fromkeys(submit(database, ("lab", "ada"), 12), "ada")
    held = [claimed(database) for _ in range(4)]
    owner_of |= dict.fromkeys(submit(database, ("shop", "bob"), 12), "bob")
    for _ in range(4):
        assert held[0] is not None
        end(database, held.pop(0))
        held.append(claimed(database))
    assert Counter(owner_of[one.run_id] for one in held if one) == {"ada": 2, "bob": 2}


def test_the_place_in_the_queue_counts_turns(database: Database) -> None:
    first, second, third = submit(database, ("lab", "ada"), 3)
    (late,) = submit(database, ("shop", "bob"))
    with database.read() as session:
        pages = [run(session, id) for id in (first, late, second, third)]
    assert [page and page.queue_position for page in pages] == [1, 2, 3, 4]


def test_many_claimers_at_once_take_each_run_once_and_keep_the_shares_equal(
    database_url: str, database: Database
) -> None:
    owners = [("lab", "ada"), ("lab", "bob"), ("shop", "cleo"), ("shop", "dan")]
    owner_of = {run_id: owner for owner in owners for run_id in submit(database, owner, 6)}

    def work(_: int) -> list[str]:
        own, won = Database(database_url), list[str]()
        while len(won) < 2 and (found := claimed(own)) is not None:
            won.append(found.run_id)
        own.close()
        return won

    with ThreadPoolExecutor(8) as pool:
        won = [run_id for ids in pool.map(work, range(8)) for run_id in ids]
    assert len(won) == len(set(won)) == 16
    assert set(Counter(owner_of[run_id] for run_id in won).values()) == {4}, "16 claims, 4 owners, nothing ended"
