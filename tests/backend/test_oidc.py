"""Tokens of an OpenID Connect provider: a real server of keys, real RSA keys, and every way in which a token is wrong."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi.testclient import TestClient
from pydantic import ValidationError

from backend.app import create_app
from backend.settings import Settings
from tests import databases
from tests.access import with_key
from tests.backend.conftest import ADDRESS

Document = dict[str, Any]
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
AUDIENCE = "incipit-api"


class Provider:
    """An identity provider on this machine: its discovery document and its keys; it counts who asks for them."""

    def __init__(self) -> None:
        provider = self
        self.asked: list[str] = []
        self.keys = {"one": KEY.public_key()}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked.append(self.path)
                body = json.dumps(provider.document(self.path)).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def document(self, path: str) -> Document:
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"}
        as_jwk = jwt.algorithms.RSAAlgorithm.to_jwk
        return {"keys": [{**as_jwk(key, as_dict=True), "kid": kid, "use": "sig"} for kid, key in self.keys.items()]}


@pytest.fixture
def provider() -> Iterator[Provider]:
    started = Provider()
    yield started
    started.server.shutdown()
    started.server.server_close()


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: tokens are not looked up in it."""
    return databases.sqlite_copy(home)


@pytest.fixture
def stranger(settings: Settings, provider: Provider) -> Iterator[TestClient]:
    """The API that trusts the provider, asked without any credential."""
    trusting = {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_project_claim": "project"}
    app = create_app(settings.model_copy(update=trusting))
    with TestClient(app, base_url=ADDRESS, raise_server_exceptions=False) as opened:
        yield opened


def _claims(provider: Provider, **changes: object) -> Document:
    now = int(time.time())
    good = {
        "iss": provider.issuer,
        "aud": AUDIENCE,
        "sub": "ada",
        "exp": now + 600,
        "nbf": now - 10,
        "incipit_role": "operator",
        "project": "lab",
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def _token(claims: Document, *, key: Any = KEY, kid: str | None = "one", algorithm: str = "RS256") -> str:
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else {})


def _me(client: TestClient, token: str) -> Any:
    return client.get("/api/v1/me", headers=with_key(token))


def test_a_valid_token_becomes_a_person_with_role_and_project(stranger: TestClient, provider: Provider) -> None:
    assert _me(stranger, _token(_claims(provider))).json() == {
        "id": "oidc:ada", "role": "operator", "project_id": "lab",
    }  # fmt: skip
    several = _token(_claims(provider, incipit_role=["viewer", "something", "admin"], aud=["other", AUDIENCE]))
    assert _me(stranger, several).json()["role"] == "admin"
    assert len(_me(stranger, _token(_claims(provider, sub="x" * 500))).json()["id"]) <= 128
    assert stranger.get("/api/v1/runs", headers=with_key(several)).json()["items"] == []


def _unsigned(claims: Document) -> str:
    return _by_hand({"alg": "none", "kid": "one"}, claims, lambda _: b"")


def _signed_with_the_public_key(claims: Document) -> str:
    pem = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return _by_hand({"alg": "HS256", "kid": "one"}, claims, lambda text: hmac.digest(pem, text, hashlib.sha256))


def _by_hand(header: Document, claims: Document, sign: Any) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in (header, claims)]
    text = b".".join(parts)
    return (text + b"." + base64.urlsafe_b64encode(sign(text)).rstrip(b"=")).decode()


def test_every_wrong_token_is_refused_with_the_same_words(stranger: TestClient, provider: Provider) -> None:
    now = int(time.time())
    good = _claims(provider)
    wrong = {
        "another issuer": _token(_claims(provider, iss="https://evil.example")),
        "another audience": _token(_claims(provider, aud="another-api")),
        "no audience": _token(_claims(provider, aud=None)),
        "no issuer": _token(_claims(provider, iss=None)),
        "no subject": _token(_claims(provider, sub=None)),
        "no end": _token(_claims(provider, exp=None)),
        "expired": _token(_claims(provider, exp=now - 60)),
        "not yet valid": _token(_claims(provider, nbf=now + 300)),
        "another key": _token(good, key=OTHER_KEY),
        "an unknown key": _token(good, key=OTHER_KEY, kid="two"),
        "no key id": _token(good, kid=None),
        "unsigned": _unsigned(good),
        "signed with the public key as a secret": _signed_with_the_public_key(good),
        "tampered": _token(good)[:-4] + "AAAA",
        "no token": "a.b.c",
        "nothing": "x",
    }
    answers = {what: _me(stranger, token) for what, token in wrong.items()}
    assert {what: answer.status_code for what, answer in answers.items()} == dict.fromkeys(wrong, 401)
    assert len({str(answer.json() | {"instance": ""}) for answer in answers.values()}) == 1


def test_the_providers_keys_are_fetched_once(stranger: TestClient, provider: Provider) -> None:
    for _ in range(5):
        assert _me(stranger, _token(_claims(provider))).status_code == 200
    for number in range(20):
        assert _me(stranger, _token(_claims(provider), kid=f"made up {number}")).status_code == 401
    assert provider.asked == ["/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"incipit_role": None}, "names none of viewer, operator, admin; ask an admin."),
        ({"incipit_role": "root"}, "names none of viewer, operator, admin; ask an admin."),
        ({"project": None}, "has no project here: see its claim 'project'"),
        ({"project": ["lab"]}, "has no project here: see its claim 'project'"),
        ({"project": "No Project"}, "has no project here: see its claim 'project'"),
    ],
)
def test_a_person_without_role_or_project_may_nothing(
    stranger: TestClient, provider: Provider, changes: Document, says: str
) -> None:
    answer = _me(stranger, _token(_claims(provider, **changes)))
    assert answer.status_code == 403
    assert says in answer.json()["detail"]


def test_while_the_provider_is_down_people_are_told_and_nobody_waits(
    stranger: TestClient, provider: Provider, settings: Settings
) -> None:
    provider.server.shutdown()
    provider.server.server_close()
    began = time.monotonic()
    for _ in range(10):
        answer = _me(stranger, _token(_claims(provider)))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
    assert time.monotonic() - began < 5
    assert settings.local_token is not None
    assert _me(stranger, settings.local_token.get_secret_value()).status_code == 200


def test_a_discovery_document_of_somebody_else_is_not_believed(
    settings: Settings, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        provider, "document", lambda _: {"issuer": "https://evil.example", "jwks_uri": "https://evil.example"}
    )
    app = create_app(settings.model_copy(update={"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE}))
    with TestClient(app, base_url=ADDRESS) as client:
        assert _me(client, _token(_claims(provider))).status_code == 503


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"oidc_issuer": "https://id.example"}, "INCIPIT_OIDC_AUDIENCE is empty but the other is not"),
        ({"oidc_audience": "x"}, "INCIPIT_OIDC_ISSUER is empty but the other is not"),
        ({"oidc_issuer": "http://id.example", "oidc_audience": "x"}, "use an https address"),
        ({"oidc_jwks_url": "file:///etc/passwd"}, "use an https address"),
    ],
)
def test_settings_that_would_not_be_safe_are_refused(home: Path, given: Document, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Settings(home=home, **given)
