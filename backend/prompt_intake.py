"""Has a file that somebody sent read by a process with limits of its own, see engine/prompt_intake.py."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from backend.limits import Limits
from backend.problems import Refusal, invalid
from engine.findings import Finding
from engine.prompt_intake import CPU_SECONDS, Intake, IntakeRequest
from engine.prompt_map import PromptMap

_SECONDS = 2 * CPU_SECONDS  # on a busy machine the process has less than a core of its own
_log = logging.getLogger(__name__)


def looked_at(source: Path, limits: Limits) -> Intake:
    """Columns and first rows of a file; Refusal (422) when it cannot be read."""
    return _asked(IntakeRequest(str(source), limits.upload_rows, limits.upload_stored_bytes))


def written(source: Path, target: Path, chosen: PromptMap, limits: Limits) -> Intake:
    """Write the prompts of a file to `target`; Refusal (422) with a finding for each of the first bad rows."""
    request = IntakeRequest(
        str(source), limits.upload_rows, limits.upload_stored_bytes, chosen.columns, str(target)
    )  # fmt: skip
    return _asked(request)


def _asked(request: IntakeRequest) -> Intake:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-W", "ignore", "-m", "engine.prompt_intake"],
            input=json.dumps(asdict(request)).encode(),
            capture_output=True,
            timeout=_SECONDS,
            # Without our environment: a file has no business with it. Other pools of pyarrow reserve what the limit needs.
            env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        )
        intake = Intake(**json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        raise _refusal([f"The file takes longer than {_SECONDS} s to read; split it."]) from None
    except ValueError:
        # Killed by a limit, or by a fault of the library that reads the format: nothing else ends it without a reply.
        _log.warning(
            "reading an upload ended with %s: %s", done.returncode, done.stderr.decode(errors="replace")[-2000:]
        )
        sentence = (
            "The file cannot be read within the limits of memory and time; split it, or write it again as JSON lines."
        )
        raise _refusal([sentence]) from None
    if intake.problems:
        raise _refusal(intake.problems)
    return intake


def _refusal(problems: list[str]) -> Refusal:
    return invalid([Finding(field="file", message=problem[:1].upper() + problem[1:]) for problem in problems])
