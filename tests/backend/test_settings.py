"""The password of PostgreSQL from a file, and what is said when it is not to be had."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from backend.settings import Settings

_ADDRESS = "postgresql+psycopg://incipit@db:5432/incipit?connect_timeout=3"


@pytest.mark.parametrize("password", ["plain", "a%/@:?#b", " inner space "])
def test_the_password_of_a_file_becomes_that_of_the_address(home: Path, tmp_path: Path, password: str) -> None:
    path = tmp_path / "password"
    path.write_text(f"{password}\n")
    settings = Settings(home=home, database_url=_ADDRESS, database_password_file=path)
    url = make_url(settings.sql_url)
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "incipit", password.strip(), "db", 5432, "incipit",
    )  # fmt: skip
    assert dict(url.query) == {"connect_timeout": "3"}
    assert password.strip() not in repr(settings)


@pytest.mark.parametrize(
    ("content", "address", "sentence"),
    [
        (None, _ADDRESS, r"cannot be read \(No such file or directory\); mount the secret"),
        (b"\n", _ADDRESS, "which is empty; write the password into it"),
        (b"\xff\xfe", _ADDRESS, r"cannot be read \(it is no text\)"),
        (b"x", "", "is no PostgreSQL database, which alone has a password"),
    ],
)
def test_a_file_without_a_password_is_refused(
    home: Path, tmp_path: Path, content: bytes | None, address: str, sentence: str
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValidationError, match=sentence):
        Settings(home=home, database_url=address, database_password_file=path)
