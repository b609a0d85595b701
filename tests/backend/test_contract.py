"""What the API answers is what its OpenAPI document says, whatever is asked, for both kinds of credential.

schemathesis asks a real process, with all its checks: wrong data is refused and right data taken, methods and headers are
those of the document, no operation forgets to ask for a credential, what was made is there. What is left out stands in
schemathesis.toml, with the reason.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from sqlalchemy import select

from backend.alert_records import Alert
from backend.database import Database
from backend.queries.raising import raise_ending
from backend.settings import Settings
from tests import databases
from tests.access import TOKEN, key_of, with_key
from tests.api_process import ApiProcess
from tests.backend.checkpoints import commit_checkpoint

Mode = Literal["local token", "API key"]


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: the queries behind it are tested on both."""
    return databases.sqlite_copy(home)


@pytest.fixture(params=["local token", "API key"])
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


@pytest.fixture
def credential(mode: Mode, database: Database) -> str:
    return TOKEN if mode == "local token" else key_of(database, "admin")


@pytest.fixture
def api(mode: Mode, credential: str, database_url: str) -> Iterator[ApiProcess]:
    """The API; with API keys there is no local token."""
    assert credential, "made before the API starts, which has nobody to answer without"
    environment = {"INCIPIT_LOCAL_TOKEN": TOKEN} if mode == "local token" else {}
    process = ApiProcess(database_url, **environment)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def config(
    api: ApiProcess, credential: str, settings: Settings, database: Database, base: dict[str, Any], tmp_path: Path
) -> Path:
    """The configuration of schemathesis, with the ids of one of everything."""
    with httpx.Client(base_url=f"{api.url}/api/v1", headers=with_key(credential), trust_env=False) as client:
        experiment = client.post("/experiments", json={"name": "q", "base": base}).json()["id"]
        (run,) = client.get(f"/experiments/{experiment}/runs").json()
        ids = {
            "run_id": run["id"],
            "experiment_id": experiment,
            "checkpoint_id": commit_checkpoint(database, settings.run_dir, run["id"]),
            "export_id": _export(client, run["id"]),
            "preflight_id": client.post("/preflights", json=base).json()["id"],
            "analysis_id": client.post("/analyses", json={"run": base}).json()["id"],
            "question_id": client.post("/playground/questions", json=_question(run["id"])).json()["id"],
            "row": "0",
            "key_id": client.post("/keys", json={"name": "ci"}).json()["id"],
            "prompt_file_id": _upload(client),
            "webhook_id": client.post("/webhooks", json={"name": "w", "url": "https://example.org/"}).json()["id"],
            "alert_id": _alert(database, run["id"]),
            "name": "model.safetensors",
        }
    lines = ["[parameters]", *(f'"path.{name}" = "{value}"' for name, value in ids.items()), ""]
    path = tmp_path / "schemathesis.toml"
    path.write_text("\n".join(lines) + (Path(__file__).parent / "schemathesis.toml").read_text())
    return path


def _question(run_id: str) -> dict[str, Any]:
    return {"run_id": run_id, "prompt": "k3", "speakers": [{"kind": "base"}]}


def _export(client: httpx.Client, run_id: str) -> str:
    """The id of a queued export of the run's checkpoint."""
    (checkpoint,) = client.get("/checkpoints", params={"run_id": run_id}).json()
    body = {"checkpoint_id": checkpoint["id"], "export": {"kind": "merged"}}
    id: str = client.post("/exports", json=body).json()["id"]
    return id


def _alert(database: Database, run_id: str) -> str:
    """The id of an alert."""
    with database.write() as session:
        raise_ending(session, run_id, "failed", "1", "It broke.")
        return session.scalars(select(Alert.id)).one()


def _upload(client: httpx.Client) -> str:
    """The id of an uploaded file of prompts."""
    file, kind = b'{"q": "2+3="}', {"Content-Type": "application/octet-stream"}
    made = client.post("/prompt-files", params={"name": "p.jsonl", "prompt": "q"}, content=file, headers=kind)
    return str(made.json()["id"])


def assert_contract_is_kept(api: ApiProcess, credential: str, config: Path, *options: str) -> None:
    """schemathesis finds nothing; without --checks it uses all of them."""
    command = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config), "run"]
    named = ["--header", f"Authorization: Bearer {credential}", "--generation-deterministic", "--no-color"]
    done = subprocess.run(
        [*command, f"{api.url}/api/v1/openapi.json", *named, *options],
        env=os.environ | {"NO_PROXY": "*"},
        cwd=config.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]


def test_every_operation_keeps_its_contract(api: ApiProcess, mode: Mode, credential: str, config: Path) -> None:
    if mode == "local token":
        # Every parameter, header and method; the many of a spec are left to the test below.
        with_spec = ("create_experiment", "create_preflight", "create_analysis", "estimate_run")
        left_out = [word for name in with_spec for word in ("--exclude-operation-id", name)]
        assert_contract_is_kept(api, credential, config, "--phases", "coverage", *left_out)
    else:
        phases = "examples,fuzzing,stateful"
        assert_contract_is_kept(api, credential, config, "--phases", phases, "--max-examples", "3")


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_operation_keeps_its_contract_in_every_phase(api: ApiProcess, credential: str, config: Path) -> None:
    phases = "examples,coverage,fuzzing,stateful"
    assert_contract_is_kept(api, credential, config, "--phases", phases, "--max-examples", "50")
