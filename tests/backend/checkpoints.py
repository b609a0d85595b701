"""A committed checkpoint as an engine leaves it: files, a manifest, and the row that the recorder writes."""

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from backend.database import Database
from backend.ids import new_id
from backend.records import Checkpoint

FENCE = 3
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": os.urandom(300_001),
    "trainer/state.json": b"{}",
    "trainer/empty.json": b"",
}


def attempt_folder(run_dir: Path, run_id: str) -> Path:
    """The folder of the attempt that wrote the checkpoint."""
    return run_dir / run_id / "attempts" / str(FENCE)


def commit_checkpoint(
    database: Database, run_dir: Path, run_id: str, *, step: int = 20, contents: Mapping[str, bytes] = FILES
) -> str:
    """Write a checkpoint and its row; its id."""
    folder = attempt_folder(run_dir, run_id) / "checkpoints" / f"step-{step}"
    files = []
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files.append({"name": name, "num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    manifest = json.dumps({"format": 1, "step": step, "files": files}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    id = new_id()
    with database.write() as session:
        session.add(
            Checkpoint(
                id=id,
                run_id=run_id,
                fence=FENCE,
                step=step,
                path=f"checkpoints/step-{step}",
                manifest_sha256=hashlib.sha256(manifest).hexdigest(),
                num_bytes=sum(map(len, contents.values())),
                accuracy=0.5,
                is_best=True,
                files=files,
                created_at=datetime.now(UTC),
            )
        )
    return id
