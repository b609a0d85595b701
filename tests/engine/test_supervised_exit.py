"""A supervised engine in an interpreter of its own, as the worker starts it."""

import json
import subprocess
import sys
from pathlib import Path

from engine.locations import resolve


def test_a_finished_engine_ends_with_status_0_while_its_supervisor_still_holds_stdin(home: Path) -> None:
    spec = json.loads(Path(resolve("builtin:tiny-prefix-8.json")).read_text())
    spec["num_steps"] = 1
    spec["optimizer"]["warmup_steps"] = 1
    spec["evaluation"] |= {"num_prompts": 1, "num_sampled": 1, "report_path": None}
    (home / "spec.json").write_text(json.dumps(spec))
    command = ["train", "--spec", str(home / "spec.json"), "--out", str(home / "run"), "--supervised"]
    with subprocess.Popen([sys.executable, "-m", "engine", *command], stdin=subprocess.PIPE) as engine:
        assert engine.wait(timeout=120) == 0
