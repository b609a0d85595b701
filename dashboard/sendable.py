"""What of a body JSON cannot carry: Python reads `1e999` and `NaN` as numbers that no request may hold."""

import math
from typing import Any

from engine.findings import Finding


def unsendable(body: Any) -> Finding | None:
    """The first value of a body that cannot be sent, at its dotted path; None when all of it can."""
    left: list[tuple[str, Any]] = [("", body)]
    while left:  # no recursion: a file may be nested deeper than Python's stack is
        path, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{path}.{key}".lstrip("."), inner) for key, inner in reversed(value.items())]
            left += [(path, key) for key in value]
        elif isinstance(value, list | tuple):
            left += [(f"{path}.{at}".lstrip("."), inner) for at, inner in reversed(list(enumerate(value)))]
        elif isinstance(value, float) and not math.isfinite(value):
            said = f"is {value}, but a number must be finite and below 1.8e308 in size; write such a one"
            return Finding(field=path, message=f"{path or 'The value'} {said}.")
        elif isinstance(value, str) and not _is_text(value):
            said = f"has {value[:80]!r}, but half a surrogate pair is no character; take it out"
            return Finding(field=path, message=f"{path or 'The text'} {said}.")
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
