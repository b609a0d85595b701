"""Webhooks on a real local server: signed, tried again, given up, never redirected, and never let inside a network."""

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest
from sqlalchemy import select, update

from backend.access import LOCAL
from backend.alert_records import WebhookDelivery
from backend.alerts import WebhookCreate
from backend.database import Database
from backend.limits import Limits
from backend.queries.outbox import MAX_ATTEMPTS, claim_due
from backend.queries.raising import raise_ending
from backend.queries.webhooks import add_webhook, queue_test, rotate_secret
from backend.redaction import Redaction
from backend.webhook_address import NotAllowed, allowed_address, check_url, is_allowed
from backend.webhook_sending import webhook_secret
from tests.worker.runs import queue_runs, short_spec
from worker.alert_sender import AlertSender

SIGNING = b"secret of the installation"


class Receiver:
    """Answers every POST with the next of its statuses, and keeps what came."""

    def __init__(self) -> None:
        receiver = self
        self.statuses: list[int] = []
        self.came: list[tuple[dict[str, str], bytes]] = []
        self.seconds = 0.0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.came.append((dict(self.headers), body))
                time.sleep(receiver.seconds)
                status = receiver.statuses.pop(0) if receiver.statuses else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", f"{receiver.url}/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    started = Receiver()
    yield started
    started.server.shutdown()
    started.server.server_close()


def send_to(database: Database, url: str, *, may_be_local: bool = True) -> str:
    """A webhook, and an alert that waits for it; the webhook's id."""
    (run_id,) = queue_runs(database, short_spec(name="<@everyone> & co"))
    with database.write() as session:
        wanted = WebhookCreate(name="mine", url=url)
        made = add_webhook(session, wanted, owner=LOCAL, may_be_local=may_be_local, limits=Limits())
        raise_ending(session, run_id, "failed", "1", "The loss is not finite.")
    return made.id


def delivery(database: Database) -> WebhookDelivery:
    with database.read() as session:
        return session.scalars(select(WebhookDelivery)).one()


def signed_with(secret: str, headers: dict[str, str], body: bytes) -> bool:
    moment, _, digest = headers["X-Incipit-Signature"].partition(",v1=")
    return digest == hmac.new(secret.encode(), moment[2:].encode() + b"." + body, hashlib.sha256).hexdigest()


def make_due(database: Database) -> None:
    with database.read() as session:
        now = session.scalars(select(WebhookDelivery.next_at)).one()
    assert now is not None
    with database.write() as session:
        session.execute(update(WebhookDelivery).values(next_at=now.replace(year=2020)))


def test_an_alert_arrives_signed_and_once(database: Database, receiver: Receiver) -> None:
    webhook_id = send_to(database, f"{receiver.url}/hook?x=1")
    sender = AlertSender(database, SIGNING, ())
    assert sender.send_due() == 1
    assert sender.send_due() == 0
    ((headers, body),) = receiver.came
    document = json.loads(body)
    assert (document["rule"], document["severity"], document["message"]) == (
        "failed",
        "error",
        "The loss is not finite.",
    )
    assert document["text"] == "&lt;@everyone&gt; &amp; co (a question): failed. The loss is not finite."
    assert document["content"].startswith("<@everyone> & co (a question)")
    assert document["allowed_mentions"] == {"parse": []}
    assert document["is_test"] is False
    assert signed_with(webhook_secret(SIGNING, webhook_id), headers, body)
    moment = headers["X-Incipit-Signature"].partition(",v1=")[0]
    assert abs(int(moment[2:]) - time.time()) < 60
    found = delivery(database)
    assert (found.state, found.status, found.attempts, found.error, found.next_at) == ("sent", 204, 1, "", None)


def test_a_test_alert_goes_the_way_of_every_other_and_says_what_it_is(database: Database, receiver: Receiver) -> None:
    with database.write() as session:
        wanted = WebhookCreate(name="mine", url=receiver.url)
        made = add_webhook(session, wanted, owner=LOCAL, may_be_local=True, limits=Limits())
        queue_test(session, made.id, "local")
    receiver.statuses = [500, 204]
    sender = AlertSender(database, SIGNING, ())
    assert sender.send_due() == 1
    assert delivery(database).error == "The answer was 500; 2xx counts as received."
    make_due(database)
    assert sender.send_due() == 1
    assert (delivery(database).state, delivery(database).attempts) == ("sent", 2)
    headers, body = receiver.came[-1]
    document = json.loads(body)
    assert (document["is_test"], document["rule"], document["severity"]) == (True, "test", "info")
    assert document["run"] == {"id": "test", "name": "test", "experiment": "test", "project": "default"}
    assert document["text"] == document["content"] == document["message"]
    assert signed_with(webhook_secret(SIGNING, made.id), headers, body)


def test_after_a_change_of_the_secret_alerts_are_signed_with_the_new_one(
    database: Database, receiver: Receiver
) -> None:
    webhook_id = send_to(database, receiver.url)
    with database.write() as session:
        assert (rotate_secret(session, webhook_id) or (None, 0))[1] == 1
    AlertSender(database, SIGNING, ()).send_due()
    ((headers, body),) = receiver.came
    assert signed_with(webhook_secret(SIGNING, webhook_id, 1), headers, body)
    assert not signed_with(webhook_secret(SIGNING, webhook_id), headers, body)


def test_two_senders_do_not_send_twice(database: Database, receiver: Receiver) -> None:
    send_to(database, receiver.url)
    with database.write() as session:
        assert len(claim_due(session, limit=4)) == 1
    assert AlertSender(database, SIGNING, ()).send_due() == 0
    make_due(database)  # the first one died: after its minute another one sends
    assert AlertSender(database, SIGNING, ()).send_due() == 1
    assert len(receiver.came) == 1


def test_what_is_refused_is_tried_again_later_each_time_and_then_given_up(
    database: Database, receiver: Receiver
) -> None:
    send_to(database, receiver.url)
    sender = AlertSender(database, SIGNING, ())
    receiver.statuses = [500] * MAX_ATTEMPTS
    waits = []
    for _ in range(MAX_ATTEMPTS):
        began = time.time()
        assert sender.send_due() == 1
        found = delivery(database)
        if found.state == "pending":
            assert found.next_at is not None
            waits.append(round(found.next_at.timestamp() - began))
            make_due(database)
    assert waits == pytest.approx([30, 60, 120, 240, 480, 960, 1920], abs=3)
    assert (found.state, found.attempts, found.status) == ("failed", MAX_ATTEMPTS, 500)
    assert found.error == "The answer was 500; 2xx counts as received."
    assert sender.send_due() == 0


def test_a_redirect_is_not_followed(database: Database, receiver: Receiver) -> None:
    send_to(database, receiver.url)
    receiver.statuses = [302]
    AlertSender(database, SIGNING, ()).send_due()
    assert len(receiver.came) == 1
    assert delivery(database).error.startswith("The answer was 302;")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_server_that_does_not_answer_is_given_up_in_time(
    database: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.webhook_sending.SECONDS", 0.3)
    receiver.seconds = 1.5
    send_to(database, receiver.url)
    AlertSender(database, SIGNING, ()).send_due()
    assert delivery(database).error.startswith("There was no answer within")


def test_an_address_inside_a_network_is_refused_when_it_is_sent_to(database: Database, receiver: Receiver) -> None:
    send_to(database, receiver.url.replace("http:", "https:").replace("127.0.0.1", "localhost"), may_be_local=False)
    AlertSender(database, SIGNING, ()).send_due()
    found = delivery(database)
    assert receiver.came == []
    assert found.error.startswith("localhost leads into a private or local network; add it to INCIPIT_WEBHOOK_NETWORKS")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::a00:1", "2002:0a00:0001::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not is_allowed(ip_address(address), may_be_local=False, networks=())


def test_public_local_and_listed_addresses_are_taken() -> None:
    assert is_allowed(ip_address("93.184.216.34"), may_be_local=False, networks=())
    assert is_allowed(ip_address("2606:4700::1111"), may_be_local=False, networks=())
    assert is_allowed(ip_address("127.0.0.1"), may_be_local=True, networks=())
    assert not is_allowed(ip_address("10.0.0.1"), may_be_local=True, networks=())
    assert is_allowed(ip_address("10.1.2.3"), may_be_local=False, networks=("10.1.0.0/16", "fc00::/7"))
    assert not is_allowed(ip_address("10.2.2.3"), may_be_local=False, networks=("10.1.0.0/16", "fc00::/7"))
    assert allowed_address("127.0.0.1", 80, may_be_local=True, networks=()) == "127.0.0.1"
    for odd in ("2130706433", "0x7f000001", "127.1"):
        with pytest.raises((NotAllowed, OSError)):
            allowed_address(odd, 80, may_be_local=False, networks=())


def test_a_sender_that_is_closed_leaves_nothing_at_work(database: Database) -> None:
    """The database is closed behind it: a connection that is still in use then would stay open."""
    sender = AlertSender(database, SIGNING, ())
    sender.turn()
    sender.close()
    assert not [one for one in threading.enumerate() if one.name == "alert-sender"]


@pytest.mark.parametrize(
    ("url", "may_be_local", "problem"),
    [
        ("http://example.org/x", True, "url begins with 'http'; only https is taken"),
        ("http://127.0.0.1:9/x", False, "url begins with 'http'; only https is taken"),
        ("file:///etc/passwd", True, "url names no host"),
        ("ftp://example.org", True, "url begins with 'ftp'"),
        ("https://a:b@example.org", True, "url holds a user or a password"),
        ("https://example.org:99999", True, "url is no address"),
        ("https://", True, "url names no host"),
        (f"https://{'a' * 64}.example.org/x", True, "url names a host that no name server can know"),
    ],
)
def test_an_address_of_the_wrong_kind_is_refused_at_once(url: str, may_be_local: bool, problem: str) -> None:
    with pytest.raises(NotAllowed, match=problem):
        check_url(url, may_be_local=may_be_local)


def test_secrets_of_webhooks_are_cut_out_of_logs() -> None:
    text = f"{webhook_secret(SIGNING, 'x')} https://hooks.slack.com/services/T0/B0/abc https://discord.com/api/webhooks/1/tok"
    assert Redaction({})(text) == "whsec_… https://hooks.slack.com/… https://discord.com/api/webhooks/…"
