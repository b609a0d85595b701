"""How this machine's worker is set up: INCIPIT_… environment variables beside those of backend/settings.py."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class WorkerSettings(BaseSettings):
    """Settings of workers alone."""

    model_config = SettingsConfigDict(
        env_prefix="INCIPIT_", extra="ignore", frozen=True, use_attribute_docstrings=True, env_ignore_empty=True
    )

    slots: Annotated[int, Field(ge=1, le=64)] | None = None
    """Runs at the same time on this machine; empty is one per GPU, and without a GPU one per core but at most 2."""
    stop_seconds: Annotated[float, Field(ge=1, le=3600)] = 60.0
    """Time that an engine gets to end its step and write a checkpoint; then SIGTERM, then SIGKILL."""
    terminate_seconds: Annotated[float, Field(ge=1, le=600)] = 10.0
    """Time between SIGTERM and SIGKILL."""

    start_seconds: Annotated[float, Field(ge=10, le=86_400)] = 1800.0
    """Time that an engine gets to load its models, downloads included."""
    stall_seconds: Annotated[float, Field(ge=10, le=86_400)] = 1800.0
    """An engine that gave no sign of work for so long is ended."""

    @property
    def longest_stop_seconds(self) -> float:
        """After so long a worker that was told to end has ended."""
        return self.stop_seconds + self.terminate_seconds + 10.0
