"""Takes secrets out of text that goes to logs and histories: people paste keys into addresses, links are signed."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

# What stays of a secret is enough to tell which one it was; an API key's id is no secret.
_PATTERNS = [
    (re.compile(r"(incipit_[0-9a-f]{16}_)[0-9a-f]{8,}"), r"\1…"),
    (re.compile(r"(signature(?:=|%3D))[^&\s\"'\\]+", re.IGNORECASE), r"\1…"),
    (re.compile(r"(\bbearer\s+)[\w.~+/=-]{16,}", re.IGNORECASE), r"\1…"),
    (re.compile(r"\b(whsec_)[0-9a-f]{8,}"), r"\1…"),
    (re.compile(r"(https://(?:hooks\.slack\.com|discord(?:app)?\.com/api/webhooks)/)[^\s\"'\\]+"), r"\1…"),
    (re.compile(r"\b(hf_)[A-Za-z0-9]{16,}"), r"\1…"),
    # JSON web tokens, as OpenID Connect providers make them; they begin with {" in base64.
    (re.compile(r"\b(eyJ)[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), r"\1…"),
    (re.compile(r"(://[^/\s:@\"'\\]*:)[^/\s@\"'\\]+(@)"), r"\1…\2"),
    (re.compile(r"(\bpassword=)[^\s&\"'\\]+", re.IGNORECASE), r"\1…"),
]
_SECRET_VARIABLES = (
    "INCIPIT_LOCAL_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
_FILE_VARIABLES = (
    "INCIPIT_DATABASE_PASSWORD_FILE",
    "HF_TOKEN_PATH",
    "INCIPIT_STORE__ACCESS_KEY_FILE",
    "INCIPIT_STORE__SECRET_KEY_FILE",
)
_URL_VARIABLES = ("INCIPIT_DATABASE_URL", "INCIPIT_BROKER_URL")
_MIN_CHARACTERS = 6  # a shorter password would be found inside of ordinary words


class Redaction:
    """A function from text to the same text without secrets: those of known forms, and those of an environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        known = sorted(set(_secrets_in(environment)), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub("…", text)
        for pattern, shown in _PATTERNS:
            text = pattern.sub(shown, text)
        return text


def _secrets_in(environment: Mapping[str, str]) -> Iterator[str]:
    values = [environment.get(name, "") for name in _SECRET_VARIABLES]
    values += [_text_of(environment.get(name, "")) for name in _FILE_VARIABLES]
    values += [_password_of(environment.get(name, "")) for name in _URL_VARIABLES]
    for value in values:
        if len(value) >= _MIN_CHARACTERS:
            yield from (value, unquote(value), quote(value, safe=""))


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text().strip() if path else ""
    except (OSError, ValueError):  # whoever needs it says so
        return ""


def _password_of(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:  # not an address; whoever opens it says so
        return ""
