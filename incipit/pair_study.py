"""A study of pairs: analyses of several pairs of models, nothing trained; what they found is kept in one Parquet file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError, model_validator

from backend.expansion import planned_runs
from backend.problems import Refusal
from backend.schemas import ExperimentCreate, Variant
from engine.analysis_spec import Analysis, AnalysisResult, AnalysisRow, AnalysisSpec
from engine.findings import findings_of
from engine.frozen import Frozen
from engine.spec import RunSpec


class Pair(Frozen):
    """A student and its teacher."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    changes: dict[str, Any] = {}
    """Dotted field of the base spec to new value."""
    note: str = ""
    """What is known of it."""


class PairStudy(Frozen):
    """A study as it stands in its file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    title: Annotated[str, Field(min_length=1, max_length=100)]
    question: str
    setting: str
    """Of which pairs, in a sentence or two, with what that cannot show."""
    base: RunSpec
    pairs: Annotated[list[Pair], Field(min_length=1, max_length=32)]
    analyses: Annotated[list[Analysis], Field(min_length=1, max_length=8)]
    """What each pair is asked."""

    @model_validator(mode="after")
    def _names_are_used_once(self) -> Self:
        used: dict[str, list[str]] = {
            "pairs": [pair.name for pair in self.pairs],
            "analyses": [one.kind for one in self.analyses],
        }
        for field, names in used.items():
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{field} has {twice!r} {names.count(twice)} times; leave one of them")
        return self

    def specs(self) -> dict[str, RunSpec]:
        """The spec of each pair."""
        variants = [Variant(name=pair.name, changes=pair.changes, note=pair.note) for pair in self.pairs]
        experiment = ExperimentCreate(name=self.title, base=self.base, variants=variants)
        return {planned.variant: planned.spec for planned in planned_runs(experiment)}

    def asked(self) -> dict[tuple[str, str], AnalysisSpec]:
        """What is asked, by pair and kind."""
        return {
            (name, analysis.kind): AnalysisSpec(run=spec, analysis=analysis)
            for name, spec in self.specs().items()
            for analysis in self.analyses
        }


@dataclass(frozen=True)
class PairData:
    """What was found, by pair and kind of analysis, and where it is from."""

    results: Mapping[tuple[str, str], AnalysisResult]
    source: Mapping[str, str]
    """`commit`, `machine` and `date`."""


def is_pair_study(document: Any) -> bool:
    """Whether a study's document has pairs."""
    return isinstance(document, dict) and "pairs" in document


def read_pair_study(document: Any, where: str) -> PairStudy:
    """The study in a document; ValueError with a sentence when it or a spec of one of its pairs is wrong."""
    try:
        study = PairStudy.model_validate(document)
    except ValidationError as error:
        raise ValueError(f"{where}: {findings_of(error, document)[0].message}") from None
    try:
        study.specs()
    except Refusal as refusal:
        raise ValueError(f"{where}: {refusal.errors[0].message if refusal.errors else refusal.detail}") from None
    return study


def read_pair_data(path: Path) -> PairData:
    """The results in a file; ValueError with a sentence when there is none or it is damaged."""
    try:
        table = pq.read_table(path)
        rows = table.to_pylist()
        told = {name.decode(): text.decode() for name, text in (table.schema.metadata or {}).items()}
        heads: list[dict[str, Any]] = json.loads(told["results"])
        results = {
            (head["pair"], head["result"]["kind"]): AnalysisResult.model_validate(
                head["result"] | {"rows": _rows(rows, head["pair"], head["result"]["kind"])}
            )
            for head in heads
        }
        return PairData(results, {name: told[name] for name in ("commit", "machine", "date")})
    except FileNotFoundError:
        raise ValueError(f"There is no {path}; ask first (`incipit study FILE` without --report).") from None
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a study's results ({str(error)[:200]}); remove it and ask again."
        ) from None


def write_pair_data(path: Path, data: PairData) -> None:
    """Put the results in place of what the file had."""
    rows = [
        {"pair": pair, "kind": kind, **row.model_dump(exclude={"details"}), "details": json.dumps(row.details)}
        for (pair, kind), result in data.results.items()
        for row in result.rows
    ]
    heads = [
        {"pair": pair, "result": result.model_dump(mode="json", exclude={"rows"})}
        for (pair, _), result in data.results.items()
    ]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"results": json.dumps(heads), **data.source})
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(".new")
    pq.write_table(table, staging, compression="zstd")
    staging.replace(path)


def _rows(rows: Sequence[dict[str, Any]], pair: str, kind: str) -> list[AnalysisRow]:
    mine = [row for row in rows if (row["pair"], row["kind"]) == (pair, kind)]
    return [
        AnalysisRow(
            **{name: row[name] for name in ("start", "end", "value", "low", "high", "count")},
            details=json.loads(row["details"]),
        )
        for row in mine
    ]
