"""Believable samples of what a run used. Never shipped."""

from datetime import timedelta

import fake_records as records
from fastapi import APIRouter

from backend.resources import AttemptPlace, ResourceSample, RunResources, WorkerCapabilities
from backend.schemas import Worker

router = APIRouter(prefix="/api/v1/runs/{run_id}")
WORKER = Worker(
    id="w1", host="laptop", pid=4242, slot="cpu", run_id="r-running", heartbeat_at=records.NOW, is_connected=True,
    capabilities=WorkerCapabilities(device="cpu", cores=8, memory_total_bytes=16 * 10**9, memory_available_bytes=9 * 10**9),
)  # fmt: skip
VANISHED = WORKER.model_copy(update={"id": "w0", "host": "server", "run_id": "r-p8", "is_connected": False})


@router.get("/resources")
def resources(run_id: str) -> RunResources:
    if run_id == "r-queued":
        return RunResources(attempts=[], samples=[])
    place = AttemptPlace(
        attempt=1, worker="laptop:00000000:1:1", host="laptop", pid=4242, device="cpu", precision="float32",
        versions={"torch": "2.13.0"}, started_at=records.NOW, ended_at=None, outcome=None, exit_code=None, resumed_from_step=0,
    )  # fmt: skip
    gpu = {"gpu_percent": 37.0, "gpu_memory_bytes": 2**30} if run_id == "r-p8" else {}
    samples = [
        ResourceSample(
            attempt=1, time=records.NOW + timedelta(seconds=at), cpu_percent=90.0 + at, rss_bytes=400_000_000 + at,
            memory_available_bytes=2_000_000_000, disk_free_bytes=50_000_000_000, **gpu,
        )
        for at in range(0, 60, 10)
    ]  # fmt: skip
    return RunResources(attempts=[place], samples=[] if run_id == "r-failed" else samples)
