"""The figures of a study: one row for each metric of each evaluation of each run, kept in one Parquet file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from backend.schemas import Evaluation

_FILE_FIELDS = ("commit", "dates")


@dataclass(frozen=True)
class Figure:
    """One metric of one evaluation."""

    arm: str
    seed: int
    spec: str
    """The fingerprint of the run's spec, see incipit/arm_study.py."""
    subject: str
    split: str
    step: int
    training_flops: float
    training_seconds: float
    machine: str
    """What trained the run: seconds of different machines are not compared."""
    key: str
    value: float


@dataclass(frozen=True)
class StudyData:
    """All figures so far, and where they are from."""

    figures: Sequence[Figure]
    commits: Sequence[str] = ()
    """Of the sittings, oldest first."""
    dates: Sequence[str] = ()

    @property
    def machines(self) -> list[str]:
        """What trained the runs, that of the most figures first."""
        return [machine for machine, _ in Counter(one.machine for one in self.figures).most_common()]

    def has(self, arm: str, seed: int, spec: str) -> bool:
        """Whether the run of that spec is there."""
        return any((one.arm, one.seed, one.spec) == (arm, seed, spec) for one in self.figures)

    def of(self, specs: Mapping[tuple[str, int], str]) -> StudyData:
        """The figures of these runs alone: those of a spec that was changed since are another study's."""
        kept = [one for one in self.figures if specs.get((one.arm, one.seed)) == one.spec]
        return StudyData(kept, self.commits, self.dates)

    def with_runs(self, added: Iterable[Figure], *, commit: str, date: str) -> StudyData:
        """With the figures of a sitting, which replace older ones of the same arm and seed."""
        new = list(added)
        replaced = {(one.arm, one.seed) for one in new}
        kept = [one for one in self.figures if (one.arm, one.seed) not in replaced]
        return StudyData([*kept, *new], _once(self.commits, commit), _once(self.dates, date))


def figures_of(arm: str, seed: int, spec: str, machine: str, evaluations: Sequence[Evaluation]) -> list[Figure]:
    """What a run that has succeeded on that machine has measured."""
    return [
        Figure(
            arm,
            seed,
            spec,
            one.subject,
            one.split,
            one.step,
            one.training_flops,
            one.training_seconds,
            machine,
            key,
            float(value),
        )
        for one in evaluations
        for key, value in one.metrics.items()
        if value is not None
    ]


def read_data(path: Path) -> StudyData:
    """The figures in a file; none where there is none yet. ValueError with a sentence when it is damaged."""
    if not path.exists():
        return StudyData([])
    try:
        table = pq.read_table(path)
        columns = [table.column(field.name).to_pylist() for field in fields(Figure)]
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a study's figures ({str(error)[:200]}); remove it and train again."
        ) from None
    told = table.schema.metadata or {}
    lists = {
        name: told.get(name.encode(), b"").decode().split("\n") if told.get(name.encode()) else []
        for name in _FILE_FIELDS
    }
    figures = [Figure(*row) for row in zip(*columns, strict=True)]
    return StudyData(figures, lists["commit"], lists["dates"])


def write_data(path: Path, data: StudyData) -> None:
    """Put the figures in place of what the file had."""
    rows = sorted(data.figures, key=lambda one: (one.arm, one.seed, one.subject, one.split, one.step, one.key))
    table = pa.table({field.name: [asdict(one)[field.name] for one in rows] for field in fields(Figure)})
    lists = zip(_FILE_FIELDS, (data.commits, data.dates), strict=True)
    table = table.replace_schema_metadata({name: "\n".join(values) for name, values in lists})
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".new")
    pq.write_table(table, staging, compression="zstd")
    staging.replace(path)


def _once(known: Sequence[str], new: str) -> list[str]:
    return [*(one for one in known if one != new), new]
