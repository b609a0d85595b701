"""Uploaded prompts: stored whole or not at all, named by what they hold, of one project, and there as long as a run reads them."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.database import Database
from backend.limits import Limits
from backend.settings import Settings
from engine.uploaded_prompts import file_sha256, upload_folder, upload_path
from tests.access import SIGNED_IN, TOKEN, key_of, with_key
from tests.api_process import ApiProcess
from tests.backend.conftest import ADDRESS
from worker.upload_garbage import UploadGarbage

URL = "/api/v1/prompt-files"
TYPE = {"Content-Type": "application/octet-stream"}
CSV = b'question,result\n2+3=,5\n"a ""b"",\nc",7\n'
QA = {"name": "q.csv", "prompt": "question", "answer": "result"}


def send(
    client: TestClient, content: bytes | Iterator[bytes] = CSV, *, path: str = "", key: str = "", **params: str
) -> Any:
    headers = TYPE | (with_key(key) if key else {})
    return client.post(path or URL, content=content, params=params or QA, headers=headers)


def refusal(response: Any, status: int) -> str:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), (
        response.text
    )
    sentence: str = response.json()["detail"]
    return sentence


def files_in(settings: Settings) -> list[Path]:
    folder = upload_folder(settings.home)
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_file_is_looked_at_and_nothing_is_kept(client: TestClient, settings: Settings) -> None:
    found = send(client, path="/api/v1/prompt-looks", name="q.csv").json()
    assert found == {
        "columns": ["question", "result"],
        "first": [{"question": "2+3=", "result": "5"}, {"question": 'a "b",\nc', "result": "7"}],
        "guess": {"prompt": "question"},
    }
    assert files_in(settings) == []


def test_a_file_is_stored_listed_and_deleted(client: TestClient, settings: Settings, database: Database) -> None:
    made = send(client)
    assert made.status_code == 201
    stored = made.json()
    assert client.get(made.headers["location"]).json() == stored
    assert client.get(URL).json() == [stored]
    assert (stored["name"], stored["num_rows"], stored["num_runs"]) == ("q.csv", 2, 0)
    assert stored["reference"] == f"upload:{stored['sha256']}"
    path = upload_path(settings.home, stored["sha256"])
    assert files_in(settings) == [path]
    assert (path.stat().st_mode & 0o777, file_sha256(path)) == (0o600, stored["sha256"])
    again = send(client, name="other.csv", prompt="question", answer="result")
    assert (again.status_code, again.json()["id"]) == (200, stored["id"])
    garbage = UploadGarbage(database, settings.home, min_age_seconds=0)
    assert garbage.turn() == 0
    assert client.delete(f"{URL}/{stored['id']}").json() == stored
    assert client.delete(f"{URL}/{stored['id']}").status_code == client.get(f"{URL}/{stored['id']}").status_code == 404
    assert UploadGarbage(database, settings.home).turn() == 0  # it is young: somebody may be sending it again
    assert UploadGarbage(database, settings.home, min_age_seconds=0).turn() == 1
    assert files_in(settings) == []


def test_what_an_upload_that_was_cut_off_has_left_goes_after_a_day(settings: Settings, database: Database) -> None:
    upload_folder(settings.home).mkdir()
    left = upload_folder(settings.home) / ".incoming-0123.csv"
    left.write_text("x")
    assert UploadGarbage(database, settings.home).turn() == 0
    os.utime(left, (time.time() - 90_000,) * 2)
    assert UploadGarbage(database, settings.home).turn() == 1


def test_a_run_keeps_its_prompts(client: TestClient, base: dict[str, Any]) -> None:
    stored = send(client).json()
    spec = base | {"prompts": {"path": stored["reference"]}}
    asked = client.post("/api/v1/preflights", json=spec)
    assert asked.status_code == 201
    assert "A check or an analysis reads 'q.csv'" in refusal(client.delete(f"{URL}/{stored['id']}"), 409)
    made = client.post("/api/v1/experiments", json={"name": "q", "base": spec, "seeds": [0, 1]})
    assert made.status_code == 201
    (run, _) = client.get("/api/v1/runs").json()["items"]
    assert client.post(f"/api/v1/runs/{run['id']}/clone").status_code == 201
    assert client.get(URL).json()[0]["num_runs"] == 3
    assert refusal(client.delete(f"{URL}/{stored['id']}"), 409).startswith(
        "3 runs read 'q.csv', which therefore stays;"
    )


def test_a_spec_that_names_no_upload_of_the_project_is_refused_at_its_field(
    client: TestClient, base: dict[str, Any]
) -> None:
    reference = f"upload:{'0' * 64}"
    spec = base | {"evaluation": {"path": reference}}
    for path, body in (("experiments", {"name": "q", "base": spec}), ("preflights", spec), ("analyses", {"run": spec})):
        response = client.post(f"/api/v1/{path}", json=body)
        assert refusal(response, 422).startswith(
            f"evaluation.path is '{reference}', but this project has no such upload;"
        )
        assert [one["field"] for one in response.json()["errors"]] == ["evaluation.path"]
    assert client.get("/api/v1/runs").json()["items"] == []


def test_a_project_sees_its_own_uploads_alone(client: TestClient, database: Database, base: dict[str, Any]) -> None:
    mine, theirs = (key_of(database, "operator", project) for project in ("a", "b"))
    stored = send(client, key=mine).json()
    assert client.get(URL, headers=with_key(theirs)).json() == []
    assert client.delete(f"{URL}/{stored['id']}", headers=with_key(theirs)).status_code == 404
    body = {"name": "q", "base": base | {"prompts": {"path": stored["reference"]}}}
    assert client.post("/api/v1/experiments", json=body, headers=with_key(theirs)).status_code == 422
    # The same content is a row of its own there.
    assert send(client, key=theirs).status_code == 201
    assert client.post("/api/v1/experiments", json=body, headers=with_key(theirs)).status_code == 201
    assert client.get(URL, headers=with_key(mine)).json() == [stored]
    assert client.delete(f"{URL}/{stored['id']}", headers=with_key(mine)).status_code == 200


def test_bad_rows_are_named_and_nothing_is_stored(client: TestClient, settings: Settings) -> None:
    content = b'{"q": "x", "a": "1"}\n{"question": "y"}\n{"q": ""}\n'
    response = send(client, content, name="p.jsonl", prompt="q")
    assert refusal(response, 422) == (
        'Line 2: column "q" is missing; found "question"; choose the prompt column among them. (1 more in errors)'
    )
    assert [one["message"][:7] for one in response.json()["errors"]] == ["Line 2:", "Line 3:"]
    assert client.get(URL).json() == []
    assert files_in(settings) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"name": "q.xlsx", "prompt": "q"}, "name is 'q.xlsx', which ends with none of .jsonl, .ndjson, .json, .csv, .parquet;"),
        ({"name": "../q.csv", "prompt": "q"}, "name is '../q.csv', which has characters"),
        ({"name": "q.csv"}, "neither prompt nor messages is given"),
        ({"name": "q.csv", "prompt": "q", "promt": "q"}, "promt is not a field"),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly_is_refused_before_the_file_is_read(
    client: TestClient, params: dict[str, str], sentence: str
) -> None:
    assert sentence in refusal(send(client, **params), 422)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_only_a_file_as_it_is_is_taken(client: TestClient) -> None:
    for kind in ("application/json", "text/csv", "multipart/form-data; boundary=x"):
        response = client.post(URL, params=QA, content=CSV, headers={"Content-Type": kind})
        assert refusal(response, 415).endswith("send the file as it is, as application/octet-stream.")
    assert refusal(send(client, b""), 422) == "The file is empty; send one with at least one prompt."


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_packed_file_is_not_unpacked_beyond_its_limit(settings: Settings, tmp_path: Path) -> None:
    # A dictionary of one text of 1 MB, named 4,000 times: 4 GB in 1 MB.
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 4000), ["x" * 1_000_000])
    pq.write_table(pa.table({"q": texts}), tmp_path / "bomb.parquet")
    content = (tmp_path / "bomb.parquet").read_bytes()
    assert len(content) < 1_000_000
    with opened(settings, upload_stored_bytes=1_000_000) as client:
        said = refusal(send(client, content, name="bomb.parquet", prompt="q"), 422)
        assert "limit" in said
        assert client.get(URL).json() == []
    assert files_in(settings) == []


def opened(settings: Settings, **limits: float) -> TestClient:
    app = create_app(settings.model_copy(update={"limits": Limits.model_validate(limits)}))
    return TestClient(app, base_url=ADDRESS, headers=SIGNED_IN, raise_server_exceptions=False)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_bytes_rows_files_and_uploads_at_once_have_limits(settings: Settings) -> None:
    rows = b'{"q": "x"}\n' * 100
    with opened(settings, upload_bytes=1100, upload_rows=100, uploads=1) as client:
        for extra, status in ((b"", 201), (b"\n", 413)):
            response = send(client, iter([rows, extra]), name="p.jsonl", prompt="q")
            assert response.status_code == status
        assert refusal(response, 413) == "The file is larger than 1100 bytes, which is the limit; split it."
        places = client.app.state.upload_places  # type: ignore[attr-defined]
        places.num_open = 1
        response = send(client)
        assert refusal(response, 503).startswith("1 files are being taken in, as many as one API process does at once;")
        assert response.headers["retry-after"] == "5"
        places.num_open = 0
        assert refusal(send(client, b'{"q":1}\n' * 101, name="p.jsonl", prompt="q"), 422)
    with opened(settings, upload_rows=99, prompt_files=1) as client:
        assert "The file has more than 99 rows" in refusal(send(client, rows, name="p.jsonl", prompt="q"), 422)
        assert refusal(send(client), 409).startswith("The project has 1 files of prompts, as many as it may;")
        assert send(client, rows[:-11], name="p.jsonl", prompt="q").status_code == 409
    assert len(files_in(settings)) <= 3  # of the refused ones the garbage collector takes what was written


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_upload_that_does_not_arrive_in_time_is_given_up(settings: Settings) -> None:
    def slowly() -> Iterator[bytes]:
        yield CSV
        time.sleep(1.5)
        yield b"x,1\n"

    process = ApiProcess(settings.database_url, INCIPIT_LOCAL_TOKEN=TOKEN, INCIPIT_LIMITS__UPLOAD_SECONDS="0.5")
    process.start()
    try:
        response = httpx.post(
            process.url + URL, content=slowly(), params=QA, headers=TYPE | SIGNED_IN, trust_env=False
        )  # fmt: skip
    finally:
        process.kill()
    assert refusal(response, 503).startswith("The file had not arrived after 0.5 s, which is the limit;")
    assert files_in(settings) == []
