"""A teacher on servers: the same training as with one in the engine where all is told, and a named cause for everything else."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from engine.check import check
from engine.errors import RunError
from engine.events import Evaluated, RunEvent, StepDone
from engine.findings import Finding, findings_of
from engine.locations import resolve
from engine.spec import RunSpec
from tests.engine.models import tiny_model
from tests.engine.running import quick_document, quick_spec, train_here
from tests.engine.silent_host import SilentHost
from tests.engine.stand_in_vllm import StandInVllm

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.xdist_group("served-teacher")]
TEACHER = "builtin:tiny/models/teacher"
OTHER = "builtin:tiny/models/student-plan"


@pytest.fixture
def server() -> Iterator[StandInVllm]:
    one = StandInVllm(TEACHER)
    yield one
    one.stop()


@pytest.fixture
def second() -> Iterator[StandInVllm]:
    one = StandInVllm(TEACHER)
    yield one
    one.stop()


def served_document(*servers: StandInVllm | SilentHost, **changes: object) -> dict[str, object]:
    backend = {
        "kind": "vllm_servers",
        "servers": [{"address": one.address} for one in servers],
        "patience_seconds": 1,
    } | changes.pop("teacher_backend", {})  # type: ignore[operator]  # of two dicts
    return quick_document(teacher_backend=backend, **changes)


def served_spec(*servers: StandInVllm | SilentHost, **changes: object) -> RunSpec:
    return RunSpec.model_validate(served_document(*servers, **changes))


def whole_vocabulary() -> int:
    return tiny_model("teacher").head.vocabulary


def losses(events: list[RunEvent]) -> list[float | None]:
    return [event.metrics["loss"] for event in events if isinstance(event, StepDone)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("attempts/1/checkpoints/step-6/*.safetensors")
    return load_file(path)


def failure(spec: RunSpec, folder: Path) -> RunError:
    with pytest.raises(RunError) as caught:
        train_here(spec, folder)
    return caught.value


def test_told_of_every_token_it_trains_as_with_a_teacher_in_the_engine(server: StandInVllm, tmp_path: Path) -> None:
    watched: dict[str, object] = {
        "sentinel": {"kind": "watch", "num_rollouts": 2, "every_steps": 3},
        "traces": {"num_rollouts": 1},
    }
    backend = {"top_k": whole_vocabulary()}
    here = train_here(quick_spec(**watched), tmp_path / "here")
    there = train_here(served_spec(server, teacher_backend=backend, **watched), tmp_path / "there")
    assert losses(there) == pytest.approx(losses(here), abs=1e-5)
    for name, tensor in weights(tmp_path / "here").items():
        torch.testing.assert_close(weights(tmp_path / "there")[name], tensor, atol=5e-5, rtol=0)
    measured = [
        [(one.subject, one.step, one.metrics["reverse_kl"]) for one in events if isinstance(one, Evaluated)]
        for events in (here, there)
    ]
    for mine, theirs in zip(*measured, strict=True):
        assert theirs == pytest.approx(mine, abs=1e-4)
    kept = [event.metrics["teacher_kept_mass"] for event in there if isinstance(event, StepDone)]
    assert all(mass is not None and mass > 0.9999 for mass in kept)


def test_a_few_tokens_and_the_rest_as_one_are_a_lower_bound_and_still_teach(
    server: StandInVllm, tmp_path: Path
) -> None:
    here = train_here(quick_spec(num_steps=2), tmp_path / "here")
    there = train_here(served_spec(server, teacher_backend={"top_k": 2}, num_steps=2), tmp_path / "there")
    (whole, _), (bound, _) = losses(here), losses(there)
    assert whole is not None
    assert bound is not None
    assert 0.5 * whole < bound < whole
    long = train_here(served_spec(server, teacher_backend={"top_k": 4}, num_steps=30), tmp_path / "long")
    falling = [loss for loss in losses(long) if loss is not None]
    assert sum(falling[-5:]) < 0.7 * sum(falling[:5])


def test_what_a_dying_server_has_not_answered_the_other_one_does(
    server: StandInVllm, second: StandInVllm, tmp_path: Path
) -> None:
    backend = {"top_k": whole_vocabulary()}
    here = train_here(quick_spec(), tmp_path / "here")
    second.die_after = 8
    there = train_here(served_spec(second, server, teacher_backend=backend), tmp_path / "there")
    assert losses(there) == pytest.approx(losses(here), abs=1e-5)
    assert len(second.asked) > 8


def test_a_host_that_drops_packets_is_not_asked_at_each_step(
    server: StandInVllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.vllm_server._CONNECT_SECONDS", 2.0)
    with SilentHost() as silent:
        began = time.monotonic()
        done = train_here(served_spec(silent, server, num_steps=6), tmp_path)
        assert len(losses(done)) == 6
        # The look before the run and its first question: 2 s each. Asked at each step it would be 14.
        assert 2.0 <= time.monotonic() - began < 11.0


def test_two_servers_of_one_tag_serve_one_model(server: StandInVllm, tmp_path: Path) -> None:
    other = StandInVllm(OTHER)
    try:
        error = failure(served_spec(server, other), tmp_path)
        assert error.failure == "server_mismatch"
        assert "so that it serves another model" in error.message
    finally:
        other.stop()


def test_a_server_that_never_answers_ends_the_run_by_name(server: StandInVllm, tmp_path: Path) -> None:
    server.stop()
    error = failure(served_spec(server), tmp_path)
    assert error.failure == "server_unreachable"
    assert error.message.startswith(f"No server of teacher_backend.servers has answered for 1 s ({server.address}: ")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("few logprobs", "tells at most 4 likely tokens of each position; start it with a larger --max-logprobs or lower "
         "teacher_backend.top_k to 4"),
        ("other tokenizer", "teacher.path's tokenizer makes"),
        ("odd tokens", "answers other log-probabilities than those of 2 tokens"),
        ("html", "answers /v1/models with something else than JSON"),
    ],
)  # fmt: skip
def test_a_server_of_another_kind_is_named_in_run_and_preflight(fault: str, words: str, tmp_path: Path) -> None:
    server = StandInVllm(TEACHER, fault)
    try:
        error = failure(served_spec(server), tmp_path)
        assert error.failure == "server_mismatch"
        assert words in error.message
        found = check(served_spec(server)).findings
        assert [(one.field, words in one.message) for one in found if one.severity == "error"] == [
            ("teacher_backend.servers.0.address", True)
        ]
    finally:
        server.stop()


def test_a_server_with_too_short_a_context_is_named(tmp_path: Path) -> None:
    server = StandInVllm(TEACHER, max_model_len=20)
    try:
        error = failure(served_spec(server), tmp_path)
        assert error.failure == "server_mismatch"
        assert "takes texts of 20 tokens" in error.message
    finally:
        server.stop()


def test_a_machine_that_the_operator_has_not_listed_is_not_asked(tmp_path: Path) -> None:
    backend = {"servers": [{"address": "http://10.0.0.7:8000"}]}
    error = failure(served_spec(teacher_backend=backend), tmp_path)
    assert error.failure == "bad_spec"
    assert "INCIPIT_TEACHER_SERVERS of the worker does not list" in error.message


def test_a_teacher_needs_no_weights_here(server: StandInVllm, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(resolve(TEACHER), bare, ignore=shutil.ignore_patterns("*.safetensors"))
    found = check(served_spec(server, teacher={"path": str(bare)}))
    assert not [one for one in found.findings if one.severity == "error"]
    assert found.facts["trial_first_loss"]
    events = train_here(served_spec(server, teacher={"path": str(bare)}, num_steps=2), tmp_path / "run")
    assert losses(events)[0]


def refusals(document: dict[str, object]) -> list[Finding]:
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    return findings_of(caught.value, document)


def tagged(path: Path, tags: list[str | None]) -> str:
    rows = [json.loads(line) for line in Path(resolve("builtin:tiny/data/train.jsonl")).read_text().splitlines()]
    path.write_text(
        "".join(json.dumps(row | ({"tag": tag} if tag else {})) + "\n" for row, tag in zip(rows, tags, strict=False))
    )
    return str(path)


def test_a_prompts_tag_chooses_its_teacher(server: StandInVllm, tmp_path: Path) -> None:
    sums = StandInVllm(OTHER)
    try:
        prompts = {"path": tagged(tmp_path / "tagged.jsonl", ["sums", None, "sums", None])}
        servers = [{"address": sums.address, "tag": "sums"}, {"address": server.address}]
        spec = served_spec(prompts=prompts, teacher_backend={"servers": servers}, num_steps=2)
        train_here(spec, tmp_path / "run")
        tokenizer = tiny_model("teacher").tokenizer
        texts = [json.loads(line)["prompt"] for line in Path(prompts["path"]).read_text().splitlines()]
        starts = [tokenizer(text)["input_ids"] for text in texts]
        # The texts of the training step: their prompt and 6 tokens at most.
        of_sums, of_others = (
            {
                index
                for asked in one.asked
                for index, start in enumerate(starts)
                if asked.get("prompt_logprobs")
                and asked["prompt"][: len(start)] == start
                and len(asked["prompt"]) <= len(start) + 6
                and len(asked["prompt"]) > len(start)
            }
            for one in (sums, server)
        )
        assert of_sums == {0, 2}
        assert of_others == {1, 3}
        alone = served_spec(prompts=prompts, teacher_backend={"servers": [servers[0] | {"tag": "poems"}]}, num_steps=2)
        error = failure(alone, tmp_path / "alone")
        assert "has servers for the tags poems alone, but prompts have no tag, the tag 'sums'; add one" in error.message
    finally:
        sums.stop()


def test_a_prompt_with_two_teachers_is_refused(server: StandInVllm, tmp_path: Path) -> None:
    prompts = tmp_path / "twice.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "k0 k2", "tag": tag}) + "\n" for tag in ("sums", "poems")))
    servers = [{"address": server.address, "tag": "sums"}, {"address": server.address}]
    error = failure(served_spec(prompts={"path": str(prompts)}, teacher_backend={"servers": servers}), tmp_path)
    assert error.failure == "bad_spec"
    assert "one prompt has the tag 'sums' and the tag 'poems'; give it one tag" in error.message


def test_prompts_of_one_token_are_enough(server: StandInVllm, tmp_path: Path) -> None:
    prompts = tmp_path / "short.jsonl"
    prompts.write_text(json.dumps({"prompt": "k0"}) + "\n")
    events = train_here(served_spec(server, prompts={"path": str(prompts)}, num_steps=2), tmp_path / "run")
    assert all(loss is not None for loss in losses(events))


def test_a_damaged_answer_on_disk_is_asked_for_again(server: StandInVllm, home: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {
        "completions": {"kind": "teacher"},
        "divergence": {"kind": "forward_kl"},
        "num_steps": 2,
    }
    first = train_here(served_spec(server, **changes), tmp_path / "first")
    kept = list((home / "cache" / "teacher-scores").glob("*/*.safetensors"))
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[:20])
    assert losses(train_here(served_spec(server, **changes), tmp_path / "again")) == losses(first)


def test_texts_that_come_again_are_scored_once(server: StandInVllm, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(resolve("builtin:tiny/data/dev.jsonl")).read_text().splitlines()[:16]]
    prompts = tmp_path / "with completions.jsonl"
    prompts.write_text("".join(json.dumps(row | {"completion": row["prompt"]}) + "\n" for row in rows))
    completions: dict[str, object] = {
        "prompts": {"path": str(prompts)},
        "completions": {"kind": "data"},
        "divergence": {"kind": "forward_kl"},
        "num_steps": 4,
    }
    first = train_here(served_spec(server, **completions), tmp_path / "first")
    asked = len(server.asked)
    again = train_here(served_spec(server, **completions), tmp_path / "again")
    assert losses(again) == losses(first)
    # The check of the server and the student's own evaluations are asked anew, the texts are not.
    of_texts = [one for one in server.asked[asked:] if one.get("prompt_logprobs")]
    assert 0 < len(of_texts) < asked - 16


def test_what_the_teacher_has_written_is_not_written_again(server: StandInVllm, tmp_path: Path) -> None:
    completions = {"completions": {"kind": "teacher"}, "divergence": {"kind": "forward_kl"}, "num_steps": 2}
    first = train_here(served_spec(server, **completions), tmp_path / "first")
    asked = len(server.asked)
    again = train_here(served_spec(server, **completions), tmp_path / "again")
    assert losses(again) == losses(first)
    assert not [one for one in server.asked[asked:] if one["max_tokens"] > 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"temperature": 0.7}},
        {"divergence": {"kind": "top_k_kl"}},
        {"divergence": {"kind": "teacher_order"}},
        {"token_weights": {"kind": "tip"}},
        {"merge_stop_tokens": True},
        {"termination_guard": {"kind": "forward_kl"}},
        {"selection": {"kind": "probe", "probe_tokens": 4}, "rollouts_per_prompt": 2},
        {"teacher_offload": "always"},
        {"parallelism": {"kind": "data_parallel"}},
    ],
    ids=lambda one: next(iter(one)),
)
def test_what_needs_more_than_a_server_tells_is_refused_by_name(changes: dict[str, object]) -> None:
    document = served_document(teacher_backend={"servers": [{"address": "http://127.0.0.1:1"}]}, **changes)
    (finding,) = refusals(document)
    assert finding.field.startswith(next(iter(changes)))
    assert "but teacher_backend.kind is 'vllm_servers'" in finding.message
    assert "or set teacher_backend to engine" in finding.message


def test_a_server_stands_there_once_for_a_tag() -> None:
    servers = [{"address": "http://127.0.0.1:1"}, {"address": "http://127.0.0.1:1/"}]
    (finding,) = refusals(served_document(teacher_backend={"servers": servers}))
    assert finding.field == "teacher_backend.servers.1.address"
    servers[1]["tag"] = "sums"
    assert RunSpec.model_validate(served_document(teacher_backend={"servers": servers}))
