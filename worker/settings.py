"""How this machine's worker is set up: INCIPIT_… environment variables beside those of backend/settings.py."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from backend.needs import MAX_LABELS, VLLM_LABEL, Label
from backend.queries.claims import LEASE_SECONDS
from backend.queries.retries import MAX_RETRY_SECONDS, RETRY_SECONDS
from worker.uploads import PATIENCE_SECONDS

_BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h
# From the engine's end to the worker's: what it emitted is recorded and the run returned to the queue.
_CLOSING_SECONDS = 10.0
_LABEL: TypeAdapter[str] = TypeAdapter(Label)


class WorkerSettings(BaseSettings):
    """Settings of workers alone."""

    model_config = SettingsConfigDict(
        env_prefix="INCIPIT_", extra="ignore", frozen=True, use_attribute_docstrings=True, env_ignore_empty=True
    )

    slots: Annotated[int, Field(ge=1, le=64)] | None = None
    """Runs at the same time on this machine; empty is one per GPU, and without a GPU one per core but at most 2."""
    gpus_per_slot: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs of a slot: as many processes a run in it may have (parallelism.num_processes)."""
    worker_gpus: str = ""
    """GPUs that runs may use, such as `1,2`, where something else has the others; empty is all."""
    worker_labels: str = ""
    """Labels of this machine's worker, such as `a100,lab-2`: runs that ask for some go only to workers that have them all."""
    vllm_python: Path | None = None
    """Python of an environment with vLLM and Incipit, such as `make vllm` makes: engines with vLLM inside run in it
    (rollouts.kind vllm_colocated). The worker then has the label `vllm`."""
    engine_server: bool = True
    """Whether engines are forks of a process that has torch imported: ready 5 s sooner, for 0.3 GB held while none is at work."""
    stop_seconds: Annotated[float, Field(ge=1, le=3600)] = 60.0
    """Time that an engine gets to end its step and write a checkpoint; then SIGTERM, then SIGKILL."""
    terminate_seconds: Annotated[float, Field(ge=1, le=600)] = 10.0
    """Time between SIGTERM and SIGKILL."""

    grace_seconds: Annotated[float, Field(ge=1, le=86_400)] = 180.0
    """Time that whoever ends the worker waits before it kills it; `stop_grace_period` in docker-compose.yml."""

    lease_seconds: Annotated[float, Field(ge=10, le=600)] = LEASE_SECONDS
    """A run is taken from a worker that was not heard of for so long."""
    retry_seconds: Annotated[float, Field(ge=0, le=MAX_RETRY_SECONDS)] = RETRY_SECONDS
    """Time before a failed run is first tried again, where that may help; doubled each time, at most 15 minutes."""

    start_seconds: Annotated[float, Field(ge=10, le=86_400)] = 1800.0
    """Time that an engine gets to load its models, downloads included."""
    store_patience_seconds: Annotated[float, Field(ge=1, le=86_400)] = PATIENCE_SECONDS
    """A bucket that cannot be written is tried again for so long while the run goes on; then the run waits in the queue."""
    stall_seconds: Annotated[float, Field(ge=10, le=86_400)] = 1800.0
    """An engine that gave no sign of work for so long is ended."""

    @property
    def labels(self) -> list[str]:
        """The labels, in alphabetical order, `vllm` with them where engines may have it inside."""
        own = {label for part in self.worker_labels.split(",") if (label := part.strip())}
        has_vllm = self.vllm_python is not None or importlib.util.find_spec("vllm") is not None
        return sorted(own | {VLLM_LABEL} if has_vllm else own)

    @property
    def longest_stop_seconds(self) -> float:
        """After so long a worker that was told to end has ended: its engine's stop, SIGTERM, SIGKILL, and the record."""
        return self.stop_seconds + self.terminate_seconds + _CLOSING_SECONDS

    @property
    def last_storing_seconds(self) -> float:
        """Behind an engine's end at a shutdown: what is not stored by then is left for later."""
        return self.grace_seconds - self.longest_stop_seconds

    @field_validator("vllm_python")
    @classmethod
    def _is_a_program(cls, path: Path | None) -> Path | None:
        """From the root on, since engines start in another folder."""
        if path is not None and not os.access(path, os.X_OK):
            raise ValueError(
                f"INCIPIT_VLLM_PYTHON is {path}, which is no program that this user may run; make the environment (`make vllm`) or "
                "correct the path."
            )
        return path and path.absolute()

    @model_validator(mode="after")
    def _labels_are_labels(self) -> Self:
        if len(self.labels) > MAX_LABELS:
            raise ValueError(
                f"INCIPIT_WORKER_LABELS has {len(self.labels)} labels but may have {MAX_LABELS}; name fewer."
            )
        for label in self.labels:
            try:
                _LABEL.validate_python(label)
            except ValidationError:
                raise ValueError(
                    f"INCIPIT_WORKER_LABELS names {label[:80]!r}, but a label has at most 63 of a-z, 0-9, dot, dash and underscore and "
                    "begins with a letter or digit; correct it, with commas between labels."
                ) from None
        return self

    @model_validator(mode="after")
    def _whoever_ends_the_worker_waits_longer_than_the_worker(self) -> Self:
        if self.longest_stop_seconds >= self.grace_seconds:
            raise ValueError(
                f"INCIPIT_STOP_SECONDS ({self.stop_seconds:g}), INCIPIT_TERMINATE_SECONDS ({self.terminate_seconds:g}) and "
                f"{_CLOSING_SECONDS:g} s to record the end are {self.longest_stop_seconds:g} s, but whoever ends the worker "
                f"kills it after INCIPIT_GRACE_SECONDS ({self.grace_seconds:g}); lower one of the first two, or raise the "
                "third together with stop_grace_period in docker-compose.yml."
            )
        return self


def sentences_of(error: ValidationError) -> list[str]:
    """What is wrong with settings, one sentence each."""
    told = []
    for details in error.errors():
        name = "__".join(map(str, details["loc"])).upper()
        message = details["msg"].removeprefix("Value error, ")
        told.append(f"INCIPIT_{name} is {details['input']!r}: {message}; correct it." if name else message)
    return told


def give_up(*sentences: str) -> NoReturn:
    """End a process that cannot start, with what is wrong."""
    for sentence in sentences:
        print(f"incipit: {sentence}", file=sys.stderr)
    sys.exit(_BAD_CONFIGURATION)
