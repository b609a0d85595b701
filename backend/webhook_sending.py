"""Sends one alert to one address: signed, to the address that was checked, without redirects, within ten seconds."""

import asyncio
import hashlib
import hmac
import json
import logging
import ssl
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

from backend.alerts import SEVERITY
from backend.queries.outbox import Outgoing, SentRun
from backend.webhook_address import NotAllowed, allowed_address, check_url

SECONDS = 10.0
_TEST_RUN = SentRun("test", "test", "test")
# It would log every address, parts of which are secrets.
logging.getLogger("httpx").setLevel(logging.WARNING)


def webhook_secret(signing_secret: bytes, webhook_id: str, version: int = 0) -> str:
    """The secret of a webhook after so many changes: it follows from the installation's own, so that no database holds it."""
    changed = f" {version}" if version else ""
    digest = hmac.new(signing_secret, f"webhook {webhook_id}{changed}".encode(), hashlib.sha256).hexdigest()
    return f"whsec_{digest}"


def signature(secret: str, body: bytes, moment: int) -> str:
    """The header X-Incipit-Signature."""
    digest = hmac.new(secret.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={moment},v1={digest}"


def body_of(sent: Outgoing) -> bytes:
    """The JSON body: fields for programs, `text` for Slack, `content` for Discord. A test alert has the shape of any other."""
    is_test = sent.run is None
    run = sent.run or _TEST_RUN
    rule = sent.rule.replace("_", " ")
    said = sent.message if is_test else f"{run.name} ({run.experiment}): {rule}. {sent.message}"
    slack = said.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    document = {
        "version": 1,
        "id": sent.alert_id,
        "is_test": is_test,
        "rule": sent.rule,
        "severity": "info" if is_test else SEVERITY[sent.rule],  # type: ignore[index]
        "message": sent.message,
        "time": sent.time.isoformat(),
        "step": sent.step,
        "run": {"id": run.id, "name": run.name, "experiment": run.experiment, "project": sent.project_id},
        "text": slack[:3000],
        "content": said[:1900],
        "allowed_mentions": {"parse": []},  # a run called @everyone rings nobody
    }
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")


def deliver(sent: Outgoing, secret: str, networks: Sequence[str]) -> tuple[int | None, str]:
    """Status of the answer and why it does not count; an empty text is success. The answer itself is not read."""
    try:
        status = asyncio.run(_posted(sent, secret, networks))
    except NotAllowed as error:
        return None, str(error)
    except TimeoutError:
        return None, f"There was no answer within {SECONDS:.0f} s."
    except (OSError, httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
        return None, f"The address cannot be reached ({type(error).__name__})."
    return status, "" if 200 <= status < 300 else f"The answer was {status}; 2xx counts as received."


async def _posted(sent: Outgoing, secret: str, networks: Sequence[str]) -> int:
    check_url(sent.url, may_be_local=sent.may_be_local)
    async with asyncio.timeout(SECONDS):
        parts = urlsplit(sent.url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await asyncio.to_thread(
            allowed_address, host, port, may_be_local=sent.may_be_local, networks=networks
        )
        url = httpx.URL(sent.url).copy_with(host=address)
        body = body_of(sent)
        headers = {
            "Host": host if parts.port is None else f"{host}:{parts.port}",
            "Content-Type": "application/json",
            "User-Agent": "incipit-webhook",
            "X-Incipit-Delivery": f"{sent.alert_id}.{sent.attempt}",
            "X-Incipit-Signature": signature(secret, body, int(time.time())),
        }
        # No proxy and no netrc of the environment: either would undo what was checked.
        async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=SECONDS) as client:
            extensions = {"sni_hostname": host}  # the certificate is for the name, the connection for the address
            async with client.stream("POST", url, content=body, headers=headers, extensions=extensions) as response:
                return response.status_code
