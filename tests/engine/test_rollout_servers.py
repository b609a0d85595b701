"""Rollouts on servers: the student's own weights at every step, and a named cause for everything else."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.check import check
from engine.control import Control
from engine.errors import RunError
from engine.events import RunEvent, StepDone
from engine.findings import findings_of
from engine.flops import rollout_ledger
from engine.journal import Journal
from engine.rollout import Rollout, RolloutRequest
from engine.rollout_backend_spec import VllmRollouts
from engine.sampler import Sampler
from engine.served_weights import changed, token_logprobs
from engine.spec import RunSpec
from engine.train import train
from engine.vllm_sampler import RolloutServers
from tests.engine.models import tiny_model
from tests.engine.running import quick_document, quick_spec, train_here
from tests.engine.silent_host import SilentHost
from tests.engine.stand_in_vllm import StandInVllm

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.xdist_group("rollout-servers")]
STUDENT = "builtin:tiny/models/student-plan"
# Steps so large that the student before writes and scores differently.
LARGE = {"learning_rate": 0.02, "warmup_steps": 1, "eps": 1e-4}
PROMPTS = [[5, 6, 7, 8, 9], [9, 8, 7]]


@pytest.fixture
def server() -> Iterator[StandInVllm]:
    one = StandInVllm(STUDENT)
    yield one
    one.stop()


@pytest.fixture
def second() -> Iterator[StandInVllm]:
    one = StandInVllm(STUDENT)
    yield one
    one.stop()


def served_spec(*servers: StandInVllm | SilentHost, **changes: object) -> RunSpec:
    rollouts = {
        "kind": "vllm_servers",
        "servers": [{"address": one.address} for one in servers],
        "patience_seconds": 1,
        "max_logprob_gap": 0.01,
    } | changes.pop("rollouts", {})  # type: ignore[operator]  # of two dicts
    return quick_spec(rollouts=rollouts, **changes)


def steps(events: list[RunEvent]) -> list[StepDone]:
    return [event for event in events if isinstance(event, StepDone)]


def failure(spec: RunSpec, folder: Path) -> RunError:
    with pytest.raises(RunError) as caught:
        train_here(spec, folder)
    return caught.value


def servers_of(spec: RunSpec, folder: Path) -> RolloutServers:
    assert isinstance(spec.rollouts, VllmRollouts)
    return RolloutServers(spec.rollouts, folder / "attempts" / "1", 200, PROMPTS[0])


def requests() -> list[RolloutRequest]:
    return [RolloutRequest(index, prompt, 2, 1, 4 + index) for index, prompt in enumerate(PROMPTS)]


def test_every_step_is_sampled_with_the_weights_of_that_step(tmp_path: Path, server: StandInVllm) -> None:
    done = steps(train_here(served_spec(server, num_steps=4, optimizer=LARGE), tmp_path))

    assert [step.metrics["own_token_share"] for step in done] == [1.0] * 4
    # The gap of a student one step behind is above 0.1 with these updates, see the test below.
    assert max(step.metrics["sampled_logprob_gap"] or 0.0 for step in done) < 1e-4
    assert max(step.metrics["server_logprob_gap"] or 0.0 for step in done) < 1e-4
    names = [version.split("-", 2)[2] for version in server.loaded]
    assert names == ["trial", "step-0", "step-1", "step-2", "step-3"]
    assert all(asked["max_tokens"] == 6 for asked in server.asked if "prompt_logprobs" not in asked)
    assert not (tmp_path / "attempts" / "1" / "rollout-weights").exists()


def test_weights_that_are_given_less_often_make_the_steps_between_off_policy(
    tmp_path: Path, server: StandInVllm
) -> None:
    spec = served_spec(server, num_steps=4, optimizer=LARGE, rollouts={"sync_every_steps": 2})
    done = steps(train_here(spec, tmp_path))

    gaps = [step.metrics["sampled_logprob_gap"] or 0.0 for step in done]
    assert max(gaps[0], gaps[2]) < 1e-4 < 0.1 < min(gaps[1], gaps[3])
    assert [version.split("-", 2)[2] for version in server.loaded] == ["trial", "step-0", "step-2"]
    assert [step.metrics["server_logprob_gap"] is None for step in done] == [False, True, False, True]


def test_rollouts_come_back_in_order_with_their_limits_and_seeds(tmp_path: Path, server: StandInVllm) -> None:
    model = tiny_model()
    sampler = servers_of(served_spec(server), tmp_path).sampler(model, 0, 3, 1.0, lambda: None)
    asked = requests()
    rollouts = sampler.sample(asked, 5)

    assert [rollout.prompt_token_ids for rollout in rollouts] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    for rollout, limit in zip(rollouts, (4, 4, 5, 5), strict=True):
        ended = rollout.completion_token_ids[-1] in model.eos_token_ids
        assert len(rollout.completion_token_ids) == limit or ended
        assert rollout.finish_reason == ("eos" if ended else "length")
        count = len(rollout.completion_token_ids)
        expected = token_logprobs(model, rollout.prompt_token_ids + rollout.completion_token_ids)[-count:]
        assert rollout.completion_logprobs == pytest.approx(expected, abs=1e-5)
    seeds = [one["seed"] for one in server.asked if "seed" in one]
    assert len(set(seeds)) == 4
    again = servers_of(served_spec(server), tmp_path / "again").sampler(model, 0, 3, 1.0, lambda: None)
    assert again.sample(asked, 5) == rollouts
    lengths = [len(rollout.completion_token_ids) for rollout in rollouts]
    ledgers = (rollout_ledger(model.shape, 5, lengths[:2]), rollout_ledger(model.shape, 3, lengths[2:]))
    assert sampler.executed.rollout == pytest.approx(sum(one.rollout for one in ledgers))


def test_the_student_goes_on_where_the_teacher_has_begun(tmp_path: Path, server: StandInVllm) -> None:
    begun = Sampler(tiny_model("teacher", "teacher"), 0, 1.0).sample([RolloutRequest(0, PROMPTS[0], 1, 1)], 2)
    ended = Rollout(0, PROMPTS[0], [7, 2], [-1.0, -2.0], "eos")
    sampler = servers_of(served_spec(server), tmp_path).sampler(tiny_model(), 0, 3, 1.0, lambda: None)

    first, second = sampler.sample([RolloutRequest(0, PROMPTS[0], 2, 1, begun=(begun[0], ended))], 6)

    assert first.completion_token_ids[:2] == begun[0].completion_token_ids
    assert first.num_begun == 2
    assert len(first.completion_token_ids) in range(3, 7)
    assert second.completion_token_ids == [7, 2]
    assert second.finish_reason == "eos"
    assert [one["max_tokens"] for one in server.asked if "seed" in one] == [4]


def test_what_a_lost_server_had_to_answer_goes_to_the_other(
    tmp_path: Path, server: StandInVllm, second: StandInVllm
) -> None:
    server.die_at_completion = (
        2  # its two lanes ask for one each: the first step loses it, whatever the other one's pace
    )
    spec = served_spec(server, second, num_steps=3, prompts_per_step=8, rollouts={"max_concurrent": 2})
    done = steps(train_here(spec, tmp_path))

    assert [step.metrics["rollout_tokens"] for step in done] == [48.0] * 3
    assert max(step.metrics["sampled_logprob_gap"] or 0.0 for step in done) < 1e-4
    assert done[-1].metrics["servers_lost"] == 1.0


def test_without_any_server_the_run_fails_as_one_that_may_be_tried_again(tmp_path: Path, server: StandInVllm) -> None:
    spec = served_spec(server)
    server.stop()
    error = failure(spec, tmp_path)

    assert error.failure == "server_unreachable"
    assert error.message.startswith("No server of rollouts.servers has answered for 1 s (http://127.0.0.1:")
    assert error.findings[0].field == "rollouts.servers"


def until(seconds: float) -> Callable[[], None]:
    """What fails a test that waits longer, instead of letting it hang."""
    end = time.monotonic() + seconds

    def on_wait() -> None:
        assert time.monotonic() < end, f"still waiting after {seconds:.0f} s"

    return on_wait


def test_a_server_that_takes_weights_and_completes_nothing_ends_the_run(tmp_path: Path, server: StandInVllm) -> None:
    server.faults.add("busy")
    patient = served_spec(server, rollouts={"patience_seconds": 3})
    sampler = servers_of(patient, tmp_path).sampler(tiny_model(), 0, 3, 1.0, until(30))
    with pytest.raises(RunError, match=r"has answered for 3 s \(http://127.0.0.1:\d+: status 503\)") as caught:
        sampler.sample(requests(), 5)
    assert caught.value.failure == "server_unreachable"


def test_a_server_that_has_no_room_at_times_gets_all_done(tmp_path: Path, server: StandInVllm) -> None:
    whole = servers_of(served_spec(server), tmp_path / "whole").sampler(tiny_model(), 0, 3, 1.0, until(20))
    expected = whole.sample(requests(), 5)
    server.faults.add("busy at times")
    served = served_spec(server, rollouts={"max_concurrent": 1})
    sampler = servers_of(served, tmp_path / "busy").sampler(tiny_model(), 0, 3, 1.0, until(20))
    assert sampler.sample(requests(), 5) == expected


def test_a_round_may_take_longer_than_the_patience_and_be_lost_once(tmp_path: Path, server: StandInVllm) -> None:
    expected = (
        servers_of(served_spec(server), tmp_path / "a")
        .sampler(tiny_model(), 0, 3, 1.0, until(20))
        .sample(requests(), 5)
    )
    server.faults.add("slow")
    server.slow_seconds = 1.5  # the patience is 1 s
    in_time, num_before = until(40), len(server.asked)
    restarts: list[str] = []

    def on_wait() -> None:
        in_time()
        if not restarts and any("seed" in one for one in server.asked[num_before:]):
            restarts.append(server.version)
            server.version = "default"  # as if it was started again while it answered

    sampler = servers_of(served_spec(server), tmp_path / "b").sampler(tiny_model(), 0, 3, 1.0, on_wait)
    assert sampler.sample(requests(), 5) == expected
    assert len(restarts) == 1


def test_a_host_that_drops_packets_costs_one_time_limit_not_one_a_step(
    tmp_path: Path, server: StandInVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.vllm_server._CONNECT_SECONDS", 2.0)
    with SilentHost() as silent:
        sampler = servers_of(served_spec(silent, server), tmp_path).sampler(tiny_model(), 0, 3, 1.0, lambda: None)
        seconds = []
        for _ in range(3):
            began = time.monotonic()
            assert len(sampler.sample(requests(), 5)) == 4
            seconds.append(time.monotonic() - began)
        assert seconds[0] >= 2.0
        assert max(seconds[1:]) < 2.0
    server.stop()
    began = time.monotonic()
    with SilentHost() as silent, pytest.raises(RunError, match=r"No server of rollouts\.servers"):
        servers_of(served_spec(silent), tmp_path / "alone").sampler(tiny_model(), 0, 3, 1.0, lambda: None).sample(
            requests(), 5
        )
    assert 2.0 <= time.monotonic() - began < 8.0  # it is asked although it rests, as there is no other


def test_a_server_that_is_started_again_is_given_the_weights_again(tmp_path: Path, server: StandInVllm) -> None:
    sampler = servers_of(served_spec(server), tmp_path).sampler(tiny_model(), 0, 3, 1.0, lambda: None)
    before = sampler.sample(requests(), 5)
    server.version = "default"  # vLLM's name for the weights it starts with
    assert sampler.sample(requests(), 5) == before
    assert [version.split("-", 2)[2] for version in server.loaded] == ["trial", "step-0"] * 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stale head", "nats more or less likely than the engine does with the weights that it was given"),
        ("keeps its version", "says that its weights are 'default' after"),
        (
            "cannot see the folder",
            "could not load the student's weights (Call to collective_rpc method failed: no such folder)",
        ),
        ("no dev mode", "cannot be given other weights; start it with VLLM_SERVER_DEV_MODE=1"),
        ("hostile", "refuses /weight_info with status 400: [2Jspam spam"),
        ("deep", "answers /weight_info with something else than JSON"),
        ("list", "does not tell the version of its weights as vLLM does"),
        ("infinite", "answers without token ids and log-probabilities"),
        ("html", "answers /v1/models with something else than JSON"),
        ("strange token", "sampled token 1000000 but student and teacher share only the first 81"),
        ("no logprobs", "answers without token ids and log-probabilities"),
        ("too short", "ended a text after 1 of 6 tokens without an end-of-text token"),
    ],
)
def test_a_server_that_does_not_serve_the_student_ends_the_run_with_the_cause(
    tmp_path: Path, server: StandInVllm, fault: str, words: str
) -> None:
    server.faults.add(fault)
    error = failure(served_spec(server), tmp_path)

    assert error.failure == "server_mismatch"
    assert error.message.startswith(f"The server {server.address} ")
    assert words in error.message
    assert error.message.isprintable()
    assert len(error.message) < 600


def test_another_model_behind_the_server_is_named(tmp_path: Path) -> None:
    other = StandInVllm("builtin:tiny/models/teacher")
    try:
        error = failure(served_spec(other), tmp_path)
    finally:
        other.stop()
    assert error.failure == "server_mismatch"
    assert "it must serve the student's own model" in error.message


def test_a_server_for_shorter_texts_is_named(tmp_path: Path, server: StandInVllm) -> None:
    server.max_model_len = 20
    message = failure(served_spec(server), tmp_path).message
    assert "takes texts of 20 tokens but prompts and completions of this run have up to" in message


def test_weights_of_another_run_end_the_run(tmp_path: Path, server: StandInVllm) -> None:
    sampler = servers_of(served_spec(server), tmp_path).sampler(tiny_model(), 0, 3, 1.0, lambda: None)
    sampler.sample(requests(), 5)
    other = servers_of(served_spec(server), tmp_path / "other").sampler(tiny_model(), 0, 3, 1.0, lambda: None)
    other.sample(requests(), 5)
    with pytest.raises(RunError, match="was given other weights meanwhile") as caught:
        sampler.sample(requests(), 5)
    assert caught.value.failure == "server_mismatch"


def test_log_probabilities_of_another_temperature_are_found(tmp_path: Path, server: StandInVllm) -> None:
    assert steps(train_here(served_spec(server, num_steps=3, sampling={"temperature": 0.6}), tmp_path / "a"))
    server.faults.add("raw logprobs")
    error = failure(served_spec(server, sampling={"temperature": 0.6}), tmp_path / "b")
    assert "start it with --logprobs-mode processed_logprobs" in error.message


def test_a_stop_does_not_wait_for_the_servers(tmp_path: Path, server: StandInVllm) -> None:
    server.faults.add("slow")
    control = Control()
    threading.Timer(3.0, setattr, (control, "stop", True)).start()
    began = time.monotonic()
    with Journal(tmp_path / "attempts" / "1" / "events.jsonl") as journal:
        assert not train(served_spec(server), tmp_path, attempt=1, journal=journal, control=control)
    assert time.monotonic() - began < 20


def test_only_servers_that_the_operator_names_are_asked(tmp_path: Path) -> None:
    spec = quick_spec(rollouts={"kind": "vllm_servers", "servers": [{"address": "http://169.254.169.254"}]})
    error = failure(spec, tmp_path)
    assert error.failure == "bad_spec"
    assert error.findings[0].field == "rollouts.servers.0.address"
    assert "which INCIPIT_ROLLOUT_SERVERS of the worker does not list" in error.message


def test_a_preflight_looks_at_the_servers_and_leaves_their_weights(server: StandInVllm, second: StandInVllm) -> None:
    assert not check(served_spec(server, second)).findings
    second.stop()
    server.faults.add("no dev mode")
    gone, wrong = sorted(check(served_spec(second, server)).findings, key=lambda finding: finding.field)
    assert (gone.field, gone.severity) == ("rollouts.servers.0.address", "warning")
    assert "no server answers now" in gone.message
    assert (wrong.field, wrong.severity) == ("rollouts.servers.1.address", "error")
    assert "VLLM_SERVER_DEV_MODE=1" in wrong.message
    assert not server.loaded


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"selection": {"kind": "probe", "probe_tokens": 2}, "rollouts_per_prompt": 4}, "selection"),
        ({"divergence": {"kind": "policy_gradient"}, "rollouts": {"sync_every_steps": 2}}, "rollouts.sync_every_steps"),
        (
            {"rollouts": {"servers": [{"address": "http://a:1"}, {"address": "http://a:1/"}]}},
            "rollouts.servers.1.address",
        ),
        ({"rollouts": {"servers": [{"address": "file:///etc/passwd"}]}}, "rollouts.servers.0.address"),
        ({"rollouts": {"servers": []}}, "rollouts.servers"),
    ],
)
def test_what_servers_cannot_do_is_refused_at_its_field(changes: dict[str, object], field: str) -> None:
    rollouts = {"kind": "vllm_servers", "servers": [{"address": "http://a:1"}]} | changes.pop("rollouts", {})  # type: ignore[operator]
    document = quick_document(rollouts=rollouts, **changes)
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    assert [finding.field for finding in findings_of(caught.value, document)] == [field]


def test_vllm_inside_an_engine_without_it_is_a_warning_before_the_run_and_the_cause_of_its_end(tmp_path: Path) -> None:
    spec = quick_spec(rollouts={"kind": "vllm_colocated"})
    (found,) = check(spec).findings
    assert (found.field, found.severity) == ("rollouts", "warning")
    error = failure(spec, tmp_path)
    assert error.failure == "bad_spec"
    assert error.message == found.message
    assert "make vllm" in error.message
    assert "INCIPIT_VLLM_PYTHON" in error.message


def test_vllm_inside_an_engine_refuses_what_servers_do() -> None:
    for changes, field in (
        ({"selection": {"kind": "probe", "probe_tokens": 2}, "rollouts_per_prompt": 4}, "selection"),
        ({"parallelism": {"kind": "data_parallel", "num_processes": 2}}, "parallelism"),
    ):
        document = quick_document(rollouts={"kind": "vllm_colocated"}, **changes)
        with pytest.raises(ValidationError) as caught:
            RunSpec.model_validate(document)
        (finding,) = findings_of(caught.value, document)
        assert finding.field == field
        assert "'vllm_colocated'" in finding.message


def test_the_trial_leaves_the_student_as_it_was() -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    own = token_logprobs(model, PROMPTS[0])
    with changed(model):
        differing = token_logprobs(model, PROMPTS[0])
    assert max(abs(a - b) for a, b in zip(own, differing, strict=True)) > 0.2
    assert all(bool((tensor == before[name]).all()) for name, tensor in model.module.state_dict().items())
    assert token_logprobs(model, PROMPTS[0]) == own
