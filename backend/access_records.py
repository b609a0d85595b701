"""The tables of access: who may ask."""

from datetime import datetime
from typing import get_args

from sqlalchemy import String
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
