"""Works on an analysis, a question of the playground or an export: `python -m engine analyze`, `ask` or `export` as a process.

Its progress and result are stored.
"""

import json
import logging
import os
import queue
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ValidationError

from backend.artifacts import ExportedFiles, StoredFile, Unreadable
from backend.asked import Found
from backend.exports import QueuedExport
from backend.playground import QueuedQuestion
from backend.queries.analyses import AnalysisClaim
from backend.queries.exports import folder_of
from backend.settings import export_dir
from backend.store_problem import StoreProblem
from engine.analysis_spec import AnalysisProgress
from engine.export_spec import ExportResult
from engine.findings import Finding
from engine.playground_spec import PlaygroundResult
from engine.staging import belongs_to
from worker.analysis_lease import REPORT_SECONDS, AnalysisLease
from worker.engine_process import EngineProcess
from worker.named_files import fetch_named
from worker.slots import Slot
from worker.workplace import Workplace

_LOG_CHARACTERS = 4000

_log = logging.getLogger(__name__)


class _Line(BaseModel):
    """What these commands print, one of the three."""

    progress: AnalysisProgress | None = None
    result: Found | None = None
    findings: list[Finding] | None = None


def work_on_analysis(claim: AnalysisClaim, slot: Slot, place: Workplace) -> None:
    """Bring a claimed analysis to its end: answered, failed, given back at a shutdown, or dropped when it was cancelled."""
    is_kept = False
    try:
        is_kept = _work(claim, slot, place)
    finally:
        if isinstance(claim.spec, QueuedExport):
            _clean_up(claim, place, is_kept=is_kept)


def _work(claim: AnalysisClaim, slot: Slot, place: Workplace) -> bool:
    """The same; whether what it has made is to stay on this machine's disk."""
    lease = AnalysisLease(place.database, claim)
    with tempfile.TemporaryDirectory(prefix="incipit-analysis-") as folder:
        log_path, traces_path = Path(folder) / "stderr", Path(folder) / "answers.parquet"
        arguments = _arguments(claim, Path(folder) / "spec.json", traces_path, place)
        missing = _fetched(lease, place)
        if missing is not None:
            lease.end([missing])
            return False
        engine, said = _start(arguments, log_path, lease, slot, place)
        lines: queue.Queue[bytes | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(said, lines), name="analysis", daemon=True)
        reader.start()
        try:
            answer = _follow(lines, lease, place)
        finally:
            engine.kill()
            reader.join()
        if answer is None:
            return False
        if isinstance(answer, list) and not answer:
            exit_code, log = engine.exit_code(), log_path.read_text(errors="replace")
            _log.error("engine %s: exit %s\n%s", arguments[0], exit_code, log[-_LOG_CHARACTERS:])
            message = f"The engine ended with exit code {exit_code} and no answer; see the worker's log."
            answer = [Finding(field="", message=message)]
        traces = traces_path.read_bytes() if isinstance(answer, PlaygroundResult) else None
    if isinstance(answer, ExportResult) and answer.is_kept and (problem := _stored(lease, answer, place)) is not None:
        answer = [problem]
    is_ours = lease.end(answer, traces)
    return is_ours and not isinstance(answer, list) and not place.exports.is_remote


def _export_folder(claim: AnalysisClaim, place: Workplace) -> Path:
    return export_dir(place.home) / folder_of(claim.analysis_id, claim.fence)


def _clean_up(claim: AnalysisClaim, place: Workplace, *, is_kept: bool) -> None:
    """Remove what an export has written, whole or in part, unless it is kept; nobody else writes under this fence."""
    folder = _export_folder(claim, place)
    for path in folder.parent.glob("*"):
        if belongs_to(path, folder) and not is_kept:
            shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # not empty, or never made
        folder.parent.rmdir()


def _stored(lease: AnalysisLease, made: ExportResult, place: Workplace) -> Finding | None:
    """Put the files of an export where all machines see them; what is wrong when that cannot be done."""
    files = [StoredFile(file.name, file.num_bytes, file.sha256) for file in made.files]
    folder = ExportedFiles(folder_of(lease.claim.analysis_id, lease.claim.fence))
    try:
        place.exports.keep(folder, files, lambda num_bytes: lease.keep_when_due())
    except (StoreProblem, Unreadable) as problem:
        return Finding(field="", message=f"What was made could not be stored: {problem}")
    return None


def _fetched(lease: AnalysisLease, place: Workplace) -> Finding | None:
    """Bring the checkpoints that are asked to this machine; what is wrong when that cannot be done."""
    spec = lease.claim.spec
    asked = spec.spec if isinstance(spec, QueuedQuestion) else spec
    try:
        damaged = lease.despite_outages(
            lambda: fetch_named(place.database, place.artifacts, place.home, asked, lease.keep_when_due)
        )
    except StoreProblem as problem:
        return Finding(field="", message=str(problem))
    except OSError as error:
        return Finding(
            field="", message=f"A checkpoint could not be fetched to the worker ({error}); make room on its disk."
        )
    return Finding(field="", message=" ".join(damaged)) if damaged else None


def _start(
    arguments: list[str], log_path: Path, lease: AnalysisLease, slot: Slot, place: Workplace
) -> tuple[EngineProcess, IO[bytes]]:
    """An engine process, and what it says on stdout."""
    said, its_stdout = os.pipe()
    try:
        engine = EngineProcess(
            arguments,
            log_path=log_path,
            stdout=its_stdout,
            folder=place.home,
            environment={"INCIPIT_HOME": str(place.home), **slot.environment()},
            server=place.engine_server,
            while_waiting=lease.keep_when_due,
        )
    except BaseException:
        os.close(said)
        raise
    finally:
        os.close(its_stdout)
    return engine, os.fdopen(said, "rb")


def _arguments(claim: AnalysisClaim, spec_path: Path, traces_path: Path, place: Workplace) -> list[str]:
    """What the engine is called with, its spec written."""
    asked = claim.spec
    if isinstance(asked, QueuedExport):
        spec_path.write_text(asked.spec.model_dump_json())
        return ["export", "--spec", str(spec_path), "--out", str(_export_folder(claim, place))]
    if isinstance(asked, QueuedQuestion):
        spec_path.write_text(asked.spec.model_dump_json())
        return ["ask", "--spec", str(spec_path), "--traces", str(traces_path)]
    spec_path.write_text(asked.model_dump_json())
    return ["analyze", "--spec", str(spec_path)]


def _follow(lines: "queue.Queue[bytes | None]", lease: AnalysisLease, place: Workplace) -> Found | list[Finding] | None:
    """The answer, an empty list when the process ended without one, None when the work is no longer ours."""
    progress: AnalysisProgress | None = None
    answer: Found | list[Finding] = []
    while True:
        try:
            line = lines.get(timeout=REPORT_SECONDS)
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
            lease.give_back()
            return None
        if not lease.keep(progress):
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
