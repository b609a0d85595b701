"""The proxies of deploy/ before a real API and dashboard: TLS, origins, sign-in, websocket, events as they come, large files."""

import base64
import hashlib
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from backend.access import Principal
from backend.database import Database
from backend.expansion import PlannedRun
from backend.queries.experiments import create_experiment
from tests import databases
from tests.access import key_of, with_key
from tests.api_process import ApiProcess
from tests.backend.checkpoints import commit_checkpoint
from tests.chromium import chromium
from tests.identity_provider import Provider
from tests.production.compose_file import ROOT, services
from tests.production.proxies import NAME, free_port, make_certificate, proxy
from tests.worker.runs import queue_runs, set_columns, short_spec

pytestmark = [pytest.mark.timeout(200), pytest.mark.xdist_group("proxies")]

_AUDIENCE = "dashboard-behind-a-proxy"
_BINARY = {"Content-Type": "application/octet-stream"}
_WEIGHTS = os.urandom(48 * 1024**2)


@dataclass(frozen=True)
class Site:
    """An installation behind a proxy."""

    url: str
    port: int
    folder: Path
    database: Database
    home: Path
    dashboard: subprocess.Popen[bytes]

    def client(self, key: str = "") -> httpx.Client:
        """A client that trusts the certificate, and takes the proxy's name for this machine."""
        context = ssl.create_default_context(cafile=str(self.folder / "cert.pem"))
        headers = {"Host": f"{NAME}:{self.port}", **(with_key(key) if key else {})}

        def named(request: httpx.Request) -> None:
            request.extensions["sni_hostname"] = NAME

        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}", verify=context, headers=headers, timeout=30, trust_env=False,
            event_hooks={"request": [named]},
        )  # fmt: skip


@pytest.fixture(scope="module", params=["nginx", pytest.param("caddy", marks=pytest.mark.full)])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """API and dashboard with what docker-compose.yml gives them, for a name of this machine."""
    folder, port, dashboard_port = tmp_path_factory.mktemp(request.param), free_port(), free_port()
    home = folder / "home"
    url, database_url = f"https://{NAME}:{port}", databases.sqlite_copy(home)
    make_certificate(folder)
    provider = Provider(_AUDIENCE)
    given = services(variables={"INCIPIT_NAME": NAME})
    api = ApiProcess(
        database_url,
        INCIPIT_HOME=str(home),
        INCIPIT_ALLOWED_HOSTS=given["api"].environment["INCIPIT_ALLOWED_HOSTS"],
        INCIPIT_ALLOWED_ORIGINS=given["api"].environment["INCIPIT_ALLOWED_ORIGINS"].replace(NAME, f"{NAME}:{port}"),
        INCIPIT_OIDC_ISSUER=provider.issuer,
        INCIPIT_OIDC_AUDIENCE=_AUDIENCE,
        INCIPIT_OIDC_PROJECT_CLAIM="project",
    )
    api.start()
    (folder / ".streamlit").mkdir()
    secrets = (ROOT / "deploy" / "dashboard-secrets.toml").read_text()
    for old, new in {
        "https://incipit.example.org": url,
        "https://login.example.org": provider.issuer,
        "CLIENT-ID": _AUDIENCE,
        "CLIENT-SECRET": "s",
        "64-RANDOM-CHARACTERS": "a-secret-of-32-or-more-characters-",
    }.items():
        assert old in secrets
        secrets = secrets.replace(old, new)
    (folder / ".streamlit" / "secrets.toml").write_text(secrets)
    environment = os.environ | {
        "INCIPIT_API_URL": api.url,
        "INCIPIT_PUBLIC_API_URL": url,
        "STREAMLIT_BROWSER_SERVER_ADDRESS": given["dashboard"].environment["STREAMLIT_BROWSER_SERVER_ADDRESS"],
    }
    environment.pop("INCIPIT_LOCAL_TOKEN", None)
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(ROOT / "dashboard" / "app.py"),
        "--server.headless",
        "true",
    ]
    options = [
        "--server.address",
        "127.0.0.1",
        "--server.port",
        str(dashboard_port),
        "--server.fileWatcherType",
        "none",
    ]
    dashboard = subprocess.Popen([*command, *options], env=environment, cwd=folder)
    database = Database(database_url)
    try:
        with proxy(request.param, api.port, dashboard_port, port, folder):
            found = Site(url, port, folder, database, home, dashboard)
            _await_dashboard(found)
            yield found
    finally:
        dashboard.terminate()
        dashboard.wait(20)
        api.kill()
        provider.close()
        database.close()


def _await_dashboard(site: Site) -> None:
    deadline = time.monotonic() + 60
    with site.client() as client:
        while not client.get("/_stcore/health").is_success:
            assert site.dashboard.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_api_and_dashboard_answer_over_tls_under_one_name(site: Site) -> None:
    with site.client(key_of(site.database, "viewer")) as client:
        assert client.get("/readyz").json()["database"].startswith("sqlite")
        answer = client.get("/api/v1/runs")
        assert answer.status_code == 200
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert "streamlit" in client.get("/").text.lower()
        assert client.get("/metrics").text.startswith("<"), (
            "figures are not for the outside: this is a page of the dashboard"
        )
        assert "database" not in client.get("/readyz", headers={"Host": "evil.example"}).text
    with (
        httpx.Client(trust_env=False) as stranger,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        stranger.get(f"https://127.0.0.1:{site.port}", extensions={"sni_hostname": NAME})


def test_pages_of_the_name_may_change_things_and_others_may_not(site: Site) -> None:
    body = {"name": "q", "base": short_spec().model_dump(mode="json")}
    with site.client(key_of(site.database, "operator")) as client:
        for origin, status in ((site.url, 201), ("https://evil.example", 403), (f"http://{NAME}:{site.port}", 403)):
            claimed = {"Origin": origin, "X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil.example"}
            assert client.post("/api/v1/experiments", json=body, headers=claimed).status_code == status, origin


def test_events_come_as_they_happen(site: Site) -> None:
    (run_id,) = queue_runs(site.database, short_spec())
    with (
        site.client(key_of(site.database, "viewer")) as client,
        client.stream("GET", f"/api/v1/runs/{run_id}/stream") as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in stream.iter_lines() if '"step"' in line)
        assert '"step":0' in next(lines).replace(" ", "")
        changed_at = time.monotonic()
        set_columns(site.database, run_id, last_step=3, row_version=99)
        assert '"step":3' in next(lines).replace(" ", "")
        assert time.monotonic() - changed_at < 5, "the API looks once a second"


def test_a_large_file_arrives_whole_goes_on_and_is_not_kept_by_the_proxy(site: Site) -> None:
    (run_id,) = queue_runs(site.database, short_spec())
    contents = {"model.safetensors": _WEIGHTS}
    checkpoint_id = commit_checkpoint(site.database, site.home / "runs", run_id, contents=contents)
    address = f"/api/v1/checkpoints/{checkpoint_id}/files/model.safetensors"
    with site.client(key_of(site.database, "viewer")) as client:
        digest, kept = hashlib.sha256(), 0
        with client.stream("GET", address) as response:
            assert response.headers["content-length"] == str(len(_WEIGHTS))
            for chunk in response.iter_bytes(1024**2):
                digest.update(chunk)
                kept = max(
                    kept, sum(path.stat().st_size for path in (site.folder / "nginx").rglob("*") if path.is_file())
                )
        assert digest.hexdigest() == hashlib.sha256(_WEIGHTS).hexdigest()
        assert kept == 0
        rest = client.get(address, headers={"Range": "bytes=50000000-"})
        assert (rest.status_code, rest.content) == (206, _WEIGHTS[50_000_000:])
        link = client.post(f"/api/v1/checkpoints/{checkpoint_id}/link").raise_for_status().json()["archive_url"]
    with site.client() as anybody:
        assert len(anybody.get(link).raise_for_status().content) > len(_WEIGHTS)


def test_an_upload_passes_to_the_api_which_judges_it(site: Site) -> None:
    with site.client() as client:
        assert client.post("/api/v1/prompt-files", content=b"x" * 150 * 1024**2).status_code == 401
    with site.client(key_of(site.database, "operator")) as client:
        content = b"".join(b'{"prompt": "%09d+1"}\n' % number for number in range(200_000))
        made = client.post(
            "/api/v1/prompt-files", params={"name": "sums.jsonl", "prompt": "prompt"}, content=content, headers=_BINARY
        )
        assert made.status_code == 201, made.text
        assert made.json()["num_rows"] == 200_000


@pytest.mark.parametrize(("origin", "status"), [(f"https://{NAME}", 101), ("https://evil.example", 403)])
def test_the_websocket_of_the_dashboard_passes_for_its_own_pages(site: Site, origin: str, status: int) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    request = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {NAME}:{site.port}\r\nOrigin: {origin}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
    context = ssl.create_default_context(cafile=str(site.folder / "cert.pem"))
    with (
        socket.create_connection(("127.0.0.1", site.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as secured,
    ):
        secured.sendall(request.encode())
        assert secured.recv(4096).split()[1] == str(status).encode()


def test_a_person_signs_in_at_the_provider_through_the_proxy(site: Site) -> None:
    with site.database.write() as session:
        planned = [PlannedRun(variant="", note="", spec=short_spec(name="run-of-lab"))]
        create_experiment(session, "q", "", planned, owner=Principal(id="key:x", role="operator", project_id="lab"))
    with chromium() as browser:
        page = browser.new_context(ignore_https_errors=True).new_page()
        page.goto(site.url)
        page.get_by_role("button", name="Sign in with your organisation").click(timeout=60_000)
        expect(page.get_by_text("operator · lab")).to_be_visible(timeout=60_000)
        expect(page.get_by_text("run-of-lab").first).to_be_visible(timeout=60_000)
        assert page.url.startswith(site.url)
