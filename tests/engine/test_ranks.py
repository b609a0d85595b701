"""Several processes train what one trains: real ranks with gloo on the CPU, float32.

What may differ is the order of sums: losses were within 3.2e-7 nats and weights within 1.2e-7 of one process in six steps.
"""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engine.control import Control
from engine.events import CheckpointSaved, Failed, RunEvent, StepDone, Warned
from engine.exit_codes import DONE, OF_FAILURE
from engine.findings import findings_of
from engine.ranks import ALONE, Ranks
from engine.spec import RunSpec
from tests.engine.launching import ForkedRanks
from tests.engine.models import TINY
from tests.engine.running import events_of, quick_document, quick_spec, train_here

LOSS_TOLERANCE = 2e-6
"""Nats, of a step's loss."""
WEIGHT_TOLERANCE = 1e-6
WHOLE_SPECS = {
    # Ranks with unequal shares and micro-batches, recomputed blocks, whole texts among prefixes.
    "distillation": {
        "num_steps": 3,
        "prompts_per_step": 3,
        "rollouts_per_prompt": 2,
        "micro_batch_rollouts": 2,
        "gradient_checkpointing": "always",
        "anchoring": {"kind": "fraction", "share": 0.4},
    },
    "warm-up": {
        "num_steps": 2,
        "optimizer": {"learning_rate": 5e-4, "warmup_steps": 1, "eps": 1e-4},
        "warmup_phase": {"kind": "sft", "num_steps": 1, "prompts_per_step": 3, "source": "teacher"},
    },
}


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    """Each test measures its own baselines."""


def steps(events: list[RunEvent]) -> list[StepDone]:
    return [event for event in events if isinstance(event, StepDone)]


def assert_same_steps(found: list[RunEvent], expected: list[RunEvent]) -> None:
    """All that is counted is equal; what is computed is within LOSS_TOLERANCE, relative where it is larger than 1."""
    assert [one.kind for one in found] == [one.kind for one in expected]
    for mine, theirs in zip(steps(found), steps(expected), strict=True):
        assert mine.metrics.keys() == theirs.metrics.keys()
        for name, value in theirs.metrics.items():
            close = value if value is None else pytest.approx(value, rel=LOSS_TOLERANCE, abs=LOSS_TOLERANCE)
            assert mine.metrics[name] == close, (theirs.step, name)
        assert mine.metrics["rollout_tokens"] == theirs.metrics["rollout_tokens"]
        assert mine.position_count == theirs.position_count
        assert mine.position_loss == pytest.approx(theirs.position_loss, rel=LOSS_TOLERANCE, abs=LOSS_TOLERANCE)
        assert mine.flops.by_phase() == pytest.approx(theirs.flops.by_phase(), rel=1e-12)


def assert_same_checkpoint(found: Path, expected: Path) -> None:
    """The same files with the same tensors."""
    files = [sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) for folder in (found, expected)]
    assert files[0] == files[1]
    for name in ("model.safetensors", "trainer/optimizer.safetensors"):
        mine, theirs = load_file(found / name), load_file(expected / name)
        assert mine.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert float((mine[key].double() - tensor.double()).abs().max()) <= WEIGHT_TOLERANCE, key


@pytest.mark.parametrize("name", WHOLE_SPECS)
def test_two_processes_train_what_one_does(tmp_path: Path, name: str) -> None:
    changes = WHOLE_SPECS[name]
    expected = train_here(quick_spec(**changes), tmp_path / "one")
    for kind in ("data_parallel", "fully_sharded"):
        ranks = ForkedRanks(tmp_path / kind, quick_document(**changes, parallelism={"kind": kind}), 2)
        assert ranks.exit_codes() == [DONE, DONE], ranks.logs
        found = events_of(tmp_path / kind)
        assert_same_steps(found, expected)
        assert ranks.logs.strip() == ""
        last = [event for event in found if isinstance(event, CheckpointSaved)][-1]
        checkpoint = Path("attempts/1") / last.path
        assert_same_checkpoint(tmp_path / kind / checkpoint, tmp_path / "one" / checkpoint)
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / kind / checkpoint)
        saved = load_file(tmp_path / kind / checkpoint / "model.safetensors")
        assert all(torch.equal(opened.state_dict()[key], tensor) for key, tensor in saved.items())


def test_torchrun_with_one_process_is_a_run_of_one_process(tmp_path: Path) -> None:
    changes = {"num_steps": 2}
    train_here(quick_spec(**changes), tmp_path / "one")
    ranks = ForkedRanks(tmp_path / "two", quick_document(**changes, parallelism={"kind": "fully_sharded"}), 1)
    assert ranks.exit_codes() == [DONE], ranks.logs
    (told,) = [
        event for event in events_of(tmp_path / "two") if isinstance(event, Warned) and event.code == "parallelism"
    ]
    assert told.message == "parallelism.kind is 'fully_sharded' but the run has one process, which does all the work."
    folders = [tmp_path / name / "attempts/1/checkpoints/step-2" for name in ("one", "two")]
    assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()


def test_several_processes_of_a_run_for_one_are_refused_by_each(tmp_path: Path) -> None:
    ranks = ForkedRanks(tmp_path / "run", quick_document(), 2)
    assert ranks.exit_codes() == [OF_FAILURE["bad_spec"]] * 2
    sentence = (
        "torchrun has started 2 processes but parallelism.kind is 'one_process'; set it to data_parallel or fully_sharded, or "
        "start one."
    )
    assert [rank.log.strip() for rank in ranks.ranks] == [sentence, sentence]


def test_what_stops_one_process_is_what_the_run_fails_with(tmp_path: Path) -> None:
    """Process 1 cannot read the prompts: the first one, which writes the events, says why."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join((TINY / "data" / "train.jsonl").read_text().splitlines(keepends=True)[:8]))
    document = quick_document(parallelism={"kind": "data_parallel"}, prompts={"path": f"home:{prompts.name}"})
    homes = [tmp_path / name for name in ("first", "second")]
    for folder in homes:
        folder.mkdir()
    (homes[0] / prompts.name).write_bytes(prompts.read_bytes())
    ranks = ForkedRanks(tmp_path / "run", document, 2, homes=[str(folder) for folder in homes])
    assert ranks.exit_codes() == [OF_FAILURE["bad_data"]] * 2, ranks.logs
    (failed,) = [event for event in events_of(tmp_path / "run") if isinstance(event, Failed)]
    assert failed.failure == "bad_data"
    assert failed.message.startswith("Process 1 of 2: ")


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"overlap": True}, "parallelism", "set overlap to false"),
        (
            {"rollouts": {"kind": "vllm_servers", "servers": [{"address": "http://127.0.0.1:1"}]}},
            "parallelism",
            "rollouts to engine",
        ),
        (
            {"selection": {"kind": "probe", "probe_tokens": 2}, "rollouts_per_prompt": 4},
            "parallelism",
            "selection to all",
        ),
        ({"adapter": {"kind": "lora"}}, "parallelism", "data_parallel or adapter to none"),
        ({"teacher_offload": "always"}, "parallelism", "teacher_offload to auto or never"),
        ({"prompts_per_step": 1}, "parallelism.num_processes", "lower it to 1 or raise prompts_per_step"),
    ],
)
def test_what_is_not_proven_for_several_processes_is_refused_with_the_fix(
    changes: dict[str, object], field: str, words: str
) -> None:
    document = quick_document(parallelism={"kind": "fully_sharded"}, **changes)
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    (finding,) = findings_of(caught.value, document)
    assert finding.field == field
    assert words in finding.message


@given(items=st.lists(st.integers()), size=st.integers(1, 9))
def test_what_is_shared_out_comes_together_in_its_order(items: list[int], size: int) -> None:
    parts = [Ranks(rank=rank, size=size).share(items) for rank in range(size)]
    assert Ranks(size=size).joined(parts) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_asked_of_anybody() -> None:
    assert "RANK" not in os.environ
    assert ALONE.gathered({"a": 1}) == [{"a": 1}]
    assert ALONE.agreed(3) == ALONE.most(3) == 3
    weight = torch.ones(2, requires_grad=True)
    ALONE.sum_gradients([weight])
    assert weight.grad is None
    control = Control()
    control.agree(ALONE)
    assert not control.stop
