"""What is wrong with a spec, one sentence per field: the same words in the form, the API and the command line."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from engine.frozen import Frozen

_MAX_SHOWN = 80  # characters of a rejected value that a message repeats


class Finding(Frozen):
    """One problem, at one field."""

    field: str
    """Dotted path in the spec, such as `prefix.tokens`; empty when it concerns the spec as a whole."""
    message: str
    """One sentence with the value, the limit and what to do."""
    severity: Literal["error", "warning"] = "error"
    """An error prevents the run; a warning does not."""


def misfit(field: str, message: str) -> PydanticCustomError:
    """The error that a cross-field validator raises, so that the finding lands at `field`."""
    return PydanticCustomError("misfit", "{message}", {"field": field, "message": message})


def findings_of(error: ValidationError, document: object) -> list[Finding]:
    """The findings of a failed validation of `document` (the rejected spec as plain JSON values)."""
    return [_finding(details, document) for details in error.errors(include_url=False)]


def _finding(details: ErrorDetails, document: object) -> Finding:
    context = details.get("ctx", {})
    if details["type"] == "misfit":
        return Finding(field=str(context["field"]), message=str(context["message"]))
    field = ".".join(_path(details["loc"], document))
    say = _SENTENCES.get(details["type"])
    shown = _shown(details["input"])
    message = say(shown, context) if say else f"is {shown}: {details['msg'][:1].lower()}{details['msg'][1:]}."
    # A key that nobody knows may hold anything, line breaks too.
    shown_field = field if field.isprintable() else repr(field)
    return Finding(field=field, message=f"{shown_field or 'The spec'} {message}")


def _path(location: Sequence[str | int], document: object) -> list[str]:
    """The location without the names of union members, which pydantic puts between the keys."""
    path: list[str] = []
    here: Any = document
    for part in location:
        if isinstance(here, Mapping) and part not in here and here.get("kind", part) == part and "kind" in here:
            continue
        path.append(str(part))
        if isinstance(here, Mapping):
            here = here.get(part)
        elif isinstance(here, Sequence) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            here = None
    return path


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


_Sentence = Callable[[str, Mapping[str, Any]], str]

_SENTENCES: dict[str, _Sentence] = {
    "missing": lambda value, limit: "is missing; it has no default, please give one.",
    "extra_forbidden": lambda value, limit: "is not a field of the spec; remove it or correct its name.",
    "greater_than_equal": lambda value, limit: f"is {value} but must be at least {limit['ge']}; raise it.",
    "greater_than": lambda value, limit: f"is {value} but must be more than {limit['gt']}; raise it.",
    "less_than_equal": lambda value, limit: f"is {value} but must be at most {limit['le']}; lower it.",
    "less_than": lambda value, limit: f"is {value} but must be less than {limit['lt']}; lower it.",
    "string_too_short": lambda value, limit: "is empty; please fill it in.",
    "string_too_long": lambda value, limit: f"is longer than {limit['max_length']} characters; shorten it.",
    "string_pattern_mismatch": lambda value, limit: (
        f"is {value}, which has characters or spaces that are not allowed here; correct it."
    ),
    "too_short": lambda value, limit: (
        f"has {limit['actual_length']} entries but needs {limit['min_length']}; add some."
    ),
    "too_long": lambda value, limit: f"has more than {limit['max_length']} entries; remove some.",
    "bool_parsing": lambda value, limit: f"is {value} but must be true or false; correct it.",
    "bool_type": lambda value, limit: f"is {value} but must be true or false; correct it.",
    "int_parsing": lambda value, limit: f"is {value} but must be a whole number; correct it.",
    "int_type": lambda value, limit: f"is {value} but must be a whole number; correct it.",
    "int_from_float": lambda value, limit: f"is {value} but must be a whole number; round it.",
    "float_parsing": lambda value, limit: f"is {value} but must be a number; correct it.",
    "float_type": lambda value, limit: f"is {value} but must be a number; correct it.",
    "finite_number": lambda value, limit: f"is {value} but must be a finite number; correct it.",
    "string_type": lambda value, limit: f"is {value} but must be text; correct it.",
    "literal_error": lambda value, limit: f"is {value} but must be one of {limit['expected']}; choose one of them.",
    "number_or_auto": lambda value, limit: (
        f"is {value} but must be a whole number from 1 to 65,536, or auto; correct it."
    ),
    "reference": lambda value, limit: f"is {value}, but {limit['problem']}",
    "contradiction": lambda value, limit: f"contradicts itself: {limit['problem']}",
    "union_tag_invalid": lambda value, limit: (
        f"has kind {limit['tag']!r} but kind must be one of {limit['expected_tags']}; choose one of them."
    ),
    "union_tag_not_found": lambda value, limit: "has no kind; say which kind it is.",
}
