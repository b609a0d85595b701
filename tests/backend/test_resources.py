"""Where a run's attempts ran and what they used, asked of the API."""

from fastapi.testclient import TestClient

from backend.database import Database
from backend.queries.claims import claim_run
from backend.queries.resources import add_sample
from backend.resources import ResourceFigures


def test_attempts_come_with_their_place_and_samples_with_their_time(
    client: TestClient, database: Database, run_id: str
) -> None:
    address = f"/api/v1/runs/{run_id}/resources"
    assert client.get(address).json() == {"attempts": [], "samples": []}
    with database.write() as session:
        claimed = claim_run(session, owner="laptop:00000000:1:1", host="laptop", boot_id="00000000")
        assert claimed is not None
        add_sample(session, run_id, claimed.fence, ResourceFigures(cpu_percent=150.0, rss_bytes=2**40))
    found = client.get(address).json()
    (attempt,), (sample,) = found["attempts"], found["samples"]
    assert (attempt["attempt"], attempt["worker"], attempt["host"]) == (1, "laptop:00000000:1:1", "laptop")
    assert (attempt["device"], attempt["versions"], attempt["outcome"]) == (None, {}, None)
    assert (sample["attempt"], sample["cpu_percent"], sample["rss_bytes"], sample["gpu_percent"]) == (
        1,
        150.0,
        2**40,
        None,
    )
    assert client.get("/api/v1/runs/nothing/resources").status_code == 404
