"""The tables of prompts that people uploaded, and of the runs that read them."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from backend.columns import Id
from backend.ids import new_id
from backend.tables import Table


class PromptFile(Table):
    """Prompts that somebody uploaded; what they are lies on the disk, see engine/uploaded_prompts.py."""

    __tablename__ = "prompt_files"
    __table_args__ = (UniqueConstraint("project_id", "sha256"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(String(64), default="default")
    created_by: Mapped[str] = mapped_column(String(128), default="local")
    created_at: Mapped[datetime]
    name: Mapped[str] = mapped_column(String(200))
    """Of the file, as its owner called it."""
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    num_rows: Mapped[int]
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    map: Mapped[dict[str, Any]]
    """Which of its columns became what."""
    system_message: Mapped[str | None] = mapped_column(Text)
    first: Mapped[list[Any]]
    """The first few prompts, for people to look at."""


class PromptFileUse(Table):
    """A run that reads an uploaded file, which therefore stays."""

    __tablename__ = "prompt_file_uses"

    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    prompt_file_id: Mapped[str] = mapped_column(Id, ForeignKey("prompt_files.id"), primary_key=True, index=True)
