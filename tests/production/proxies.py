"""nginx and Caddy with the examples of deploy/, whose name, ports and certificate are replaced by ones of this machine."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.production.compose_file import ROOT

NAME = "incipit.localhost"
"""Which every browser takes for this machine."""
_EXAMPLE = "incipit.example.org"


@contextmanager
def proxy(kind: str, api_port: int, dashboard_port: int, port: int, folder: Path) -> Iterator[None]:
    """A proxy at https://NAME:port for the block; `folder` gets its files and has cert.pem and key.pem."""
    command = _nginx(api_port, dashboard_port, port, folder) if kind == "nginx" else _caddy(
        api_port, dashboard_port, port, folder
    )  # fmt: skip
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (folder / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 20
            while not _listens(port):
                assert process.poll() is None, (folder / f"{kind}.log").read_text()
                assert time.monotonic() < deadline, (folder / f"{kind}.log").read_text()
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(20)


def make_certificate(folder: Path) -> None:
    """cert.pem and key.pem of NAME, signed by itself."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def program(kind: str) -> str:
    """Where it is."""
    found = shutil.which(kind, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    assert found, f"{kind} is missing; run tests/install_proxies.py"
    return found


def _nginx(api_port: int, dashboard_port: int, port: int, folder: Path) -> list[str]:
    site = _replaced(
        (ROOT / "deploy" / "nginx.conf").read_text(),
        {
            "listen 80;": f"listen 127.0.0.1:{free_port()};",
            "listen 443 ": f"listen 127.0.0.1:{port} ",
            "/etc/ssl/incipit/fullchain.pem": f"{folder}/cert.pem",
            "/etc/ssl/incipit/privkey.pem": f"{folder}/key.pem",
            "127.0.0.1:8000": f"127.0.0.1:{api_port}",
            "127.0.0.1:8501": f"127.0.0.1:{dashboard_port}",
        },
    )
    temporary = "".join(
        f"{name}_temp_path {folder}/nginx/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx").mkdir(exist_ok=True)
    user = "user root;" if os.geteuid() == 0 else ""  # the temporary folder is this user's
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{site}\n}}\n"
    )
    return [program("nginx"), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def _caddy(api_port: int, dashboard_port: int, port: int, folder: Path) -> list[str]:
    site = _replaced(
        (ROOT / "deploy" / "Caddyfile").read_text(),
        {
            f"{_EXAMPLE} {{\n": f"https://{NAME}:{port} {{\n\tbind 127.0.0.1\n\ttls {folder}/cert.pem {folder}/key.pem\n",
            "127.0.0.1:8000": f"127.0.0.1:{api_port}",
            "127.0.0.1:8501": f"127.0.0.1:{dashboard_port}",
        },
    )
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n\tauto_https disable_redirects\n\tgrace_period 1s\n}}\n{site}")
    return [program("caddy"), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def _replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"the example has no {old!r} any more"
        text = text.replace(old, new)
    return text.replace(_EXAMPLE, NAME)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
