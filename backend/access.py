"""Who asks, and what they may do: roles, principals, API keys as the API tells of them."""

from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import Field

from engine.frozen import Frozen

Role = Literal["viewer", "operator", "admin"]
"""Each may do what those before it may: viewers read, operators start and stop, admins make keys."""

ALL_PROJECTS = "*"
DEFAULT_PROJECT = "default"

KeyName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Project = Annotated[str, Field(pattern=r"^(\*|[a-z0-9][a-z0-9_.-]{0,63})$")]


class Principal(Frozen):
    """Who a request comes from."""

    id: Annotated[str, Field(max_length=128)]
    """`local` for who holds the local stack's token, `key:ID` for an API key, `oidc:SUBJECT` for a person."""
    role: Role
    project_id: str
    """The project whose things it sees; `*` is all of them."""

    def may(self, role: Role) -> bool:
        """Whether its role includes another."""
        return get_args(Role).index(self.role) >= get_args(Role).index(role)

    @property
    def is_admin_of_all(self) -> bool:
        """Whether it may change what serves every project, such as workers."""
        return self.role == "admin" and self.project_id == ALL_PROJECTS

    @property
    def home_project(self) -> str:
        """The project in which it makes things."""
        return DEFAULT_PROJECT if self.project_id == ALL_PROJECTS else self.project_id


LOCAL = Principal(id="local", role="admin", project_id=ALL_PROJECTS)


class KeyCreate(Frozen):
    """An API key to be made."""

    name: KeyName
    """What it is for, or whose it is."""
    role: Role = "viewer"
    """viewer reads, operator also starts and stops, admin also makes keys."""
    project_id: Project = DEFAULT_PROJECT
    """The project whose things it sees; `*` is all of them."""
    valid_days: Annotated[int, Field(ge=1, le=3650)] | None = None
    """Days until it expires; empty means never."""


class ApiKey(Frozen):
    """An API key without its secret, which is not stored."""

    id: str
    name: str
    role: Role
    project_id: str
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""
    revoked_at: datetime | None


class CreatedKey(ApiKey):
    """An API key at the only moment at which it can be read."""

    key: str
    """Send it as `Authorization: Bearer …`."""
