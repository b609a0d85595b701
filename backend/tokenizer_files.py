"""Whether two models have one tokenizer, as far as their tokenizer.json files say: read as JSON, no tokenizer is opened."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from engine.vocabularies import differing_ids

_NAME = "tokenizer.json"
_MAX_BYTES = 64 * 2**20  # the largest in use have some 35 MB


class _File(NamedTuple):
    """A file as it was when it was looked at."""

    path: str
    num_bytes: int
    mtime_ns: int


def num_differing_ids(mine: Path, theirs: Path) -> tuple[int, int] | None:
    """How many ids of the first folder's vocabulary differ in the second's, and of how many; None when nobody can say here."""
    first, second = (_looked_at(folder / _NAME) for folder in (mine, theirs))
    return None if first is None or second is None else _compared(first, second)


def _looked_at(path: Path) -> _File | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _File(str(path), status.st_size, status.st_mtime_ns) if status.st_size <= _MAX_BYTES else None


@lru_cache(maxsize=256)
def _compared(mine: _File, theirs: _File) -> tuple[int, int] | None:
    try:
        contents = [Path(file.path).read_bytes() for file in (mine, theirs)]
        if contents[0] == contents[1]:
            return 0, 0
        first, second = (_vocabulary(json.loads(content)) for content in contents)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    return len(differing_ids(first, second)), len(first)


def _vocabulary(document: Any) -> dict[int, str]:
    """Ids with their tokens; what is not of the usual shape raises."""
    words = document["model"]["vocab"]
    if isinstance(words, dict):
        found = {int(token_id): str(token) for token, token_id in words.items()}
    else:  # Unigram: pairs of token and score, in the order of the ids
        found = {at: str(pair[0]) for at, pair in enumerate(words)}
    return found | {int(token["id"]): str(token["content"]) for token in document.get("added_tokens") or []}
