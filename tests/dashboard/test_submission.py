"""What is submitted is submitted once, whatever happens to the answer."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from streamlit.testing.v1 import AppTest

from backend.schemas import Experiment
from dashboard.api_client import ApiClient
from dashboard.api_errors import ApiDown


class LossyServer:
    """Answers every creation with the same experiment, but hangs up at the first so many requests."""

    def __init__(self, body: str, num_lost: int) -> None:
        server = self
        self.keys: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.keys.append(self.headers["Idempotency-Key"])
                self.rfile.read(int(self.headers["Content-Length"]))
                if len(server.keys) <= num_lost:
                    self.close_connection = True
                    return
                self.send_response(201)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def lossy(request: pytest.FixtureRequest) -> Iterator[LossyServer]:
    body = Experiment(id="e", name="q", note="", created_at="2026-01-01T00:00:00Z", num_runs=1, num_active=1)  # type: ignore[arg-type]
    started = LossyServer(body.model_dump_json(), request.param)
    yield started
    started.server.shutdown()
    started.server.server_close()


@pytest.mark.parametrize("lossy", [1], indirect=True)
def test_a_lost_answer_is_asked_for_again_with_the_same_key(lossy: LossyServer) -> None:
    with ApiClient(lossy.url) as client:
        assert client.create_experiment({"name": "q"}).id == "e"
        assert client.create_experiment({"name": "q"}).id == "e"
        assert client.create_experiment({"name": "q"}, idempotency_key="mine").id == "e"
    first, again, second, third = lossy.keys
    assert first == again != second
    assert len(first) == 36
    assert third == "mine"


@pytest.mark.parametrize("lossy", [2], indirect=True)
def test_a_second_loss_is_told(lossy: LossyServer) -> None:
    with ApiClient(lossy.url) as client, pytest.raises(ApiDown):
        client.create_experiment({"name": "q"})
    assert len(lossy.keys) == 2


def _page() -> None:
    import streamlit as st

    from dashboard.submission import forget_submission, submission_key

    name = st.text_input("name", "q")
    if st.button("Forget"):
        forget_submission()
    st.code(submission_key({"name": name}))


def test_a_form_keeps_its_key_until_it_is_changed_or_answered() -> None:
    app = AppTest.from_function(_page).run()
    key = app.code[0].value
    assert app.run().code[0].value == key
    changed = app.text_input[0].set_value("another").run().code[0].value
    assert changed != key
    assert app.button[0].click().run().code[0].value != changed
