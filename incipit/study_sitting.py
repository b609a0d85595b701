"""One sitting of a study of arms: trains the seeds that are missing, through API and worker, within its hours."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from backend.schemas import Experiment, Run
from dashboard.api_client import ApiClient
from incipit.arm_study import ArmStudy, fingerprint
from incipit.demo_experiment import find, find_or_submit, follow
from incipit.study_data import figures_of, read_data, write_data


class Sitting:
    """The missing seeds of a study, in their order; figures are kept behind each run, so that an interrupted one loses those at work."""

    def __init__(self, study: ArmStudy, path: Path, *, commit: str, say: Callable[[str], None]) -> None:
        self.study = study
        self.path = path
        self.commit = commit
        self._say = say
        self._fingerprints = {
            (arm, seed): fingerprint(spec) for seed in study.seeds for arm, spec in study.specs(seed).items()
        }
        self.data = read_data(path).of(self._fingerprints)
        self._asked: dict[int, Experiment] = {}
        self._at_work: set[tuple[str, int]] = set()
        self._hours: list[float] = []

    def train(self, client: ApiClient, console: Console, is_alive: Callable[[], None]) -> list[Run]:
        """Train what is missing; the runs that did not succeed. Leaves seeds that would not fit into the study's hours.

        A seed is asked for when the ones before it leave a slot idle.
        """
        began = datetime.now(UTC)
        self._asked, self._at_work, self._hours = {}, set(), []
        num_slots = max(1, sum(worker.is_connected for worker in client.workers()))
        waiting = {seed: wanted for seed in self.study.seeds if (wanted := self._wanted(seed))}

        def ask() -> None:
            for seed, wanted in waiting.items():
                if seed in self._asked:
                    continue
                if len(self._at_work) >= num_slots or not self._fits(len(wanted)):
                    return
                self._ask(client, seed, wanted)

        def ended(run: Run, seed: int) -> None:
            if self._is_own(run, seed):
                self._keep(client, run, seed)
                self._at_work.discard((run.variant, seed))
                # What ended before this sitting took none of its hours.
                if run.finished_at is not None and run.finished_at >= began:
                    self._hours.append(_cpu_hours(run))
            ask()

        failed: list[Run] = []
        for seed in waiting:
            ask()
            if seed not in self._asked:
                used = f"{sum(self._hours):.1f} of {self.study.hours:g} CPU-hours are used"
                self._say(f"{used}; the next sitting goes on with seed {seed}.")
                break
            runs = follow(client, self._asked[seed], console, is_alive, partial(ended, seed=seed))
            failed += [run for run in runs if run.state != "succeeded" and self._is_own(run, seed)]
            self._at_work -= {(arm, seed) for arm in self.study.specs(seed)}
        return failed

    def _wanted(self, seed: int) -> list[str]:
        return [arm for arm in self.study.specs(seed) if self._is_missing(arm, seed)]

    def _is_missing(self, arm: str, seed: int) -> bool:
        return not self.data.has(arm, seed, self._fingerprints[arm, seed])

    def _fits(self, num_runs: int) -> bool:
        """Whether so many runs more, each as long as those that ended on average, stay within the study's hours."""
        if not self._hours:
            return not self._at_work
        mean = sum(self._hours) / len(self._hours)
        return sum(self._hours) + mean * (len(self._at_work) + num_runs) <= self.study.hours

    def _ask(self, client: ApiClient, seed: int, wanted: Sequence[str]) -> None:
        whole = self.study.experiment(seed)
        self._say(f"Seed {seed}: {len(wanted)} of {len(whole.variants)} arms to train.")
        missing = whole.model_copy(update={"variants": [one for one in whole.variants if one.name in wanted]})
        # An interrupted sitting's runs go on with the stack: those that are kept already are no reason to train the others twice.
        self._asked[seed] = find(client, whole) or find_or_submit(client, missing, self._say)
        self._at_work |= {(arm, seed) for arm in wanted}

    def _keep(self, client: ApiClient, run: Run, seed: int) -> None:
        if run.state == "succeeded":
            spec = self._fingerprints[run.variant, seed]
            figures = figures_of(run.variant, seed, spec, this_machine(), client.evaluations(run.id))
            date = datetime.now(UTC).strftime("%Y-%m-%d")
            self.data = self.data.with_runs(figures, commit=self.commit, date=date)
            write_data(self.path, self.data)

    def _is_own(self, run: Run, seed: int) -> bool:
        """Whether the study asked for it: whoever copies a run puts another one into its experiment, by any name."""
        return self._fingerprints.get((run.variant, seed)) == fingerprint(run.spec)

    @property
    def missing(self) -> int:
        """Runs that are still to be trained."""
        return sum(self._is_missing(arm, seed) for arm, seed in self._fingerprints)


def _cpu_hours(run: Run) -> float:
    """How long it had its processors."""
    if run.started_at is None or run.finished_at is None:
        return 0.0
    return (run.finished_at - run.started_at).total_seconds() / 3600 * run.spec.num_processes


def this_machine() -> str:
    """What the figures of time are of."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = "a CPU"
    return f"{os.cpu_count()} cores of {model}"
