"""Checkpoints leave by the API: whole, in parts, as a tar, by signed links; nothing else leaves with them."""

import hashlib
import io
import tarfile
import time
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update
from starlette.types import Message, Receive, Scope, Send

from backend.database import Database
from backend.records import Checkpoint
from backend.settings import Settings
from backend.signatures import signed_url
from tests.backend.checkpoints import FILES, attempt_folder, commit_checkpoint

WEIGHTS = FILES["model.safetensors"]


@pytest.fixture
def checkpoint_id(settings: Settings, database: Database, run_id: str) -> str:
    """Id of a checkpoint of the run `short · seed 0` at step 20."""
    return commit_checkpoint(database, settings.run_dir, run_id)


@pytest.fixture
def folder(settings: Settings, run_id: str) -> Path:
    """Where it lies."""
    return attempt_folder(settings.run_dir, run_id) / "checkpoints" / "step-20"


def test_checkpoints_are_listed_with_their_files(client: TestClient, run_ids: list[str], checkpoint_id: str) -> None:
    (listed,) = client.get("/api/v1/checkpoints").json()
    assert listed == client.get(f"/api/v1/checkpoints/{checkpoint_id}").json()
    assert (listed["run_name"], listed["experiment_name"], listed["step"]) == ("short · seed 0", "How short?", 20)
    assert {file["name"]: file["num_bytes"] for file in listed["files"]} == {n: len(c) for n, c in FILES.items()}
    assert client.get(f"/api/v1/runs/{run_ids[0]}/checkpoints").json() == [listed]
    assert client.get("/api/v1/checkpoints", params={"run_id": run_ids[1]}).json() == []


def test_a_file_comes_whole_with_its_sha256_as_etag(client: TestClient, checkpoint_id: str) -> None:
    address = f"/api/v1/checkpoints/{checkpoint_id}/files/model.safetensors"
    response = client.get(address)
    assert response.content == WEIGHTS
    etag = f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert response.headers["etag"] == etag
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-disposition"] == 'attachment; filename="short-seed-0-step-20-model.safetensors"'
    assert client.get(address, headers={"If-None-Match": etag}).status_code == 304
    assert client.get(f"/api/v1/checkpoints/{checkpoint_id}/files/trainer/state.json").content == b"{}"
    assert client.get(f"/api/v1/checkpoints/{checkpoint_id}/files/trainer/empty.json").content == b""
    assert client.get(f"/api/v1/checkpoints/{checkpoint_id}/files/manifest.json").json()["step"] == 20


def test_an_interrupted_download_goes_on_where_it_stopped(client: TestClient, checkpoint_id: str) -> None:
    address = f"/api/v1/checkpoints/{checkpoint_id}/files/model.safetensors"
    etag = client.get(address).headers["etag"]
    first = client.get(address, headers={"Range": "bytes=0-99999"})
    assert first.status_code == 206
    assert first.headers["content-range"] == f"bytes 0-99999/{len(WEIGHTS)}"
    rest = client.get(address, headers={"Range": "bytes=100000-", "If-Range": etag})
    assert rest.status_code == 206
    assert first.content + rest.content == WEIGHTS
    assert client.get(address, headers={"Range": "bytes=-7"}).content == WEIGHTS[-7:]
    changed = client.get(address, headers={"Range": "bytes=100000-", "If-Range": '"another"'})
    assert (changed.status_code, changed.content) == (200, WEIGHTS)


@pytest.mark.parametrize(
    "asked",
    [
        f"bytes={len(WEIGHTS)}-",
        "bytes=0-1,5-9",
        "bytes=" + ",".join(f"{at}-{at}" for at in range(101)),
        "bytes=5-2",
        "bytes=-0",
        "bytes=-",
        "bytes=a-b",
        "bytes=0-" + "9" * 30,
    ],
)
@pytest.mark.attack(18)
def test_what_is_not_one_range_inside_the_file_is_refused(client: TestClient, checkpoint_id: str, asked: str) -> None:
    address = f"/api/v1/checkpoints/{checkpoint_id}/files/model.safetensors"
    response = client.get(address, headers={"Range": asked})
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{len(WEIGHTS)}"
    assert response.headers["content-type"] == "application/problem+json"
    assert f"the file has {len(WEIGHTS)} bytes; ask for one range" in response.json()["detail"]
    # Of another file, or in a unit that is not known, it is not looked at: the whole file comes.
    for headers in ({"Range": asked, "If-Range": '"another"'}, {"Range": asked.replace("bytes", "lines")}):
        whole = client.get(address, headers=headers)
        assert (whole.status_code, whole.content) == (200, WEIGHTS)


@pytest.mark.parametrize("known", ["{etag}", "W/{etag}", '"a", {etag}', "*"])
def test_a_file_that_is_known_already_is_not_sent(client: TestClient, checkpoint_id: str, known: str) -> None:
    address = f"/api/v1/checkpoints/{checkpoint_id}/files/model.safetensors"
    etag = f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    response = client.get(address, headers={"If-None-Match": known.format(etag=etag)})
    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    other = client.get(address, headers={"If-None-Match": '"another"', "Range": "bytes=0-0"})
    assert (other.status_code, other.content) == (206, WEIGHTS[:1])


def test_the_archive_holds_every_file_and_tells_its_length(client: TestClient, checkpoint_id: str) -> None:
    response = client.get(f"/api/v1/checkpoints/{checkpoint_id}/archive")
    assert int(response.headers["content-length"]) == len(response.content)
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        content = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    manifest = content.pop("short-seed-0-step-20/manifest.json")
    assert b"model.safetensors" in manifest
    assert content == {f"short-seed-0-step-20/{name}": data for name, data in FILES.items()}


@pytest.mark.attack(1)
def test_names_outside_the_manifest_open_nothing(client: TestClient, checkpoint_id: str, folder: Path) -> None:
    (folder / "left-behind.bin").write_bytes(b"secret")
    names = [
        "left-behind.bin",
        "../../../spec.json",
        "/etc/passwd",
        "trainer",
        "trainer/",
        "",
        ".",
        "trainer/..%2fconfig.json",
    ]
    names += [
        "..%2f..%2fspec.json",
        "%2e%2e/config.json",
        "..\\config.json",
        "config.json%00",
        "CONFIG.JSON",
        "a" * 1000,
    ]
    for name in names:
        for address in (name, quote(name, safe="")):
            response = client.get(f"/api/v1/checkpoints/{checkpoint_id}/files/{address}")
            assert response.status_code in (404, 422), name
            assert b"secret" not in response.content
            assert response.headers["content-type"] == "application/problem+json"
            assert str(folder) not in response.text


@pytest.mark.attack(3)
def test_links_that_lead_out_of_the_folder_are_not_followed(
    client: TestClient, checkpoint_id: str, folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.json"
    outside.write_bytes(FILES["config.json"])
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(outside)
    assert client.get(f"/api/v1/checkpoints/{checkpoint_id}/files/config.json").status_code == 404
    assert client.get(f"/api/v1/checkpoints/{checkpoint_id}/archive").status_code == 404


def test_a_damaged_checkpoint_is_refused_by_name(client: TestClient, checkpoint_id: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"short")
    for part in ("files/model.safetensors", "archive"):
        response = client.get(f"/api/v1/checkpoints/{checkpoint_id}/{part}")
        assert response.status_code == 410
        assert f"has 5 bytes instead of {len(WEIGHTS)}" in response.json()["detail"]
    (folder / "model.safetensors").unlink()
    assert client.get(f"/api/v1/checkpoints/{checkpoint_id}/archive").status_code == 410


def test_a_removed_checkpoint_is_gone(client: TestClient, checkpoint_id: str, database: Database) -> None:
    with database.write() as session:
        session.execute(update(Checkpoint).values(removed_at=Checkpoint.created_at))
    assert client.get("/api/v1/checkpoints").json() == []
    for part in ("", "/archive", "/files/config.json"):
        assert client.get(f"/api/v1/checkpoints/{checkpoint_id}{part}").status_code == 404
    assert client.post(f"/api/v1/checkpoints/{checkpoint_id}/link").status_code == 404


def test_signed_links_work_without_credentials(client: TestClient, checkpoint_id: str) -> None:
    link = client.post(f"/api/v1/checkpoints/{checkpoint_id}/link").json()
    assert set(link["file_urls"]) == {*FILES, "manifest.json"}
    assert link["archive_url"].startswith("/api/v1/download/")
    del client.headers["Authorization"]
    assert client.get(f"/api/v1/checkpoints/{checkpoint_id}").status_code == 401
    assert client.get(link["file_urls"]["model.safetensors"]).content == WEIGHTS
    assert client.get(link["file_urls"]["trainer/state.json"], headers={"Range": "bytes=1-1"}).content == b"}"
    assert client.get(link["archive_url"]).content.startswith(b"short-seed-0-step-20/config.json\0")


def test_links_that_were_tampered_with_or_have_expired_are_refused(
    client: TestClient, checkpoint_id: str, settings: Settings
) -> None:
    url = client.post(f"/api/v1/checkpoints/{checkpoint_id}/link").json()["file_urls"]["config.json"]
    query = dict(parse_qsl(urlsplit(url).query))
    changed = [
        url.replace("config.json", "model.safetensors"),
        url.replace(f"/{checkpoint_id}/", "/another/"),
        url.replace(query["expires"], str(int(query["expires"]) + 1)),
        url.replace(query["signature"], "0" * 64),
        url.replace(query["signature"], "é"),
        signed_url(b"another secret", f"{checkpoint_id}/files/config.json", int(query["expires"])),
    ]
    for one in changed:
        response = client.get(one)
        assert response.status_code == 403, one
        assert "ask for a new link" in response.json()["detail"]
    expired = signed_url(settings.signing_secret(), f"{checkpoint_id}/files/config.json", int(time.time()) - 1)
    response = client.get(expired)
    assert response.status_code == 403
    assert "has expired" in response.json()["detail"]


def test_the_signing_secret_is_made_once_and_is_private(settings: Settings) -> None:
    first = settings.signing_secret()
    assert len(first) == 32
    assert settings.signing_secret() == first
    assert (settings.home / "signing_secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in settings.home.iterdir() if "signing" in path.name] == ["signing_secret"]


def test_a_checkpoint_is_pinned_and_unpinned(client: TestClient, checkpoint_id: str, database: Database) -> None:
    address = f"/api/v1/checkpoints/{checkpoint_id}"
    assert client.get(address).json()["pinned"] is False
    for action, pinned in (("pin", True), ("pin", True), ("unpin", False)):
        assert client.post(f"{address}/{action}").json()["pinned"] is pinned
        assert client.get(address).json()["pinned"] is pinned
    with database.write() as session:
        session.execute(update(Checkpoint).values(removed_at=Checkpoint.created_at))
    assert client.post(f"{address}/pin").status_code == 404


@pytest.mark.parametrize("part", ["archive", "files/model.safetensors"])
@pytest.mark.parametrize("is_signed", [False, True])
def test_no_transaction_is_open_while_a_body_is_sent(
    client: TestClient, checkpoint_id: str, settings: Settings, part: str, is_signed: bool
) -> None:
    address = f"/api/v1/checkpoints/{checkpoint_id}/{part}"
    if is_signed:
        address = signed_url(settings.signing_secret(), f"{checkpoint_id}/{part}", int(time.time()) + 60)
    open_connections: list[int] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def look_and_send(message: Message) -> None:
            if message["type"] == "http.response.body":
                open_connections.append(client.app.state.database.engine.pool.checkedout())  # type: ignore[attr-defined]
            await send(message)

        await client.app(scope, receive, look_and_send)

    response = TestClient(watched, base_url=str(client.base_url), headers=client.headers).get(address)
    assert (response.status_code, WEIGHTS in response.content) == (200, True)
    assert set(open_connections) == {0}
