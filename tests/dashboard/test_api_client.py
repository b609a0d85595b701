"""The client: typed answers, and every failure as one sentence."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from dashboard.api_client import ApiClient
from dashboard.api_errors import ApiDown, ApiError, Invalid, NotFound, ServerFault
from dashboard.quantities import age_text, bytes_text, flops_text, range_text, seconds_text, times_text


def test_answers_are_the_models_of_the_api(scene: str) -> None:
    with ApiClient(scene) as client:
        assert client.run("r-running").eta_seconds == (41.0, 55.0)
        assert client.rollout("r-p8.120.1").trace.texts[3] == "\n"
        assert [one.seq for one in client.events("r-p8", after_seq=2).items] == list(range(3, 11))
        assert [one.seq for one in client.events("r-p8", after_seq=7, kinds=("warning",)).items] == [9, 10]


def test_download_links_are_absolute(scene: str) -> None:
    with ApiClient(scene) as client:
        link = client.checkpoint_link("r-p8.120")
    root = scene.removesuffix("/busy")
    assert link.archive_url == f"{root}/api/v1/downloads/r-p8.120.tar?signature=abc"
    assert all(url.startswith(root) for url in link.file_urls.values())


@pytest.mark.parametrize(
    ("stage", "call", "kind", "says"),
    [
        ("busy", lambda client: client.run("nope"), NotFound, "There is no run 'nope'."),
        ("busy", lambda client: client.estimate({}), Invalid, "The spec cannot be estimated."),
        ("broken", lambda client: client.runs(), ServerFault, "The database is locked."),
        ("odd", lambda client: client.runs(), ServerFault, "does not fit this dashboard"),
        ("nowhere", lambda client: client.runs(), NotFound, "The API answered 404 Not Found."),
    ],
)
def test_every_failure_is_a_sentence(
    api_root: str, stage: str, call: Callable[[ApiClient], object], kind: type[ApiError], says: str
) -> None:
    with ApiClient(f"{api_root}/{stage}") as client, pytest.raises(kind) as raised:
        call(client)
    assert says in raised.value.message
    assert raised.value.advice


def test_findings_of_a_refusal_are_kept(scene: str) -> None:
    with ApiClient(scene) as client, pytest.raises(Invalid) as raised:
        client.estimate({"name": ""})
    assert {one.field for one in raised.value.findings} >= {"name", "student", "teacher"}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    "call",
    [
        lambda client, spec: client.estimate(spec),
        lambda client, spec: client.create_experiment(spec),
        lambda client, spec: client.clone("r-p8", spec),
    ],
)
def test_a_number_that_json_cannot_carry_is_refused_at_its_field(
    scene: str, call: Callable[[ApiClient, dict[str, object]], object], value: float
) -> None:
    spec: dict[str, object] = {"phases": [{"steps": 1}, {"steps": value}]}
    with (
        ApiClient(scene) as client,
        pytest.raises(Invalid, match=rf"is {value}, but .* finite .*; write such a one[.]$") as raised,
    ):
        call(client, spec)
    assert [one.field.removeprefix("changes.") for one in raised.value.findings] == ["phases.1.steps"]
    with ApiClient(scene) as client:
        assert [one.field for one in client.validate(spec)] == ["phases.1.steps"]


def test_a_closed_port_is_said_with_the_address() -> None:
    says = r"Cannot reach the API at http://127\.0\.0\.1:1 "
    with ApiClient("http://127.0.0.1:1") as client, pytest.raises(ApiDown, match=says):
        client.runs()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (flops_text(50.2e9), "50.2 GFLOP"),
        (flops_text(1.534e12), "1.53 TFLOP"),
        (flops_text(999.6), "1.00 kFLOP"),
        (flops_text(None), "–"),
        (bytes_text(712), "712 B"),
        (bytes_text(1_350_000), "1.35 MB"),
        (seconds_text(4.46), "4.5 s"),
        (seconds_text(200), "3 min 20 s"),
        (seconds_text(7500), "2 h 05 min"),
        (range_text((41, 55)), "41–55 s"),
        (range_text((1080, 1500)), "18–25 min"),
        (range_text((60.2, 60.4)), "60 s"),
        (range_text((40, 240)), "40 s – 4 min"),
        (times_text(15.3), "15.3×"),
        (age_text(datetime.now(UTC) - timedelta(minutes=3)), "3 min ago"),
    ],
)
def test_quantities_carry_their_unit(said: str, expected: str) -> None:
    assert said == expected
