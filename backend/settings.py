"""Where this installation keeps its things and how its services find each other: INCIPIT_… environment variables."""

import json
import os
import secrets
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backend.limits import Limits
from backend.store_settings import StoreSettings
from engine.locations import incipit_home

LogLevel = Literal["debug", "info", "warning", "error"]

_SECRET_BYTES = 32
_DATABASES = ("sqlite:///", "postgresql+psycopg://")
_LISTS = {
    "allowed_hosts": "incipit.example.org",
    "allowed_origins": "https://incipit.example.org",
    "webhook_networks": "10.1.0.0/16",
}
"""Settings that are JSON lists in the environment, each with an example of what stands in it."""


class Settings(BaseSettings):
    """Settings shared by API, workers and control process."""

    model_config = SettingsConfigDict(
        env_prefix="INCIPIT_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        env_ignore_empty=True,
    )

    home: Path = Field(default_factory=incipit_home)
    """Folder of the database, the run folders and the broker's state."""
    database_url: str = ""
    """`sqlite:///…` or `postgresql+psycopg://…`; empty is a SQLite file below home."""
    database_password_file: Path | None = None
    """File with the password of PostgreSQL, such as a mounted secret, in place of one in the address."""
    broker_url: str = "redis://127.0.0.1:6379/0"
    """Where Celery's doorbells go."""
    host: str = "127.0.0.1"
    """Address on which the API listens."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port on which the API listens."""
    log_level: LogLevel = "info"
    """How much is logged; at debug also each request for health and figures."""
    local_token: SecretStr | None = None
    """Bearer token of a local stack, made anew at each of its starts; only for an API on a loopback address."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Further names under which the API may be addressed (as JSON list); the loopback names are always allowed."""
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins of web pages that may change something (as JSON list), such as `https://incipit.example.org`."""

    limits: Limits = Limits()
    """How much of everything is taken; each is a setting of its own, see docs/security.md."""

    store: StoreSettings = StoreSettings()
    """Where checkpoints and token traces are kept, see docs/operations.md."""

    webhook_networks: Annotated[tuple[str, ...], NoDecode] = ()
    """Private networks that webhooks may lead into all the same (as JSON list), such as `10.1.0.0/16`."""

    oidc_issuer: str = ""
    """Issuer of an OpenID Connect provider whose tokens are accepted beside API keys; empty is none."""
    oidc_audience: str = ""
    """What a token's `aud` must name: the client id or identifier that the provider has for this API."""
    oidc_jwks_url: str = ""
    """Where the provider's keys are; empty is what its discovery document says."""
    oidc_role_claim: str = "incipit_role"
    """Claim with a role (viewer, operator, admin) or a list of roles, of which the highest counts."""
    oidc_project_claim: str = ""
    """Claim with the project; empty is that everybody belongs to the project `default`."""

    @model_validator(mode="before")
    @classmethod
    def _lists_are_json_lists(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Read here: pydantic-settings would say neither the variable nor its value, by an error that is no ValidationError."""
        texts = {name: given[name] for name in _LISTS if isinstance(given.get(name), str)}
        return given | {name: _names_in(text, name) for name, text in texts.items()}

    @model_validator(mode="after")
    def _the_local_token_stays_on_this_machine(self) -> Self:
        if not is_loopback(self.host) and self.local_token is not None:
            raise ValueError(
                f"host is {self.host!r}, which other machines can reach, but INCIPIT_LOCAL_TOKEN is for a stack on one "
                "machine; unset it, or listen on 127.0.0.1."
            )
        return self

    @model_validator(mode="after")
    def _the_store_is_complete(self) -> Self:
        problem = self.store.problem()
        if problem is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _networks_are_networks(self) -> Self:
        for network in self.webhook_networks:
            try:
                ip_network(network)
            except ValueError:
                raise ValueError(
                    f"INCIPIT_WEBHOOK_NETWORKS names {network[:50]!r}, which is no network; write one such as 10.1.0.0/16."
                ) from None
        return self

    @model_validator(mode="after")
    def _oidc_is_complete(self) -> Self:
        if bool(self.oidc_issuer) != bool(self.oidc_audience):
            missing = "INCIPIT_OIDC_AUDIENCE" if self.oidc_issuer else "INCIPIT_OIDC_ISSUER"
            raise ValueError(f"{missing} is empty but the other is not; set both, or neither.")
        for name in ("oidc_issuer", "oidc_jwks_url"):
            url = getattr(self, name)
            if url and not is_safe_url(url):
                raise ValueError(
                    f"INCIPIT_{name.upper()} is {url!r}, which others could answer for; use an https address."
                )
        return self

    @model_validator(mode="after")
    def _the_password_file_has_a_password(self) -> Self:
        path = self.database_password_file
        if path is None:
            return self
        if not self.database_url.startswith(_DATABASES[1]):
            raise ValueError(
                f"INCIPIT_DATABASE_PASSWORD_FILE is {str(path)!r}, but INCIPIT_DATABASE_URL is no PostgreSQL database, which "
                "alone has a password; unset the first, or set the second."
            )
        try:
            is_empty = not path.read_text().strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ValueError(
                f"INCIPIT_DATABASE_PASSWORD_FILE is {str(path)!r}, which cannot be read ({why}); mount the secret, and let "
                "this user read it."
            ) from None
        if is_empty:
            raise ValueError(
                f"INCIPIT_DATABASE_PASSWORD_FILE is {str(path)!r}, which is empty; write the password into it."
            )
        return self

    @model_validator(mode="after")
    def _database_is_of_a_known_kind(self) -> Self:
        url = self.database_url
        if url and (not url.startswith(_DATABASES) or ":memory:" in url):
            # The address itself is not repeated: it may hold a password.
            raise ValueError(
                f"INCIPIT_DATABASE_URL must begin with {_DATABASES[0]}FILE or {_DATABASES[1]}; correct it."
            )
        return self

    @property
    def run_dir(self) -> Path:
        """Folder with one folder per run."""
        return self.home / "runs"

    @property
    def export_dir(self) -> Path:
        """Folder with one folder per export of a checkpoint."""
        return export_dir(self.home)

    @property
    def sql_url(self) -> str:
        """The database's address with its password; the SQLite file below home unless database_url says otherwise."""
        if self.database_password_file is None:
            return self.database_url or f"sqlite:///{self.home / 'incipit.sqlite3'}"
        parts = urlsplit(self.database_url)
        user, host = parts.username or "incipit", parts.netloc.rpartition("@")[2]
        password = quote(self.database_password_file.read_text().strip(), safe="")
        return urlunsplit(parts._replace(netloc=f"{user}:{password}@{host}"))

    def signing_secret(self) -> bytes:
        """The key of signed download links: a file that only this user can read, made at the first call."""
        path = self.home / "signing_secret"
        try:
            return path.read_bytes()
        except FileNotFoundError:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Written beside and linked into place, so that two processes that start together end with one secret.
        draft = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return path.read_bytes()


def _names_in(text: str, name: str) -> list[str]:
    """What the JSON list of a setting names; raises ValueError."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        variable, example = f"INCIPIT_{name.upper()}", json.dumps([_LISTS[name]])
        raise ValueError(f"{variable} is {text[:80]!r}, which is no JSON list of texts; write one such as {example}.")
    return names


def export_dir(home: Path) -> Path:
    """The folder of all exports below INCIPIT_HOME."""
    return home / "exports"


def is_safe_url(url: str) -> bool:
    """Whether nobody between here and there can answer in its place: https, or this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    name = parts.hostname or ""
    return bool(name) and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(name)))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
