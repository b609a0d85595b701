"""Secrets of every known form are taken out of text, and what only looks alike stays."""

from pathlib import Path

import pytest

from backend.redaction import Redaction

_REDACTION = Redaction(
    {
        "HF_TOKEN": "token-of-the-hub",
        "INCIPIT_DATABASE_URL": "postgresql+psycopg://me:pass%2Fword@db/x",
        "INCIPIT_BROKER_URL": "redis://:abc@broker:6379/0",
    }
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"/runs/incipit_{'a' * 16}_{'b' * 64}/metrics", f"/runs/incipit_{'a' * 16}_…/metrics"),
        ("/download/1?expires=2&signature=0a1b&x=1", "/download/1?expires=2&signature=…&x=1"),
        ("Authorization: Bearer abcdefghijklmnopq.rst", "Authorization: Bearer …"),
        ("token hf_abcdefghijklmnopqrstuv!", "token hf_…!"),
        ("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0xxxxxx.c2ln", "eyJ…"),
        ("postgresql://me:short@db:5432/x", "postgresql://me:…@db:5432/x"),
        ("redis://:abc@broker", "redis://:…@broker"),
        ("host=db password=short user=me", "host=db password=… user=me"),
        ('{"message": "it is pass/word or pass%2Fword"}', '{"message": "it is … or …"}'),
        ('["token-of-the-hub"]', '["…"]'),
        ("Read http://127.0.0.1:8000/docs: a bearer credential, the password", ""),
        ("INCIPIT_HOME is incipit_test, signature missing, abc", ""),
    ],
)
def test_a_secret_is_taken_out(text: str, shown: str) -> None:
    assert _REDACTION(text) == (shown or text)


def test_a_password_that_is_in_a_file_is_taken_out_too(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("pass/word\n")
    redaction = Redaction({"INCIPIT_DATABASE_PASSWORD_FILE": str(tmp_path / "password")})
    assert redaction("it is pass/word or pass%2Fword") == "it is … or …"
    assert Redaction({"INCIPIT_DATABASE_PASSWORD_FILE": str(tmp_path / "none")})("pass/word") == "pass/word"


def test_without_secrets_in_the_environment_only_known_forms_are_taken_out() -> None:
    assert Redaction({})("token-of-the-hub, hf_abcdefghijklmnopqrstuv") == "token-of-the-hub, hf_…"
