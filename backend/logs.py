"""Logs of API, worker and control process: JSON lines, on a terminal lines for people, and secrets in neither.

Libraries and our own code log through the standard library; structlog only formats. What is bound with `bound` stands
in every line that is logged inside, whoever logs it.
"""

import logging
import os
import sys
import threading
from types import TracebackType
from typing import Literal

import structlog
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from backend.redaction import Redaction
from backend.settings import LogLevel

ProcessName = Literal["api", "worker", "control"]

REQUEST_FIELDS = ("method", "route", "status", "ms", "principal")
"""What request lines carry beside their text."""

_log = logging.getLogger(__name__)

bound = bound_contextvars
"""`with bound(run=…):` adds fields to the lines of the block."""


def set_up_logs(process: ProcessName, level: LogLevel = "info") -> None:
    """From now on everything that is logged in this process, or ends it, is a line on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(process, is_for_people=sys.stderr.isatty()))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _log_end
    threading.excepthook = _log_end_of_thread


def _formatter(process: ProcessName, *, is_for_people: bool) -> logging.Formatter:
    redaction = Redaction(os.environ)

    def named(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
        return {**fields, "process": process, "pid": os.getpid()}

    def redacted(_logger: WrappedLogger, _method: str, line: EventDict) -> str:
        # Last, on the finished line: whatever field or traceback a secret came in by, it passes here.
        return redaction(str(line))

    renderers: list[Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
    if is_for_people:
        renderers = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time" if not is_for_people else "timestamp"),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            named,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ExtraAdder(allow=REQUEST_FIELDS),
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers, redacted],
    )


def _log_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _log.critical("The process ends by a fault.", exc_info=(kind, error, trace))


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    name = ended.thread.name if ended.thread else "?"
    error = ended.exc_value or ended.exc_type()
    _log.critical("The thread %s ends by a fault.", name, exc_info=(ended.exc_type, error, ended.exc_traceback))
