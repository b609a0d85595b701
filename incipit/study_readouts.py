"""What a study's figures say of two arms: at equal steps, FLOPs or time, over seeds, and what it cost to get somewhere. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from engine.seed_statistics import mean_interval
from incipit.arm_study import Reading
from incipit.study_data import Figure, StudyData


@dataclass(frozen=True)
class Point:
    """An evaluation of a run's student, or of the untrained one at step 0."""

    step: int
    flops: float
    seconds: float
    machine: str
    value: float

    def at(self, reading: Reading) -> float:
        return {"steps": float(self.step), "flops": self.flops, "time": self.seconds}[reading]


@dataclass(frozen=True)
class Paired:
    """The difference of two arms, the first less the second, over the seeds that both have."""

    seeds: list[int]
    differences: list[float]
    mean: float
    interval: tuple[float, float] | None
    """95 %, Student's t over seeds; None with fewer than two."""
    p_value: float
    """Two-sided, exact: how often flipping the signs of the differences makes as large a mean."""
    bounds: tuple[list[float], list[float]] | None = None
    """The least and the greatest that the differences can be, by seed, where a run is read between its start and its first
    evaluation: it lies between the two values there unless it turns in between. None where all is read behind that."""


def curve(data: StudyData, arm: str, seed: int, key: str) -> list[Point]:
    """The student's dev evaluations of a run, the untrained student first, by step."""
    found: dict[int, Figure] = {}
    for one in data.figures:
        is_mine = (one.arm, one.seed, one.key, one.split) == (arm, seed, key, "dev")
        if is_mine and one.subject in ("student", "base") and (one.subject == "student" or one.step not in found):
            found[one.step] = one
    return [
        Point(step, one.training_flops, one.training_seconds, one.machine, one.value)
        for step, one in sorted(found.items())
    ]


def curves(data: StudyData, arm: str, seeds: Sequence[int], key: str) -> list[list[Point]]:
    """Those of the arm's runs that have been trained."""
    return [points for seed in seeds if (points := curve(data, arm, seed, key))]


def value_at(points: Sequence[Point], reading: Reading, where: float) -> float | None:
    """The value there, between two evaluations on a line between them; None before the first or behind the last."""
    if not points or not points[0].at(reading) <= where <= points[-1].at(reading):
        return None
    for before, behind in itertools.pairwise(points):
        low, high = before.at(reading), behind.at(reading)
        if low <= where <= high:
            share = (where - low) / (high - low) if high > low else 1.0
            return before.value + share * (behind.value - before.value)
    return points[-1].value


def paired(data: StudyData, arm: str, against: str, key: str, reading: Reading, seeds: Sequence[int]) -> Paired | None:
    """The arms compared seed by seed where the shorter one of the two ended; None without a seed that both have.

    At equal time only seeds count whose two runs were trained on one machine.
    """
    used, differences, least, most = [], [], [], []
    for seed in seeds:
        first, second = curve(data, arm, seed, key), curve(data, against, seed, key)
        if not first or not second or (reading == "time" and first[-1].machine != second[-1].machine):
            continue
        where = min(first[-1].at(reading), second[-1].at(reading))
        mine, theirs = value_at(first, reading, where), value_at(second, reading, where)
        if mine is not None and theirs is not None:
            used.append(seed)
            differences.append(mine - theirs)
            (low, high), (their_low, their_high) = (_range_at(points, reading, where) for points in (first, second))
            least.append(low - their_high)
            most.append(high - their_low)
    return over_seeds(used, differences, None if least == most else (least, most))


def _range_at(points: Sequence[Point], reading: Reading, where: float) -> tuple[float, float]:
    """What the value there can be: between its start and its first evaluation nothing says how fast a run went."""
    if points[0].at(reading) < where < points[1].at(reading):
        low, high = sorted(point.value for point in points[:2])
        return low, high
    value = value_at(points, reading, where)
    assert value is not None
    return value, value


def paired_reports(data: StudyData, arm: str, against: str, key: str, seeds: Sequence[int]) -> Paired | None:
    """The reports of the arms' best checkpoints compared seed by seed; None without a seed that both have."""
    found = {
        (one.arm, one.seed): one.value
        for one in data.figures
        if (one.subject, one.split, one.key) == ("student", "report", key)
    }
    used = [seed for seed in seeds if (arm, seed) in found and (against, seed) in found]
    return over_seeds(used, [found[arm, seed] - found[against, seed] for seed in used])


def over_seeds(
    seeds: list[int], differences: list[float], bounds: tuple[list[float], list[float]] | None = None
) -> Paired | None:
    """The differences with mean, interval and p; None without a seed."""
    if not seeds:
        return None
    return Paired(seeds, differences, fmean(differences), mean_interval(differences), sign_flip_p(differences), bounds)


def got_there(points: Sequence[Point], target: float, is_better_when: str) -> Point | None:
    """The first evaluation that is as good as `target`, the untrained student's included; later ones may leave it again."""
    is_there = [one.value >= target if is_better_when == "higher" else one.value <= target for one in points]
    return points[is_there.index(True)] if True in is_there else None


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided p-value of the paired sign-flip test of a mean of 0; with n differences it is never below 2 / 2**n."""
    observed = abs(sum(differences))
    flips = itertools.product((1, -1), repeat=len(differences))
    as_large = sum(
        abs(sum(sign * one for sign, one in zip(signs, differences, strict=True))) >= observed * (1 - 1e-12)
        for signs in flips
    )
    return float(as_large / 2 ** len(differences))
