"""Calls of the API for workers."""

from urllib.parse import quote

from backend.schemas import Worker
from dashboard.api_transport import ApiTransport


class WorkerCalls(ApiTransport):
    """A part of ApiClient."""

    def workers(self) -> list[Worker]:
        return self._get("/api/v1/workers", list[Worker])

    def drain_worker(self, worker_id: str, *, requeue: bool) -> Worker:
        """Let a worker take nothing new; with `requeue` also give back what it works on."""
        return self._post(f"/api/v1/workers/{quote(worker_id, safe='')}/drain", Worker, {"requeue": requeue})

    def resume_worker(self, worker_id: str) -> Worker:
        """Let a drained worker take runs again."""
        return self._post(f"/api/v1/workers/{quote(worker_id, safe='')}/resume", Worker, None)
