"""What a tracker is told of a real run of the tiny pair: nothing twice, nothing secret, nothing the run would wait for."""

import os
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.events import Evaluated, Started, StepDone, Stopped, Warned
from engine.flops import FlopLedger
from engine.journal import Journal
from incipit.cli import app
from incipit.tracking.adapter import EventAdapter, unit_of
from incipit.tracking.record import Measurement, Note, Resumed
from incipit.tracking.run_folder import RunFolder
from tests.engine.running import events_of, quick_spec, train_here

pytestmark = pytest.mark.usefixtures("home")
_SECRET = "hf_" + "a" * 30


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, and again from the checkpoint of the second one."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    spec = quick_spec(num_steps=4, checkpoints={"every_steps": 2})
    folder.mkdir()
    (folder / "spec.json").write_text(spec.model_dump_json())
    train_here(spec, folder)
    train_here(spec, folder, attempt=2, resume=folder / "attempts/1/checkpoints/step-2")
    return folder


def test_steps_done_again_are_told_once(trained: Path) -> None:
    steps = [event for event in RunFolder(trained).events(follow=False) if isinstance(event, StepDone)]
    assert [event.step for event in steps] == [1, 2, 3, 4]
    assert steps[2:] == [event for event in events_of(trained, 2) if isinstance(event, StepDone)]


def test_figures_are_those_of_the_events_with_their_units(trained: Path) -> None:
    adapter = EventAdapter({})
    events = list(RunFolder(trained).events(follow=False))
    told = [one for event in events for one in adapter.told(event)]
    measured = [one for one in told if isinstance(one, Measurement)]
    last = next(event for event in reversed(events) if isinstance(event, StepDone))
    figures = {metric.name: metric for one in measured if one.time == last.time for metric in one.metrics}
    assert figures["train/loss"].value == last.metrics["loss"]
    assert figures["train/loss"].unit == "nats"
    assert figures["flops/training"].value == last.flops.training
    assert figures["executed_flops/total"].value == pytest.approx(
        sum(figures[f"executed_flops/{phase}"].value for phase in FlopLedger.model_fields if phase != "rollout_prefill")
    )
    assert figures["seconds/total"].value == last.seconds["total"]
    evaluated = [event for event in events if isinstance(event, Evaluated) and event.subject == "student"]
    named = {(one.step, m.name): m.value for one in measured for m in one.metrics}
    for event in evaluated:
        for name, value in event.metrics.items():
            assert named.get((event.step, f"evaluation/student/{event.split}/{name}")) == value
    assert Resumed(2, events_of(trained, 2)[0].time) in told
    assert {"checkpoint-2", "checkpoint-4", "finished"} <= {one.name for one in told if isinstance(one, Note)}


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("train/student_entropy", "nats"),
        ("train/sampled_logprob_gap", "nats"),
        ("evaluation/student/dev/reverse_kl_beyond", "nats"),
        ("evaluation/student/dev/sampled_mean_tokens", "tokens"),
        ("train/horizon", "tokens"),
        ("train/natural_stop_rate", "1"),
        ("evaluation/student/dev/accuracy", "1"),
    ],
)
def test_units(name: str, unit: str) -> None:
    assert unit_of(name) == unit


def test_secrets_are_not_told() -> None:
    adapter = EventAdapter({"HF_TOKEN": "token-of-the-hub"})
    warned = Warned(time=1.0, code="plain", message=f"The key {_SECRET} is wrong.", advice="Not token-of-the-hub.")
    (note,) = adapter.told(warned)
    assert isinstance(note, Note)
    assert note.kind == "alarm"
    given = adapter.parameters({"a": {"servers": [f"http://me:password@host/{_SECRET}"]}, "b": None, "c": True})
    assert set(given) == {"a.servers", "c"}
    for text in (note.text, str(given)):
        assert not any(secret in text for secret in (_SECRET, "token-of-the-hub", "me:password"))


def test_the_id_goes_with_the_run_and_not_with_its_place(trained: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "moved"
    elsewhere.symlink_to(trained)
    assert RunFolder(trained).identity() == RunFolder(elsewhere).identity()
    assert RunFolder(tmp_path).identity() is None


def test_following_ends_with_the_run_and_leaves_half_a_line_for_later(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "attempts/1/events.jsonl"
    lines = (trained / "attempts/1/events.jsonl").read_bytes()
    middle = len(lines) // 2
    path.parent.mkdir(parents=True)
    path.write_bytes(lines[:middle])

    def go_on() -> None:
        time.sleep(0.7)
        with path.open("ab") as file:
            file.write(lines[middle:])

    writer = threading.Thread(target=go_on)
    writer.start()
    followed = list(RunFolder(tmp_path).events(follow=True))
    writer.join()
    assert followed == events_of(trained, 1)


def test_following_goes_on_with_the_next_attempt_of_a_run_that_was_killed(tmp_path: Path) -> None:
    given = {"pid": 1, "device": "cpu", "precision": "float32", "num_steps": 2}
    with Journal(tmp_path / "attempts/1/events.jsonl") as journal:
        journal.emit(Started, attempt=1, **given)
    following = RunFolder(tmp_path).events(follow=True)
    assert isinstance(next(following), Started)
    with Journal(tmp_path / "attempts/2/events.jsonl") as journal:
        journal.emit(Started, attempt=2, **given)
        journal.emit(Stopped, step=0, checkpointed=False)
    assert [event.kind for event in following] == ["started", "stopped"]


@pytest.mark.parametrize("to", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_a_missing_library_is_one_sentence(trained: Path, tmp_path: Path, to: str) -> None:
    done = CliRunner().invoke(app, ["track", str(trained), "--to", to, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        f"{to} is not installed here and --to {to} needs it; install it with: pip install {to}"
    ]


def test_what_is_no_run_is_one_sentence(home: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["track", str(tmp_path / "none"), "--to", "wandb"])
    assert done.exit_code == 1
    assert str(home / "runs") in done.stderr
    empty = home / "runs" / "an-id"
    empty.mkdir(parents=True)
    (empty / "spec.json").write_text("{}")
    done = CliRunner().invoke(app, ["track", "an-id", "--to", "wandb"])
    assert done.stderr == "No event of the run is on disk yet; wait for it with --follow.\n"
    done = CliRunner().invoke(app, ["track", "an-id", "--to", "wandb", "--uri", os.devnull])
    assert done.exit_code == 2
