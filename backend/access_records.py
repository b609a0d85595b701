"""The tables of access: who may ask, and what was asked with a key that allows to ask again."""

from datetime import datetime
from typing import get_args

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from backend.access import Role
from backend.tables import Table, one_of


class ApiKey(Table):
    """An API key. What is revoked stays, so that `created_by` elsewhere can be looked up."""

    __tablename__ = "api_keys"
    __table_args__ = (one_of("role", get_args(Role), "role"),)

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(16))
    project_id: Mapped[str] = mapped_column(String(64))
    created_by: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class IdempotentRequest(Table):
    """A creating request with an Idempotency-Key and its answer, written in the transaction that makes the things."""

    __tablename__ = "idempotent_requests"

    principal_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    operation: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    """Of the validated body, so that spaces and the order of fields do not matter."""
    body: Mapped[str] = mapped_column(Text, default="")
    """Of the answer, whose status is 201."""
    location: Mapped[str] = mapped_column(String(255), default="")
    created_at: Mapped[datetime] = mapped_column(index=True)
