"""What things are called where two of them must not be taken for one: in charts, tables and lists of choices."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from backend.schemas import RunSummary

_ID_END = 6  # characters; the beginning of an id is its time, which things made together share


def id_end(id: str) -> str:
    """As much of an id as tells it from those beside it."""
    return id[-_ID_END:]


def unique_labels(names: Mapping[str, str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Ids with their names, each unlike the others and unlike those `taken`: a name that is there twice has its id's end behind it."""
    counts = Counter([*names.values(), *taken])
    return {id: name if counts[name] == 1 else f"{name} ({id_end(id)})" for id, name in names.items()}


def run_labels(runs: Sequence[RunSummary], taken: Iterable[str] = ()) -> dict[str, str]:
    """The same of runs, by their ids."""
    return unique_labels({run.id: run.name for run in runs}, taken)
