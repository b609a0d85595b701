"""From a bearer credential to the one who holds it. No credential ever reaches a log, an error or an address."""

import hmac
import logging

from sqlalchemy.exc import OperationalError

from backend.access import LOCAL, Principal
from backend.database import Database
from backend.key_format import KeyText, parsed_key
from backend.oidc import OidcVerifier
from backend.queries import api_keys as queries
from backend.settings import Settings

_log = logging.getLogger(__name__)


def principal_of(
    credential: str, settings: Settings, database: Database, oidc: OidcVerifier | None
) -> Principal | None:
    """Who holds a credential; None when it is not valid, whatever the reason."""
    local = settings.local_token.get_secret_value() if settings.local_token else ""
    if local and hmac.compare_digest(credential.encode("utf-8", "replace"), local.encode()):
        return LOCAL
    key = parsed_key(credential)
    if key is not None:
        return _holder_of(key, database)
    return oidc.principal_of(credential) if oidc else None


def can_anyone_sign_in(settings: Settings, database: Database) -> bool:
    """Whether there is any credential that the API would take."""
    if settings.local_token or settings.oidc_issuer:
        return True
    with database.read() as session:
        return queries.has_valid_key(session)


def _holder_of(key: KeyText, database: Database) -> Principal | None:
    with database.read() as session:
        found = queries.holder_of(session, key)
    if found is None:
        return None
    principal, is_to_note = found
    if is_to_note:
        try:
            with database.write() as session:
                queries.note_use(session, key.id)
        except OperationalError:  # a request that only reads must not fail because somebody writes
            _log.warning("The use of key %s could not be noted; the database is busy.", key.id)
    return principal
