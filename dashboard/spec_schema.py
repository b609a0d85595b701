"""The spec's JSON schema as form fields. Pure: a new field of the spec appears in the form without a change here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Schema = Mapping[str, Any]
Kind = Literal["text", "whole", "whole or word", "number", "choice", "flag", "list", "table", "group", "union"]
_KINDS: dict[str, Kind] = {"string": "text", "integer": "whole", "number": "number", "boolean": "flag"}


@dataclass(frozen=True)
class FormField:
    """One field of the spec."""

    path: str
    """Dotted, such as `prefix.tokens`."""
    kind: Kind
    help: str
    default: Any = None
    """As in a document; None when there is none."""
    is_required: bool = False
    is_nullable: bool = False
    """Empty is a value of its own."""
    limits: str = ""
    """The allowed range in words, such as `at least 1, at most 64`."""
    choices: tuple[str, ...] = ()
    fields: tuple["FormField", ...] = ()
    """Of a group, and the columns of a table."""
    item: "FormField | None" = None
    """Of a list: one of its entries."""
    members: Mapping[str, "FormField"] = field(default_factory=dict)
    """Of a union: a group for each value of its `kind`."""

    @property
    def label(self) -> str:
        words = self.path.rpartition(".")[2].replace("_", " ")
        words = f"number of {words[4:]}" if words.startswith("num ") else words
        return words[:1].upper() + words[1:]

    def leaves(self) -> Iterator["FormField"]:
        """All fields below that are no groups; of a union or a table, itself."""
        if self.kind != "group":
            yield self
            return
        for inner in self.fields:
            yield from inner.leaves()


def form_fields(schema: Schema) -> tuple[FormField, ...]:
    """The top-level fields of an object schema, in its order; constants such as spec_version are left out."""
    return _properties(schema, schema.get("$defs", {}), "")


def _properties(schema: Schema, definitions: Schema, above: str) -> tuple[FormField, ...]:
    required = schema.get("required", ())
    return tuple(
        _field(inner, definitions, above + name, is_required=name in required)
        for name, inner in schema.get("properties", {}).items()
        if "const" not in inner
    )


def _field(schema: Schema, definitions: Schema, path: str, *, is_required: bool) -> FormField:
    described = _resolved(schema, definitions)
    default = described.get("default")
    help_text = str(schema.get("description") or described.get("description", ""))
    if "oneOf" in described:
        members = {}
        for kind, reference in described["discriminator"]["mapping"].items():
            member = _resolved({"$ref": reference}, definitions)
            inner = _properties(member, definitions, path + ".")
            members[kind] = FormField(path, "group", str(member.get("description", "")), {"kind": kind}, fields=inner)
        return FormField(path, "union", help_text, default, is_required, members=members)
    options = described.get("anyOf", [])
    is_nullable = any(option.get("type") == "null" for option in options)
    if is_nullable:
        described = {**described, **next(option for option in options if option.get("type") != "null")}
    words = tuple(option["const"] for option in options if "const" in option)
    if words:
        number = next(option for option in options if option.get("type") == "integer")
        limits = f"{_limits(number)}, or {' or '.join(words)}"
        return FormField(path, "whole or word", help_text, default, is_required, is_nullable, limits, words)
    if "properties" in described:
        inner = _properties(described, definitions, path + ".")
        return FormField(path, "group", help_text, default, is_required, fields=inner)
    if "enum" in described:
        return FormField(path, "choice", help_text, default, is_required, choices=tuple(described["enum"]))
    if described["type"] == "array":
        item = _field(described["items"], definitions, path, is_required=True)
        rows: Kind = "table" if item.kind == "group" else "list"
        return FormField(path, rows, help_text, default, is_required, is_nullable, fields=item.fields, item=item)
    kind = _KINDS[described["type"]]
    return FormField(path, kind, help_text, default, is_required, is_nullable, _limits(described))


def _resolved(schema: Schema, definitions: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    target: Schema = definitions[str(schema["$ref"]).rpartition("/")[2]]
    return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}


def _limits(schema: Schema) -> str:
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    return ", ".join(f"{word} {schema[key]:g}" for key, word in words.items() if key in schema)


def value_at(document: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None when there is nothing."""
    here: Any = document
    for key in path.split("."):
        here = here.get(key) if isinstance(here, Mapping) else None
    return here


def put_at(document: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at a dotted path, making the objects on the way."""
    *above, last = path.split(".")
    here = document
    for key in above:
        here = here.setdefault(key, {})
    here[last] = value
