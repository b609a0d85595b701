"""Keeps secrets out of the access log: people paste keys into addresses, and download links are signed."""

import logging
import re

_KEY = re.compile(r"(incipit_[0-9a-f]{16}_)[0-9a-f]{8,}")
_SIGNATURE = re.compile(r"(signature=)[^&\s\"]+")


def redacted(text: str) -> str:
    """The text without the secrets of API keys and signed addresses."""
    return _SIGNATURE.sub(r"\1…", _KEY.sub(r"\1…", text))


class Redaction(logging.Filter):
    """Takes the secrets out of a record's arguments."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(redacted(one) if isinstance(one, str) else one for one in record.args)
        return True


REDACTION = Redaction()


def redact_access_log() -> None:
    """From now on uvicorn's access log has no secrets."""
    logging.getLogger("uvicorn.access").addFilter(REDACTION)
