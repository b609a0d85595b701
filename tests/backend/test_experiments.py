"""Experiments are created whole or not at all, with the same words for a bad spec as everywhere."""

import time
from copy import deepcopy
from typing import Any

from fastapi.testclient import TestClient

from backend.database import Database
from tests.backend.recorded import stored_counts

Document = dict[str, Any]


def test_each_variant_runs_once_with_each_seed(client: TestClient, base: Document) -> None:
    body = {
        "name": "How short may the prefix be?",
        "base": base,
        "variants": [
            {"name": "prefix 8", "note": "short"},
            {"name": "full", "changes": {"prefix": {"kind": "full"}, "optimizer.learning_rate": 0.001}},
        ],
        "seeds": [3, 5],
    }
    response = client.post("/api/v1/experiments", json=body)
    assert response.status_code == 201, response.text
    experiment = response.json()
    assert response.headers["location"] == f"/api/v1/experiments/{experiment['id']}"
    assert (experiment["num_runs"], experiment["num_active"]) == (4, 4)
    assert client.get(response.headers["location"]).json() == experiment

    runs = client.get(f"/api/v1/experiments/{experiment['id']}/runs").json()
    assert [(run["name"], run["variant"], run["seed"], run["prefix"]) for run in runs] == [
        ("prefix 8 · seed 3", "prefix 8", 3, "8"),
        ("prefix 8 · seed 5", "prefix 8", 5, "8"),
        ("full · seed 3", "full", 3, "full"),
        ("full · seed 5", "full", 5, "full"),
    ]
    assert {run["state"] for run in runs} == {"queued"}
    spec = client.get(f"/api/v1/runs/{runs[2]['id']}").json()["spec"]
    assert spec["prefix"] == {"kind": "full"}
    assert spec["optimizer"]["learning_rate"] == 0.001
    assert spec["seed"] == 3
    assert spec["student"].items() >= base["student"].items()


def test_without_variants_and_seeds_the_base_runs_as_it_is(client: TestClient, base: Document) -> None:
    experiment = client.post("/api/v1/experiments", json={"name": "one", "base": base | {"seed": 7}}).json()
    (run,) = client.get(f"/api/v1/experiments/{experiment['id']}/runs").json()
    assert (run["name"], run["variant"], run["seed"]) == ("base", "", 7)


def test_one_bad_variant_stores_nothing_and_is_named(client: TestClient, database: Database, base: Document) -> None:
    body = {
        "name": "question",
        "base": base,
        "variants": [{"name": "good"}, {"name": "too long", "changes": {"prefix.tokens": 500}}, {"name": "also good"}],
        "seeds": [0, 1],
    }
    response = client.post("/api/v1/experiments", json=body)
    assert response.status_code == 422
    (finding,) = response.json()["errors"]
    assert finding["field"] == "too long.prefix.tokens"
    assert finding["message"].startswith("prefix.tokens is 500 but max_completion_tokens is 224;")
    assert stored_counts(database) == (0, 0)


def test_the_base_itself_is_never_changed_by_a_variant(client: TestClient, base: Document) -> None:
    before = deepcopy(base)
    variants = [{"name": "a", "changes": {"evaluation.every_steps": 3}}, {"name": "b"}]
    experiment = client.post("/api/v1/experiments", json={"name": "q", "base": base, "variants": variants}).json()
    runs = client.get(f"/api/v1/experiments/{experiment['id']}/runs").json()
    specs = [client.get(f"/api/v1/runs/{run['id']}").json()["spec"] for run in runs]
    assert [spec["evaluation"]["every_steps"] for spec in specs] == [3, 20]
    assert base == before


def test_submitting_does_not_wait_for_a_broker_that_is_down(client: TestClient, base: Document) -> None:
    began = time.monotonic()
    for _ in range(5):
        assert client.post("/api/v1/experiments", json={"name": "q", "base": base}).status_code == 201
    assert time.monotonic() - began < 2.0
    assert client.get("/readyz").json()["broker"] == "down"


def test_experiments_are_listed_newest_first(client: TestClient, base: Document) -> None:
    for name in ("first", "second", "third"):
        client.post("/api/v1/experiments", json={"name": name, "base": base})
    assert [one["name"] for one in client.get("/api/v1/experiments").json()] == ["third", "second", "first"]
