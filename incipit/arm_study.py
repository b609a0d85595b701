"""A study of arms: one base spec, some changes of it and several seeds, and the claims that its runs are to decide."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from backend.expansion import planned_runs
from backend.needs import Needs
from backend.problems import Refusal
from backend.schemas import ExperimentCreate, Variant
from engine.findings import findings_of
from engine.frozen import Frozen
from engine.spec import RunSpec

Reading = Literal["steps", "flops", "time"]
"""Where two arms are compared: as far as the shorter of the two got in steps, training FLOPs or training seconds."""


class Arm(Frozen):
    """One arm."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    changes: dict[str, Any] = {}
    """Dotted field of the base spec to new value."""
    note: str = ""
    """Why it is there."""


class Measure(Frozen):
    """What the arms are compared by: a metric of full-length evaluations on the dev prompts."""

    key: str
    """Such as `accuracy`."""
    name: str
    """In words, such as `exact match`."""
    is_better_when: Literal["higher", "lower"]
    margin: Annotated[float, Field(gt=0)]
    """Less than this is no difference that matters."""
    shown: list[str] = []
    """Further metrics of the last evaluation that the table shows beside it."""


class Claim(Frozen):
    """A statement about two arms that the runs confirm or refute."""

    statement: Annotated[str, Field(min_length=1)]
    arm: str
    against: str
    at: Reading
    says: Literal["as good", "better", "worse"]
    """As good: not worse by the margin or more."""
    on: Literal["dev", "report"] = "dev"
    """Of which prompts; those of the report are asked once, of each run's best checkpoint, so that `at` is steps."""
    measure: Measure | None = None
    """What it speaks of where that is not the study's measure, such as the EOS rate."""
    warns_of: str = ""
    """For whom a prefix alone should not be used if it is confirmed, such as `students whose flaw is a repeated skill`."""


class ArmStudy(Frozen):
    """A study as it stands in its file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    title: Annotated[str, Field(min_length=1, max_length=100)]
    question: str
    setting: str
    """On what it was trained, in a sentence or two, with what that cannot show."""
    base: RunSpec
    needs: Needs = Needs()
    seeds: Annotated[list[int], Field(min_length=2, max_length=16)]
    """In this order; the next seed is asked for when the arms of those before it leave a slot idle."""
    arms: Annotated[list[Arm], Field(min_length=2, max_length=32)]
    """In the order of their importance."""
    reference: str
    """The arm whose FLOPs the others' are held against."""
    measure: Measure
    claims: list[Claim] = []
    hours: Annotated[float, Field(gt=0, le=4)] = 4.0
    """CPU-hours that a sitting may take; a seed that would not fit is left for the next one."""

    @model_validator(mode="after")
    def _reports_are_read_once(self) -> Self:
        for i, claim in enumerate(self.claims):
            if claim.on == "report" and claim.at != "steps":
                raise ValueError(
                    f"claims.{i}.at is {claim.at!r}, but a report is made once, at the end; set it to steps"
                )
            if claim.on == "report" and self.base.evaluation.report_path is None:
                raise ValueError(f"claims.{i}.on is 'report', but base.evaluation has no report_path; name one")
        return self

    @model_validator(mode="after")
    def _names_are_those_of_arms(self) -> Self:
        names = [arm.name for arm in self.arms]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"arms has {twice!r} {names.count(twice)} times; rename one of them")
        used = [("reference", self.reference)]
        used += [
            (f"claims.{i}.{field}", getattr(claim, field))
            for i, claim in enumerate(self.claims)
            for field in ("arm", "against")
        ]
        for field, name in used:
            if name not in names:
                raise ValueError(f"{field} is {name!r}, which is no arm; name one of {', '.join(names)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds has one of them twice; name each once")
        return self

    def experiment(self, seed: int) -> ExperimentCreate:
        """What is submitted for a seed: one run of each arm."""
        variants = [Variant(name=arm.name, changes=arm.changes, note=arm.note) for arm in self.arms]
        return ExperimentCreate(
            name=f"{self.title} (seed {seed})",
            note=self.question,
            base=self.base,
            needs=self.needs,
            variants=variants,
            seeds=[seed],
        )

    def specs(self, seed: int) -> dict[str, RunSpec]:
        """The spec of each arm's run."""
        return {planned.variant: planned.spec for planned in planned_runs(self.experiment(seed))}


def fingerprint(spec: RunSpec) -> str:
    """What tells a run's figures from those of another spec: of all that the run does, not of its name.

    Defaults are left out: a field that a later version adds does not make figures those of another run.
    """
    document = _chosen(spec.model_copy(update={"name": ""}))
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _chosen(part: BaseModel) -> dict[str, Any]:
    """What differs from the defaults, and which kind each part is."""
    chosen: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if name == "kind" or value != field.get_default(call_default_factory=True, validated_data={}):
            chosen[name] = _chosen(value) if isinstance(value, BaseModel) else to_jsonable_python(value)
    return chosen


def read_arm_study(document: Any, where: str) -> ArmStudy:
    """The study in a document; ValueError with a sentence when it or a spec of one of its arms is wrong."""
    try:
        study = ArmStudy.model_validate(document)
    except ValidationError as error:
        raise ValueError(f"{where}: {findings_of(error, document)[0].message}") from None
    try:
        study.specs(study.seeds[0])
    except Refusal as refusal:
        raise ValueError(f"{where}: {refusal.errors[0].message if refusal.errors else refusal.detail}") from None
    return study


def is_arm_study(document: Any) -> bool:
    """Whether a study's document has arms; else it lists choices, see incipit/study.py."""
    return isinstance(document, dict) and "arms" in document


def page_of(name: str, folder: Path) -> Path:
    """Where the page of the study of that name stands below the documentation's folder."""
    return folder / "studies" / f"{name}.md"


def data_of(name: str, folder: Path) -> Path:
    """Where its figures are kept below the documentation's folder."""
    return folder / "studies" / "data" / f"{name}.parquet"
