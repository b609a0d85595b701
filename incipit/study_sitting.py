"""One sitting of a study of arms: trains the seeds that are missing, through API and worker, within its hours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from backend.schemas import Run
from dashboard.api_client import ApiClient
from engine.spec import RunSpec
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

    def train(self, client: ApiClient, console: Console, is_alive: Callable[[], None]) -> list[Run]:
        """Train what is missing; the runs that did not succeed. Stops before a seed that would not fit into the study's hours."""
        failed: list[Run] = []
        hours: list[float] = []
        num_slots = max(1, sum(worker.is_connected for worker in client.workers()))
        for seed in self.study.seeds:
            specs = self.study.specs(seed)
            if not any(self._is_missing(arm, seed) for arm in specs):
                continue
            if hours and sum(hours) + sum(hours) / len(hours) > self.study.hours:
                self._say(
                    f"{sum(hours):.1f} of {self.study.hours:g} CPU-hours are used; the next sitting goes on with seed {seed}."
                )
                break
            began = time.monotonic()
            failed += self._train_seed(client, console, is_alive, seed, specs)
            hours.append((time.monotonic() - began) / 3600 * min(num_slots, os.cpu_count() or 1))
        return failed

    def _is_missing(self, arm: str, seed: int) -> bool:
        return not self.data.has(arm, seed, self._fingerprints[arm, seed])

    def _train_seed(
        self, client: ApiClient, console: Console, is_alive: Callable[[], None], seed: int, specs: Mapping[str, RunSpec]
    ) -> list[Run]:
        whole = self.study.experiment(seed)
        wanted = [variant for variant in whole.variants if self._is_missing(variant.name, seed)]
        self._say(f"Seed {seed}: {len(wanted)} of {len(specs)} arms to train.")
        # An interrupted sitting's runs go on with the stack: those that are kept already are no reason to train the others twice.
        experiment = find(client, whole) or find_or_submit(
            client, whole.model_copy(update={"variants": wanted}), self._say
        )

        def keep(run: Run) -> None:
            if run.state == "succeeded" and self._is_own(run, seed):
                spec = self._fingerprints[run.variant, seed]
                figures = figures_of(run.variant, seed, spec, this_machine(), client.evaluations(run.id))
                date = datetime.now(UTC).strftime("%Y-%m-%d")
                self.data = self.data.with_runs(figures, commit=self.commit, date=date)
                write_data(self.path, self.data)

        runs = follow(client, experiment, console, is_alive, keep)
        return [run for run in runs if run.state != "succeeded" and self._is_own(run, seed)]

    def _is_own(self, run: Run, seed: int) -> bool:
        """Whether the study asked for it: whoever copies a run puts another one into its experiment, by any name."""
        return self._fingerprints.get((run.variant, seed)) == fingerprint(run.spec)

    @property
    def missing(self) -> int:
        """Runs that are still to be trained."""
        return sum(self._is_missing(arm, seed) for arm, seed in self._fingerprints)


def this_machine() -> str:
    """What the figures of time are of."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = "a CPU"
    return f"{os.cpu_count()} cores of {model}"
