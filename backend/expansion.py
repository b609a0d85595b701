"""From an experiment's base spec, variants and seeds to the specs of its runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from backend.memory_needs import needs_of
from backend.needs import RunNeeds
from backend.problems import invalid
from backend.schemas import ExperimentCreate, Variant
from engine.findings import Finding, findings_of
from engine.spec import RunSpec

MAX_RUNS = 1000
_SET_ELSEWHERE = {"seed": "put it among the experiment's seeds", "name": "a run is named after its variant"}


@dataclass(frozen=True)
class PlannedRun:
    """A run that is about to be created."""

    variant: str
    note: str
    spec: RunSpec
    needs: RunNeeds | None = None
    """What its worker must have; None where nobody has looked at more than the spec."""


def planned_runs(experiment: ExperimentCreate) -> list[PlannedRun]:
    """One run for each variant and seed, seeds innermost; refuses the whole experiment if any spec is wrong."""
    seeds = experiment.seeds if "seeds" in experiment.model_fields_set else [experiment.base.seed]
    findings = _misfits(experiment, seeds)
    planned: list[PlannedRun] = []
    variants: Sequence[Variant | None] = experiment.variants or [None]
    for variant in variants:
        found: list[Finding] = []
        for seed in seeds if not findings else ():
            document = _document(experiment.base, variant, seed, has_several_seeds=len(seeds) > 1)
            try:
                spec = RunSpec.model_validate(document)
            except ValidationError as error:
                found += [one for one in findings_of(error, document) if one not in found]
                continue
            planned.append(PlannedRun(variant.name if variant else "", variant.note if variant else "", spec))
        findings += [_at(variant, one) for one in found]
    if findings:
        raise invalid(findings)
    needs = needs_of([run.spec for run in planned], experiment.needs)
    return [replace(run, needs=of_run) for run, of_run in zip(planned, needs, strict=True)]


def _document(base: RunSpec, variant: Variant | None, seed: int, *, has_several_seeds: bool) -> dict[str, Any]:
    document = with_changes(base.model_dump(mode="json"), variant.changes if variant else {})
    name = variant.name if variant else base.name
    return document | {"seed": seed, "name": f"{name} · seed {seed}" if has_several_seeds else name}


def with_changes(document: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """A copy of a spec's document with a variant's changes: dotted path to new value."""
    changed = deepcopy(dict(document))
    for path, value in changes.items():
        _replace(changed, path.split("."), value)
    return changed


def _replace(document: dict[str, Any], path: list[str], value: object) -> None:
    """Put a value at a path. What lies there is replaced as a whole: another kind of prefix has other fields."""
    here = document
    for key in path[:-1]:
        if not isinstance(here.get(key), dict):
            here[key] = {}
        here = here[key]
    here[path[-1]] = deepcopy(value)


def _at(variant: Variant | None, finding: Finding) -> Finding:
    if variant is None:
        return finding
    return finding.model_copy(update={"field": f"{variant.name}.{finding.field}"})


def _misfits(experiment: ExperimentCreate, seeds: list[int]) -> list[Finding]:
    """What is wrong with the experiment itself, whatever its specs."""
    findings = []
    for name, count in Counter(variant.name for variant in experiment.variants).items():
        if count > 1:
            findings.append(Finding(field="variants", message=f"variants has {count} called {name!r}; rename them."))
    for seed, count in Counter(seeds).items():
        if count > 1:
            findings.append(Finding(field="seeds", message=f"seeds has {seed} {count} times; name each seed once."))
    for variant in experiment.variants:
        for field in sorted({path.split(".")[0] for path in variant.changes} & _SET_ELSEWHERE.keys()):
            message = f"{field} cannot be changed by a variant: {_SET_ELSEWHERE[field]}."
            findings.append(_at(variant, Finding(field=field, message=message)))
    num_runs = max(1, len(experiment.variants)) * len(seeds)
    if num_runs > MAX_RUNS:
        message = f"variants and seeds make {num_runs} runs, but an experiment has at most {MAX_RUNS}; use fewer seeds."
        findings.append(Finding(field="seeds", message=message))
    return findings
