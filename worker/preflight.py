"""Answers a preflight: `python -m engine check` on the spec, its findings and facts stored."""

import json
import logging
import subprocess
import tempfile
import time
from pathlib import Path

from pydantic import BaseModel, ValidationError

from backend.preflight_facts import estimated_facts
from backend.queries.leases import PREFLIGHT_SECONDS, PreflightClaim, end_preflight
from backend.store_problem import StoreProblem
from engine.findings import Finding
from worker.engine_process import EngineProcess
from worker.named_files import fetch_named
from worker.slots import Slot, free_slot
from worker.workplace import Workplace

_CHECK_SECONDS = PREFLIGHT_SECONDS - 30  # ends before the claim does

_log = logging.getLogger(__name__)


class _Answer(BaseModel):
    """What `engine check` prints."""

    findings: list[Finding]
    facts: dict[str, int | float | str | None]
    previews: list[dict[str, object]] = []


def answer(claim: PreflightClaim, slots: list[Slot], place: Workplace) -> None:
    """Check the claimed spec and store what was found."""
    with free_slot(slots, place.home / "slots") as free:
        # On a CPU a check may run beside the runs; on a GPU it could take the memory that a run is about to need.
        slot = free or next((slot for slot in slots if slot.gpu is None), None)
        findings, facts, is_answered = _check(claim, slot, place) if slot else (_all_busy(), {}, True)
    with place.database.write() as session:
        end_preflight(session, claim, findings=findings, facts=facts, is_answered=is_answered)


def _check(claim: PreflightClaim, slot: Slot, place: Workplace) -> tuple[list[Finding], dict[str, object], bool]:
    try:
        place.artifacts.check(writes=True)
        damaged = fetch_named(place.database, place.artifacts, place.home, claim.spec, lambda: None)
    except StoreProblem as problem:
        return [Finding(field="", message=str(problem))], {}, True
    if damaged:
        return [Finding(field="", message=sentence) for sentence in damaged], {}, True
    with tempfile.TemporaryDirectory(prefix="incipit-preflight-") as folder:
        spec_path, answer_path, log_path = (Path(folder) / name for name in ("spec.json", "answer", "log"))
        spec_path.write_text(claim.spec.model_dump_json())
        try:
            python = place.settings.vllm_python if claim.spec.needs_vllm else None
            exit_code = _run(["check", "--spec", str(spec_path)], answer_path, log_path, slot, place, python)
        except subprocess.TimeoutExpired:
            return _no_answer(f"took longer than {_CHECK_SECONDS} s; the models may be too large for it"), {}, False
        said, log = answer_path.read_bytes(), log_path.read_text(errors="replace")
    try:
        # Libraries may print before it; the answer is the last line.
        result = _Answer.model_validate(json.loads(said.decode().strip().splitlines()[-1]))
    except (ValueError, IndexError, ValidationError):
        _log.error("engine check: exit %s\n%s", exit_code, log[-4000:])
        return _no_answer(f"ended with exit code {exit_code} and no answer; see the worker's log"), {}, False
    facts, warnings = estimated_facts(claim.spec, result.facts)
    return [*result.findings, *warnings], {**facts, "previews": result.previews}, True


def _run(
    arguments: list[str], answer_path: Path, log_path: Path, slot: Slot, place: Workplace, python: Path | None
) -> int:
    """Run an engine process to its end. Raises subprocess.TimeoutExpired."""
    deadline = time.monotonic() + _CHECK_SECONDS

    def end_of_patience() -> None:
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(arguments, _CHECK_SECONDS)

    with answer_path.open("wb") as said:
        engine = EngineProcess(
            arguments,
            log_path=log_path,
            stdout=said.fileno(),
            folder=place.home,
            environment={"INCIPIT_HOME": str(place.home), **slot.environment()},
            server=place.engine_server,
            while_waiting=end_of_patience,
            python=python,
        )
    try:
        return engine.wait(deadline - time.monotonic())
    finally:
        engine.kill()


def _no_answer(what_happened: str) -> list[Finding]:
    return [Finding(field="", message=f"The check {what_happened}.")]


def _all_busy() -> list[Finding]:
    message = "All GPUs of this worker are busy, so nothing was opened; the run checks the same when it starts."
    return [Finding(field="", message=message, severity="warning")]
