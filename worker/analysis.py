"""Works on an analysis or a question of the playground: `python -m engine analyze` or `ask` in a process of its own.

Its progress and result are stored.
"""

import json
import logging
import os
import queue
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ValidationError

from backend.playground import Asked, Found, QueuedQuestion
from backend.queries.analyses import (
    AnalysisClaim,
    end_analysis,
    give_back_analysis,
    report_progress,
)
from backend.store_problem import StoreProblem
from engine.analysis_spec import AnalysisProgress
from engine.findings import Finding
from engine.playground_spec import PlaygroundResult
from worker.engine_process import EngineProcess
from worker.named_files import fetch_named
from worker.slots import Slot
from worker.workplace import Workplace

_REPORT_SECONDS = 2.0  # between two looks at the lease: cancelling takes as long
_LOG_CHARACTERS = 4000

_log = logging.getLogger(__name__)


class _Line(BaseModel):
    """What `engine analyze` and `engine ask` print, one of the three."""

    progress: AnalysisProgress | None = None
    result: Found | None = None
    findings: list[Finding] | None = None


def work_on_analysis(claim: AnalysisClaim, slot: Slot, place: Workplace) -> None:
    """Bring a claimed analysis to its end: answered, failed, given back at a shutdown, or dropped when it was cancelled."""
    with tempfile.TemporaryDirectory(prefix="incipit-analysis-") as folder:
        log_path, traces_path = Path(folder) / "stderr", Path(folder) / "answers.parquet"
        arguments = _arguments(claim.spec, Path(folder) / "spec.json", traces_path)
        missing = _fetched(claim, place)
        if missing is not None:
            with place.database.write() as session:
                end_analysis(session, claim, [missing], None)
            return
        engine, said = _start(arguments, log_path, claim, slot, place)
        lines: queue.Queue[bytes | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(said, lines), name="analysis", daemon=True)
        reader.start()
        try:
            answer = _follow(lines, claim, place)
        finally:
            engine.kill()
            reader.join()
        if answer is None:
            return
        if isinstance(answer, list) and not answer:
            exit_code, log = engine.exit_code(), log_path.read_text(errors="replace")
            _log.error("engine %s: exit %s\n%s", arguments[0], exit_code, log[-_LOG_CHARACTERS:])
            message = f"The engine ended with exit code {exit_code} and no answer; see the worker's log."
            answer = [Finding(field="", message=message)]
        traces = traces_path.read_bytes() if isinstance(answer, PlaygroundResult) else None
    with place.database.write() as session:
        end_analysis(session, claim, answer, traces)


def _fetched(claim: AnalysisClaim, place: Workplace) -> Finding | None:
    """Bring the checkpoints that are asked to this machine; what is wrong when that cannot be done."""
    asked_at = time.monotonic()

    def keep_lease() -> None:
        nonlocal asked_at
        if time.monotonic() - asked_at > _REPORT_SECONDS:
            asked_at = time.monotonic()
            with place.database.write() as session:
                report_progress(session, claim, None)

    asked = claim.spec.spec if isinstance(claim.spec, QueuedQuestion) else claim.spec
    try:
        damaged = fetch_named(place.database, place.artifacts, place.home, asked, keep_lease)
    except StoreProblem as problem:
        return Finding(field="", message=str(problem))
    except OSError as error:
        return Finding(
            field="", message=f"A checkpoint could not be fetched to the worker ({error}); make room on its disk."
        )
    return Finding(field="", message=" ".join(damaged)) if damaged else None


def _start(
    arguments: list[str], log_path: Path, claim: AnalysisClaim, slot: Slot, place: Workplace
) -> tuple[EngineProcess, IO[bytes]]:
    """An engine process, and what it says on stdout."""

    def keep_lease() -> None:  # whether the claim still holds is looked at once the process is there
        with place.database.write() as session:
            report_progress(session, claim, None)

    said, its_stdout = os.pipe()
    try:
        engine = EngineProcess(
            arguments,
            log_path=log_path,
            stdout=its_stdout,
            folder=place.home,
            environment={"INCIPIT_HOME": str(place.home), **slot.environment()},
            server=place.engine_server,
            while_waiting=keep_lease,
        )
    except BaseException:
        os.close(said)
        raise
    finally:
        os.close(its_stdout)
    return engine, os.fdopen(said, "rb")


def _arguments(asked: Asked, spec_path: Path, traces_path: Path) -> list[str]:
    """What the engine is called with, its spec written."""
    if isinstance(asked, QueuedQuestion):
        spec_path.write_text(asked.spec.model_dump_json())
        return ["ask", "--spec", str(spec_path), "--traces", str(traces_path)]
    spec_path.write_text(asked.model_dump_json())
    return ["analyze", "--spec", str(spec_path)]


def _follow(lines: "queue.Queue[bytes | None]", claim: AnalysisClaim, place: Workplace) -> Found | list[Finding] | None:
    """The answer, an empty list when the process ended without one, None when the claim is no longer ours."""
    progress: AnalysisProgress | None = None
    answer: Found | list[Finding] = []
    while True:
        try:
            line = lines.get(timeout=_REPORT_SECONDS)
        except queue.Empty:
            line = b""
        if line is None:
            return answer
        if line:
            said = _parsed(line)
            progress = said.progress or progress
            answer = said.result or said.findings or answer
            if lines.qsize():
                continue
        if place.is_shutting_down():
            with place.database.write() as session:
                give_back_analysis(session, claim)
            return None
        with place.database.write() as session:
            if not report_progress(session, claim, progress):
                return None


def _read(stdout: IO[bytes], lines: "queue.Queue[bytes | None]") -> None:
    with stdout:
        for line in stdout:
            lines.put(line)
    lines.put(None)


def _parsed(line: bytes) -> _Line:
    """What a line says; libraries may print lines of their own, which say nothing."""
    try:
        return _Line.model_validate(json.loads(line))
    except (ValueError, ValidationError):
        return _Line()
