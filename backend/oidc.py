"""People who sign in at an OpenID Connect provider: their bearer tokens become principals."""

import hashlib
import threading
import time
from typing import Any, Final, get_args

import httpx
import jwt
from pydantic import TypeAdapter, ValidationError

from backend.access import DEFAULT_PROJECT, Principal, Project, Role
from backend.problems import Refusal
from backend.settings import Settings, is_safe_url

# Signatures with a public key only: with HS256 anybody could sign with that key, and `none` is no signature.
_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
_REQUIRED_CLAIMS = ("exp", "iss", "aud", "sub")
_LEEWAY_SECONDS = 30  # between the clocks of the provider and of this machine
_FETCH_SECONDS = 5
_KEYS_LIVE_SECONDS = 600
_PAUSE_AFTER_FAILURE_SECONDS = 5.0  # so that requests do not queue up behind a provider that is down
_LONGEST_ID = 128


class OidcVerifier:
    """Checks tokens against the keys of one provider, which it fetches when first needed and keeps for ten minutes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys: jwt.PyJWKClient | None = None
        self._failed_at = float("-inf")
        self._lock = threading.Lock()

    def principal_of(self, token: str) -> Principal | None:
        """Who a token was issued to; None when it is not valid for this installation.

        Refuses people without a role (403), and everybody while the provider's keys cannot be fetched (503).
        """
        try:
            claims = jwt.decode(
                token,
                self._signing_key(token),
                algorithms=_ALGORITHMS,
                audience=self._settings.oidc_audience,
                issuer=self._settings.oidc_issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": list(_REQUIRED_CLAIMS)},
            )
        except jwt.PyJWTError:
            return None
        return Principal(id=_id_of(claims["sub"]), role=self._role_of(claims), project_id=self._project_of(claims))

    def _signing_key(self, token: str) -> jwt.PyJWK:
        with self._lock:
            if time.monotonic() - self._failed_at < _PAUSE_AFTER_FAILURE_SECONDS:
                raise _unreachable()
            try:
                if self._keys is None:
                    self._keys = jwt.PyJWKClient(self._jwks_url(), lifespan=_KEYS_LIVE_SECONDS, timeout=_FETCH_SECONDS)
                return self._keys.get_signing_key_from_jwt(token)
            # A provider that answers something else than JSON raises ValueError.
            except (jwt.PyJWKClientConnectionError, httpx.HTTPError, ValueError, KeyError):
                self._failed_at = time.monotonic()
                raise _unreachable() from None

    def _jwks_url(self) -> str:
        """Where the provider's keys are, from the settings or from its discovery document."""
        if self._settings.oidc_jwks_url:
            return self._settings.oidc_jwks_url
        address = self._settings.oidc_issuer.rstrip("/") + "/.well-known/openid-configuration"
        document = httpx.get(address, timeout=_FETCH_SECONDS).raise_for_status().json()
        url = str(document["jwks_uri"])
        if document["issuer"] != self._settings.oidc_issuer or not is_safe_url(url):
            raise ValueError("the discovery document is not that of the issuer")
        return url

    def _role_of(self, claims: dict[str, Any]) -> Role:
        name = self._settings.oidc_role_claim
        given = claims.get(name)
        roles = given if isinstance(given, list) else [given]
        for role in reversed(get_args(Role)):
            if role in roles:
                return role  # type: ignore[no-any-return]
        raise Refusal(
            403,
            f"Your account has no role here: its claim {name!r} names none of {', '.join(get_args(Role))}; ask an admin.",
        )

    def _project_of(self, claims: dict[str, Any]) -> str:
        name = self._settings.oidc_project_claim
        if not name:
            return DEFAULT_PROJECT
        try:
            return TypeAdapter(Project).validate_python(claims.get(name))
        except ValidationError:
            raise Refusal(403, f"Your account has no project here: see its claim {name!r}; ask an admin.") from None


def _id_of(subject: str) -> str:
    """An id that fits into `created_by`, whatever the provider calls its people."""
    id = f"oidc:{subject}"
    return id if len(id) <= _LONGEST_ID else f"oidc:{hashlib.sha256(subject.encode()).hexdigest()}"


def _unreachable() -> Refusal:
    sentence = "The sign-in provider does not give its keys; try again in a few seconds, or use an API key."
    return Refusal(503, sentence, headers={"Retry-After": "5"})
