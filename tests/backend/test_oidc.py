"""Tokens of an OpenID Connect provider: a real server of keys, real RSA keys, and every way in which a token is wrong."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from tests.identity_provider import KEY, Provider

Document = dict[str, Any]
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
AUDIENCE = "incipit-api"


@pytest.fixture
def provider() -> Iterator[Provider]:
    started = Provider(AUDIENCE)
    yield started
    started.close()


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


def _me(client: TestClient, token: str) -> Any:
    return client.get("/api/v1/me", headers=with_key(token))


def test_a_valid_token_becomes_a_person_with_role_and_project(stranger: TestClient, provider: Provider) -> None:
    assert _me(stranger, provider.token(provider.good_claims())).json() == {
        "id": "oidc:ada", "role": "operator", "project_id": "lab",
    }  # fmt: skip
    several = provider.token(
        provider.good_claims(incipit_role=["viewer", "something", "admin"], aud=["other", AUDIENCE])
    )
    assert _me(stranger, several).json()["role"] == "admin"
    assert len(_me(stranger, provider.token(provider.good_claims(sub="x" * 500))).json()["id"]) <= 128
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
    good = provider.good_claims()
    wrong = {
        "another issuer": provider.token(provider.good_claims(iss="https://evil.example")),
        "another audience": provider.token(provider.good_claims(aud="another-api")),
        "no audience": provider.token(provider.good_claims(aud=None)),
        "no issuer": provider.token(provider.good_claims(iss=None)),
        "no subject": provider.token(provider.good_claims(sub=None)),
        "no end": provider.token(provider.good_claims(exp=None)),
        "expired": provider.token(provider.good_claims(exp=now - 60)),
        "not yet valid": provider.token(provider.good_claims(nbf=now + 300)),
        "another key": provider.token(good, key=OTHER_KEY),
        "an unknown key": provider.token(good, key=OTHER_KEY, kid="two"),
        "no key id": provider.token(good, kid=None),
        "unsigned": _unsigned(good),
        "signed with the public key as a secret": _signed_with_the_public_key(good),
        "tampered": provider.token(good)[:-4] + "AAAA",
        "no token": "a.b.c",
        "nothing": "x",
    }
    answers = {what: _me(stranger, token) for what, token in wrong.items()}
    assert {what: answer.status_code for what, answer in answers.items()} == dict.fromkeys(wrong, 401)
    assert len({str(answer.json() | {"instance": ""}) for answer in answers.values()}) == 1


def test_the_providers_keys_are_fetched_once(stranger: TestClient, provider: Provider) -> None:
    for _ in range(5):
        assert _me(stranger, provider.token(provider.good_claims())).status_code == 200
    for number in range(20):
        assert _me(stranger, provider.token(provider.good_claims(), kid=f"made up {number}")).status_code == 401
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
    answer = _me(stranger, provider.token(provider.good_claims(**changes)))
    assert answer.status_code == 403
    assert says in answer.json()["detail"]


def test_while_the_provider_is_down_people_are_told_and_nobody_waits(
    stranger: TestClient, provider: Provider, settings: Settings
) -> None:
    provider.close()
    began = time.monotonic()
    for _ in range(10):
        answer = _me(stranger, provider.token(provider.good_claims()))
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
        assert _me(client, provider.token(provider.good_claims())).status_code == 503


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
