"""A hub on this machine that speaks what huggingface_hub asks of one to send files: repositories, LFS uploads, commits.

Paths, codes and headers are those of huggingface_hub's own client code (hf_api.py, _commit_api.py, lfs.py of 2.4). No package
of today serves them.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_aTokenThatMayWrite0123456789"
OWNER = "lab"
_LARGE_BYTES = 4096


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[tuple[str, str]] = field(default_factory=lambda: [("0" * 40, "initial commit")])
    """Newest first: id and title."""


class LoopbackHub(ThreadingHTTPServer):
    """Listens on a port of its own; `repositories` is what it holds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.refuses_uploads = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self._is_known():
            return
        name, _, rest = path.removeprefix("/api/models/").partition("/commits/")
        found = self.server.repositories.get(name)
        if found is None:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif rest:
            commits = [
                {"id": id, "title": title, "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
                for id, title in found.commits
            ]
            self._answer(200, commits)
        else:
            siblings = [{"rfilename": name} for name in found.files]
            self._answer(200, {"id": name, "modelId": name, "private": found.private, "tags": [], "siblings": siblings})

    def do_PUT(self) -> None:
        content = self._body()
        if self.server.refuses_uploads:
            self._answer(507, {"error": "Private storage limit reached, please upgrade"})
            return
        oid = self.path.removeprefix("/objects/")
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self._answer(200, {})

    def do_DELETE(self) -> None:
        asked = json.loads(self._body())
        del self.server.repositories[f"{asked['organization']}/{asked['name']}"]
        self._answer(200, {})

    def do_POST(self) -> None:
        body = self._body()
        if not self._is_known():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            header = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            is_sound = isinstance(header, dict) and isinstance(header.get("tags", []), list)
            self._answer(200 if is_sound else 400, {"errors": [], "warnings": []})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{self.server.url}/objects/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif self.path.endswith("/preupload/main"):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["size"] > _LARGE_BYTES else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        else:
            self._commit(self.path.removeprefix("/api/models/").removesuffix("/commit/main"), body)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != OWNER:
            self._answer(403, {"error": f"You don't have the rights to create a model under {asked['organization']}"})
        elif name in self.server.repositories:
            self._answer(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
        else:
            self.server.repositories[name] = Repository(private=asked.get("visibility") == "private")
            self._answer(200, {"url": f"{self.server.url}/{name}", "id": name})

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.server.repositories[name]
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.objects[value["oid"]]
        title = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        oid = hashlib.sha1(body).hexdigest()
        repository.commits.insert(0, (oid, title))
        self._answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    def _is_known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        words = "Invalid credentials in Authorization header"
        self._answer(401, {"error": words}, {"X-Error-Message": words})
        return False

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(content))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
