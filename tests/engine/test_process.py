"""The engine as a process: what it is told, how it ends, and that nothing is lost when it is killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from engine.checkpoint import newest_checkpoint, verify_checkpoint
from engine.events import CheckpointSaved, Evaluated, Failed, Finished, RunEvent, Started, Stopped, Warned
from engine.exit_codes import DONE, OF_FAILURE, STOPPED
from engine.spec import RunSpec
from tests.engine.models import TINY
from tests.engine.running import EngineProcess, events_of, quick_document, steps_of

ENDLESS = quick_document(num_steps=100_000)
ORPHANED = 75


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    """Each test measures its own baselines."""


def stepping(events: list[RunEvent]) -> bool:
    return len(steps_of(events)) >= 2


def checkpoint_steps(events: list[RunEvent]) -> list[int]:
    return [event.step for event in events if isinstance(event, CheckpointSaved)]


def engine_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_a_bad_spec_ends_with_11_and_a_sentence_per_mistake(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(quick_document(num_steps=0, speed=3)))
    done = engine_command("train", "--spec", str(spec), "--out", str(tmp_path / "run"))
    assert done.returncode == OF_FAILURE["bad_spec"] == 11
    assert done.stderr.splitlines() == [
        "num_steps is 0 but must be at least 1; raise it.",
        "speed is not a field of the spec; remove it or correct its name.",
    ]
    assert not (tmp_path / "run").exists()


def test_the_module_runs_from_any_folder(tmp_path: Path) -> None:
    """The one run in this file that pays for importing torch: the others are forked."""
    (tmp_path / "spec.json").write_text(json.dumps(quick_document(num_steps=2)))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "engine", "train", "--spec", "spec.json", "--out", "run"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (DONE, "", "")
    assert steps_of(events_of(tmp_path / "run")) == [1, 2]


def test_a_killed_run_resumes_to_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    document = quick_document(num_steps=9, checkpoints={"every_steps": 2, "keep_last": 3}, micro_batch_rollouts=3)
    whole = EngineProcess(tmp_path / "whole", document)
    killed = EngineProcess(tmp_path / "killed", document)
    kill_at = random.randrange(1, 9)
    killed.wait_for(lambda events: len(steps_of(events)) >= kill_at)
    killed.send(signal.SIGKILL)
    assert killed.exit_code() == -signal.SIGKILL
    start = newest_checkpoint(tmp_path / "killed")
    resumed = EngineProcess(tmp_path / "killed", document, "--attempt", "2", "--resume", "newest")
    assert whole.exit_code() == resumed.exit_code() == DONE, resumed.log

    events = events_of(tmp_path / "killed", 2)
    (started,) = [event for event in events if isinstance(event, Started)]
    first = started.resumed_from_step
    assert first == (0 if start is None else int(start.name.removeprefix("step-")))
    # A reader replaces what was recorded after the checkpoint by the new attempt's steps: each occurs once.
    kept = [step for step in steps_of(events_of(tmp_path / "killed", 1)) if step <= first]
    assert kept + steps_of(events) == list(range(1, 10))
    folders = [next((tmp_path / name).glob("attempts/*/checkpoints/step-9")) for name in ("whole", "killed")]
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), (file, kill_at)
    ends = [events_of(tmp_path / "whole")[-1], events[-1]]
    assert [end.best_step for end in ends if isinstance(end, Finished)] == [9, 9]


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(tmp_path: Path) -> None:
    document = quick_document(checkpoints={"every_steps": 2, "keep_last": 9})
    assert EngineProcess(tmp_path / "run", document).exit_code() == DONE
    folder = tmp_path / "run" / "attempts" / "1" / "checkpoints"
    weights = bytearray((folder / "step-6" / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (folder / "step-6" / "model.safetensors").write_bytes(weights)
    (folder / "step-4" / "trainer" / "optimizer.safetensors").unlink()
    assert EngineProcess(tmp_path / "run", document, "--attempt", "2", "--resume", "newest").exit_code() == DONE
    again = events_of(tmp_path / "run", 2)
    assert steps_of(again) == [3, 4, 5, 6]
    told = [event.message for event in again if isinstance(event, Warned) and event.code == "damaged_checkpoint"]
    assert [f"checkpoints/step-{step} is damaged: " in one for step, one in zip((6, 4), told, strict=True)] == [
        True,
        True,
    ]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again_as_if_it_went_on(tmp_path: Path) -> None:
    assert EngineProcess(tmp_path / "run", quick_document(num_steps=2)).exit_code() == DONE
    for manifest in (tmp_path / "run").glob("attempts/1/checkpoints/step-*/manifest.json"):
        manifest.unlink()
    process = EngineProcess(tmp_path / "run", quick_document(num_steps=2), "--attempt", "2", "--resume", "newest")
    assert process.exit_code() == OF_FAILURE["bad_checkpoint"]
    assert not (tmp_path / "run" / "attempts" / "2").exists()


def test_a_named_checkpoint_that_is_damaged_ends_with_14(tmp_path: Path) -> None:
    assert EngineProcess(tmp_path / "run", quick_document(num_steps=2)).exit_code() == DONE
    name = "attempts/1/checkpoints/step-2"
    (tmp_path / "run" / name / "model.safetensors").write_bytes(b"short")
    process = EngineProcess(tmp_path / "run", quick_document(num_steps=2), "--attempt", "2", "--resume", name)
    assert process.exit_code() == OF_FAILURE["bad_checkpoint"] == 14
    failed = events_of(tmp_path / "run", 2)[-1]
    assert isinstance(failed, Failed)
    assert "is damaged: model.safetensors has 5 bytes instead of" in failed.message


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_a_stop_on_stdin_ends_with_10(tmp_path: Path, with_checkpoint: bool) -> None:
    process = EngineProcess(tmp_path / "run", ENDLESS, "--supervised")
    process.wait_for(stepping)
    process.tell({"command": "stop", "checkpoint": with_checkpoint})
    assert process.exit_code() == STOPPED
    events = events_of(tmp_path / "run")
    stopped = events[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.step == steps_of(events)[-1]
    assert stopped.checkpointed is with_checkpoint
    assert checkpoint_steps(events) == ([stopped.step] if with_checkpoint else [])


def test_a_checkpoint_is_written_when_asked_for_and_nonsense_is_ignored(tmp_path: Path) -> None:
    process = EngineProcess(tmp_path / "run", ENDLESS, "--supervised")
    process.wait_for(stepping)
    for nonsense in ("no command", [1], {"command": "dance"}, {}):
        process.tell(nonsense)
    for nonsense_bytes in (b"", b"\xff\xfe", b"[" * 100_000):
        process.tell_bytes(nonsense_bytes)
    process.tell({"command": "checkpoint"})
    process.wait_for(lambda events: bool(checkpoint_steps(events)))
    (step,) = checkpoint_steps(process.wait_for(lambda events: steps_of(events)[-1] > checkpoint_steps(events)[0] + 1))
    verify_checkpoint(tmp_path / "run" / "attempts" / "1" / "checkpoints" / f"step-{step}")
    process.tell({"command": "stop", "checkpoint": False})
    assert process.exit_code() == STOPPED


def test_the_end_of_stdin_ends_a_supervised_engine_at_once(tmp_path: Path) -> None:
    process = EngineProcess(tmp_path / "run", ENDLESS, "--supervised")
    process.wait_for(stepping)
    process.close_stdin()
    assert process.exit_code() == ORPHANED
    assert not any(isinstance(event, Stopped | Finished | Failed) for event in events_of(tmp_path / "run"))


def test_sigterm_stops_with_a_checkpoint_that_a_resume_starts_from(tmp_path: Path) -> None:
    process = EngineProcess(tmp_path / "run", ENDLESS)
    process.wait_for(stepping)
    process.send(signal.SIGTERM)
    assert process.exit_code() == STOPPED
    stopped = events_of(tmp_path / "run")[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.checkpointed
    again = quick_document(num_steps=stopped.step + 1)
    other = again | {"prompts_per_step": 1, "prefix": {"kind": "full"}}
    refused = EngineProcess(tmp_path / "run", other, "--attempt", "2", "--resume", "newest")
    assert refused.exit_code() == OF_FAILURE["bad_spec"]
    assert "with which this run was begun, in prefix, prompts_per_step; resume with that file" in refused.log.replace(
        "\n", " "
    )
    assert EngineProcess(tmp_path / "run", again, "--attempt", "2", "--resume", "newest").exit_code() == DONE
    assert steps_of(events_of(tmp_path / "run", 2)) == [stopped.step + 1]
    kept = RunSpec.model_validate_json((tmp_path / "run" / "spec.json").read_bytes())
    assert kept.num_steps == stopped.step + 1, "the file says what the run has become"


def test_a_stop_before_the_first_step_leaves_no_checkpoint(tmp_path: Path) -> None:
    process = EngineProcess(tmp_path / "run", ENDLESS)
    process.wait_for(lambda events: any(event.kind == "started" for event in events))
    process.send(signal.SIGTERM)
    assert process.exit_code() == STOPPED
    stopped = events_of(tmp_path / "run")[-1]
    assert isinstance(stopped, Stopped)
    if stopped.step == 0:  # loading takes long enough, but nothing forces it to
        assert not stopped.checkpointed
        assert newest_checkpoint(tmp_path / "run") is None


def test_a_bad_model_ends_with_12_and_a_finding(tmp_path: Path) -> None:
    process = EngineProcess(tmp_path / "run", quick_document(teacher={"path": "/nowhere"}))
    assert process.exit_code() == OF_FAILURE["bad_model"] == 12
    failed = events_of(tmp_path / "run")[-1]
    assert isinstance(failed, Failed)
    assert [finding.field for finding in failed.findings] == ["teacher.path"]
    assert process.log.strip() == failed.message


def test_bad_data_ends_with_13_and_a_finding(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "k0"}\n{"prompt": ""}\n')
    process = EngineProcess(tmp_path / "run", quick_document(prompts={"path": str(tmp_path / "prompts.jsonl")}))
    assert process.exit_code() == OF_FAILURE["bad_data"] == 13
    failed = events_of(tmp_path / "run")[-1]
    assert isinstance(failed, Failed)
    assert failed.findings[0].field == "prompts.path"
    assert "line 2" in failed.message


def test_numbers_that_are_not_finite_end_with_16(tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(TINY / "models" / "teacher", tmp_path / "teacher"))
    weights = load_file(teacher / "model.safetensors")
    weights["model.norm.weight"] *= 1e36  # logits and loss stay finite, the gradient's norm does not
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    process = EngineProcess(tmp_path / "run", quick_document(teacher={"path": str(teacher)}))
    assert process.exit_code() == OF_FAILURE["nan_loss"] == 16, process.log
    failed = events_of(tmp_path / "run")[-1]
    assert isinstance(failed, Failed)
    assert "not finite" in failed.message


@pytest.mark.parametrize("max_file_bytes", [300_000, 600_000], ids=["weights", "optimizer"])
def test_a_checkpoint_without_space_ends_with_17_and_leaves_nothing_half_made(
    tmp_path: Path, max_file_bytes: int
) -> None:
    """A limit on the size of files stands in for a full disk: weights take 0.45 MB, the optimizer twice that."""
    process = EngineProcess(tmp_path / "run", quick_document(), max_file_bytes=max_file_bytes)
    code = process.exit_code()
    assert code == OF_FAILURE["disk_full"] == 17, process.log
    assert list((tmp_path / "run" / "attempts" / "1" / "checkpoints").iterdir()) == []
    failed = events_of(tmp_path / "run")[-1]
    assert isinstance(failed, Failed)
    assert failed.failure == "disk_full"
    assert "Traceback" not in process.log


def test_a_journal_without_space_ends_with_17(tmp_path: Path) -> None:
    process = EngineProcess(tmp_path / "run", quick_document(num_steps=100), max_file_bytes=9_000)
    assert process.exit_code() == OF_FAILURE["disk_full"]
    assert "No space is left for the files of the run" in process.log
    assert "Traceback" not in process.log
    # What was written before is whole: a reader finds no torn line.
    assert steps_of(events_of(tmp_path / "run"))[:2] == [1, 2]
    assert (tmp_path / "run/attempts/1/events.jsonl").read_bytes().endswith(b"}\n")


def test_a_run_folder_that_cannot_be_made_ends_with_17_and_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(quick_document()))
    process = EngineProcess(tmp_path / "other", quick_document(), "--out", str(tmp_path / "file" / "run"))
    assert process.exit_code() == OF_FAILURE["disk_full"]
    assert "cannot be written (Not a directory); choose another --out." in process.log


def test_evaluations_come_before_the_first_step_and_at_the_end(tmp_path: Path) -> None:
    assert EngineProcess(tmp_path / "run", quick_document()).exit_code() == DONE
    seen = [
        (event.subject, event.split, event.step)
        for event in events_of(tmp_path / "run")
        if isinstance(event, Evaluated)
    ]
    assert seen == [("base", "dev", 0), ("teacher", "dev", 0), ("student", "dev", 6)]
