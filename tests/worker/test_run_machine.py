"""Any order of what people, workers, the control process and bad luck do to runs, and what must hold after each step.

I1 one holder at most, I2 fences only rise, I3 who lost a run writes nothing, I4 what has ended stays ended until a person
retries it, I5 every wanted queued run is claimed when somebody asks, I6 the history has no gaps and tells the state, I7 each
step up to the last is recorded once, by the last attempt that took it, I8 every checkpoint in the list is whole.
"""

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select, update

from backend.database import Database
from backend.folder_store import FolderStore
from backend.queries.claims import Claim, Ending, LeaseLost, claim_run, end_attempt, reap, renew_lease
from backend.queries.transitions import TransitionRejected, transition
from backend.queries.wishes import (
    WishRefused,
    ask_to_cancel,
    ask_to_pause,
    ask_to_resume,
    ask_to_retry,
    settle_queued,
    wish_of,
)
from backend.records import Event
from backend.run_states import ENDED_STATES, HELD_STATES, RunState
from backend.tables import Experiment, Run
from engine.events import RunEvent
from tests.faults.promises import checkpoints_broken, steps_broken
from tests.worker.runs import queue_runs, short_spec, write_events
from tests.worker.sample_events import checkpoint_event, start_events, step_event
from worker.recorder import Recorder
from worker.resume import resume_checkpoint

_PAST = datetime(2020, 1, 1, tzinfo=UTC)
_ENDINGS = st.sampled_from(
    [
        Ending("succeeded", "Finished."),
        Ending("failed", "It failed.", failure_kind="nan_loss", failure_message="It failed."),
        Ending("queued", "It crashed."),
        Ending("queued", "The worker shuts down.", counts=False),
        Ending("paused", "Paused as asked.", counts=False),
        Ending("cancelled", "Cancelled as asked."),
    ]
)
_SPEC = short_spec()


class Runs(RuleBasedStateMachine):
    """Runs in a real database. `open_database` is set by the test."""

    open_database: Callable[[], Database]
    runs: Bundle[str] = Bundle("runs")
    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.database = type(self).open_database()
        with self.database.write() as session:
            session.execute(delete(Experiment))
        self.fences: dict[str, int] = {}
        self.ended: dict[str, RunState] = {}
        self.lost: set[tuple[str, int]] = set()
        self.folder = tempfile.TemporaryDirectory(prefix="incipit-machine-")
        self.run_dir = Path(self.folder.name)
        self.recorders: dict[tuple[str, int], Recorder] = {}
        self.steps: dict[tuple[str, int], int] = {}

    def teardown(self) -> None:
        """I5: after all that, whoever asks for work gets every run that is wanted."""
        with self.database.write() as session:
            settle_queued(session)
            session.execute(update(Run).where(Run.state == "queued").values(not_before=None))
        with self.database.write() as session:
            wanted = set(session.scalars(select(Run.id).where(Run.state == "queued")))
        found = set()
        while (claimed := self._claim("last worker")) is not None:
            found.add(claimed.run_id)
        assert found == wanted
        self.database.close()
        self.folder.cleanup()

    @initialize(target=runs)
    def first(self) -> str:
        return self.submit()

    @rule(target=runs)
    def submit(self) -> str:
        (run_id,) = queue_runs(self.database, _SPEC)
        return run_id

    @rule(target=claims, worker=st.sampled_from(["a", "b"]))
    def claim(self, worker: str) -> Any:
        claimed = self._claim(worker)
        return claimed if claimed is not None else multiple()

    @rule(target=claims, run_id=runs)
    def usurp(self, run_id: str) -> Any:
        """A holder is lost and the next worker comes at once: the lost one may still act afterwards."""
        self.expire(run_id)
        self.turn_of_control("nobody")
        self.come_due(run_id)
        return self.claim("usurper")

    @rule(claimed=claims)
    def get_ready(self, claimed: Claim) -> None:
        self._as_holder(claimed, self._writing(lambda session: self._move(session, claimed, "running")))

    @rule(claimed=claims)
    def obey(self, claimed: Claim) -> None:
        """The supervisor reads the wish and tells its engine to stop."""

        def act(session: Any) -> None:
            wish = wish_of(session, claimed.run_id)
            if wish != "run":
                self._move(session, claimed, "pausing" if wish == "pause" else "cancelling")

        self._as_holder(claimed, self._writing(act))

    @rule(claimed=claims)
    def renew(self, claimed: Claim) -> None:
        self._as_holder(claimed, self._writing(lambda session: renew_lease(session, claimed.run_id, claimed.fence)))

    @rule(claimed=claims, num_steps=st.integers(1, 3), saves=st.booleans(), is_recorded=st.booleans())
    def train(self, claimed: Claim, num_steps: int, saves: bool, is_recorded: bool) -> None:
        """The attempt's engine takes steps and tells its journal, also when its supervisor lives no more to record it."""
        attempt, events = (claimed.run_id, claimed.fence), list[RunEvent]()
        folder = self.run_dir / claimed.run_id
        if attempt not in self.recorders:
            recorder = Recorder(self.database, claimed, folder)
            try:
                recorder.catch_up()
                start = resume_checkpoint(self.database, claimed, FolderStore(folder.parent), lambda: None)
            except LeaseLost:
                return
            self.recorders[attempt] = recorder
            self.steps[attempt] = 0 if start is None else int(start.name.removeprefix("step-"))
            events += start_events(claimed.fence, self.steps[attempt])
        events += [step_event(self.steps[attempt] + 1 + number) for number in range(num_steps)]
        self.steps[attempt] += num_steps
        if saves:
            events.append(checkpoint_event(folder, claimed.fence, self.steps[attempt], spec=_SPEC))
        write_events(folder, claimed.fence, events)
        if is_recorded:
            self._as_holder(claimed, self.recorders[attempt].advance)

    @rule(claimed=claims, ending=_ENDINGS)
    def end(self, claimed: Claim, ending: Ending) -> None:
        def act() -> None:
            """As a supervisor does: all that the engine has emitted is recorded first."""
            recorder = self.recorders.get((claimed.run_id, claimed.fence))
            while recorder is not None and recorder.advance():
                pass
            with self.database.write() as session:
                end_attempt(session, claimed, ending)

        if self._as_holder(claimed, act):
            self.lost.add((claimed.run_id, claimed.fence))

    @rule(run_id=runs)
    def expire(self, run_id: str) -> None:
        with self.database.write() as session:
            session.execute(update(Run).where(Run.id == run_id).values(lease_until=_PAST))

    @rule(run_id=runs)
    def come_due(self, run_id: str) -> None:
        with self.database.write() as session:
            session.execute(update(Run).where(Run.id == run_id).values(not_before=None))

    @rule(dead=st.sampled_from(["a", "b", "nobody"]))
    def turn_of_control(self, dead: str) -> None:
        with self.database.write() as session:
            held = {row.id: row.fence for row in session.execute(select(Run.id, Run.fence))}
            taken = reap(session, lambda owner: owner == dead)
            settle_queued(session)
        self.lost |= {(run_id, held[run_id]) for run_id in taken}

    @rule(
        run_id=runs, wish=st.sampled_from(["cancel", "cancel_with_checkpoint", "pause", "resume", "retry", "scratch"])
    )
    def wish(self, run_id: str, wish: str) -> None:
        ask: dict[str, Callable[[Any], None]] = {
            "cancel": lambda session: ask_to_cancel(session, run_id, checkpoint=False),
            "cancel_with_checkpoint": lambda session: ask_to_cancel(session, run_id, checkpoint=True),
            "pause": lambda session: ask_to_pause(session, run_id),
            "resume": lambda session: ask_to_resume(session, run_id),
            "retry": lambda session: ask_to_retry(session, run_id, from_scratch=False),
            "scratch": lambda session: ask_to_retry(session, run_id, from_scratch=True),
        }
        try:
            with self.database.write() as session:
                ask[wish](session)
        except WishRefused:
            return
        if wish in ("retry", "scratch"):
            self.ended.pop(run_id, None)

    @invariant()
    def holds(self) -> None:
        with self.database.read() as session:
            runs = session.scalars(select(Run)).all()
            events: dict[str, list[Event]] = {run.id: [] for run in runs}
            for event in session.scalars(select(Event).order_by(Event.run_id, Event.seq)):
                events[event.run_id].append(event)
        for run in runs:
            assert run.fence >= self.fences.get(run.id, 0)  # I2
            self.fences[run.id] = run.fence
            assert (run.state in HELD_STATES) == (run.lease_owner is not None)  # I1
            if run.state in HELD_STATES:
                assert (
                    run.id,
                    run.fence,
                ) not in self.lost  # I1: its holder is none of those who let go or were dropped
            if run.id in self.ended:
                assert run.state == self.ended[run.id]  # I4
            if run.state in ENDED_STATES:
                self.ended[run.id] = run.state  # type: ignore[assignment]
            history = events[run.id]
            assert [event.seq for event in history] == list(range(1, len(history) + 1))  # I6
            moves = [event for event in history if event.kind == "state"]
            assert moves[-1].payload["state"] == run.state
        with self.database.read() as session:
            for run in runs:
                assert steps_broken(session, run) == []  # I7
                assert checkpoints_broken(session, run, self.run_dir) == []  # I8

    def _claim(self, worker: str) -> Claim | None:
        with self.database.write() as session:
            claimed = claim_run(session, owner=worker, host="here", boot_id="")
        if claimed is not None:
            assert claimed.fence > self.fences.get(claimed.run_id, 0)  # I2
        return claimed

    def _writing(self, act: Callable[[Any], None]) -> Callable[[], None]:
        def in_a_session() -> None:
            with self.database.write() as session:
                act(session)

        return in_a_session

    def _as_holder(self, claimed: Claim, act: Callable[[], object]) -> bool:
        """Do something with a claim; I3: whoever lost it changes nothing."""
        with self.database.read() as session:
            before = session.get_one(Run, claimed.run_id)
        is_holder = before.fence == claimed.fence and before.state in HELD_STATES
        try:
            act()
            done = True
        except (LeaseLost, TransitionRejected):
            done = False
        if not is_holder:
            with self.database.read() as session:
                after = session.get_one(Run, claimed.run_id)
            for column in ("state", "fence", "last_step", "lease_owner", "row_version"):
                assert getattr(after, column) == getattr(before, column)
        return done and is_holder

    @staticmethod
    def _move(session: Any, claimed: Claim, to: RunState) -> None:
        transition(session, claimed.run_id, to, actor="holder", reason="", fence=claimed.fence)


def test_no_order_of_events_breaks_a_promise(database_url: str) -> None:
    class Opened(Runs):
        open_database = staticmethod(lambda: Database(database_url))

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Opened,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
