"""Credentials for tests: the token of a local stack, which may everything, and API keys."""

from backend.access import KeyCreate, Role
from backend.database import Database
from backend.queries.api_keys import create_key

TOKEN = "token-of-the-tests"
SIGNED_IN = {"Authorization": f"Bearer {TOKEN}"}


def key_of(database: Database, role: Role, project_id: str = "default", valid_days: int | None = None) -> str:
    """A fresh API key."""
    wanted = KeyCreate(name=f"{role} of the tests", role=role, project_id=project_id, valid_days=valid_days)
    with database.write() as session:
        return create_key(session, wanted, created_by="local").key


def with_key(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}
