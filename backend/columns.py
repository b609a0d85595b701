"""Column types that mean the same on SQLite and PostgreSQL."""

from datetime import UTC, datetime
from types import UnionType
from typing import Any, TypeVar, cast

from pydantic import BaseModel, TypeAdapter
from sqlalchemy import JSON, DateTime, Dialect, String, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator

from engine.frozen import STORED

Json = JSON().with_variant(JSONB(), "postgresql")
Id = String(36)
Record = TypeVar("Record", bound=BaseModel)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, stored in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert value.tzinfo is not None, "a time without a time zone must not reach the database"
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class RecordColumn(TypeDecorator[Record]):
    """A frozen record, or one of several kinds, stored as JSON; reading it back validates it, as what was accepted before."""

    impl = Json
    cache_ok = True

    def __init__(self, record: type[Record] | UnionType) -> None:
        """Of a union, the fields tell which kind is stored."""
        super().__init__()
        self.record = record  # under the parameter's name: SQLAlchemy tells column types apart by it
        self._adapter: TypeAdapter[Record] = TypeAdapter(cast("type[Record]", record))

    def process_bind_param(self, value: Record | None, dialect: Dialect) -> Any:
        return None if value is None else value.model_dump(mode="json")

    def process_result_value(self, value: Any, dialect: Dialect) -> Record | None:
        return None if value is None else self._adapter.validate_python(value, context=STORED)


class CleanText(TypeDecorator[str]):
    """Text that a model or a file produced: what a database cannot store is replaced."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)


def storable(text: str) -> str:
    """The text with U+2400 for the character NUL, which PostgreSQL refuses, and "?" for lone surrogates, which UTF-8 does."""
    return text.replace("\x00", "\u2400").encode("utf-8", "replace").decode()
