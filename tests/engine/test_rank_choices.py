"""Every choice that changes what a step does, and models of many architectures, with two processes against one."""

from pathlib import Path
from typing import Any

import pytest

from engine.events import CheckpointSaved
from engine.exit_codes import DONE
from engine.spec import RunSpec
from tests.engine.families import FAMILIES, write_family
from tests.engine.launching import ForkedRanks
from tests.engine.running import events_of, quick_document, train_here
from tests.engine.test_ranks import assert_same_checkpoint, assert_same_steps

pytestmark = pytest.mark.full
BOTH = ("data_parallel", "fully_sharded")
CHOICES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "an adapter": (("data_parallel",), {"adapter": {"kind": "lora", "rank": 4}}),
    "an adapter over one base": (
        ("data_parallel",),
        {"adapter": {"kind": "lora", "rank": 4}, "teacher": {"path": "builtin:tiny/models/student-plan"}},
    ),
    "a sentinel and a prefix that grows": (
        BOTH,
        {
            "prefix": {
                "kind": "plateau",
                "start_tokens": 2,
                "increment_tokens": 3,
                "patience_steps": 1,
                "min_reach_rate": 0.0,
            },
            "sentinel": {"kind": "watch", "num_rollouts": 2, "every_steps": 2},
            "rollouts_per_prompt": 2,
        },
    ),
    "the policy gradient": (BOTH, {"divergence": {"kind": "policy_gradient"}}),
    "weights, a guard and the teacher's beginnings": (
        BOTH,
        {
            "token_weights": {"kind": "tip"},
            "termination_guard": {"kind": "forward_kl"},
            "completions": {"kind": "teacher_prefix", "tokens": 2},
            "early_stopping": {"kind": "evaluation", "patience": 1},
            "evaluation": quick_document()["evaluation"] | {"every_steps": 2, "samples_per_prompt": 2},  # type: ignore[operator]
        },
    ),
    "a micro-batch and blocks as memory allows": (BOTH, {"micro_batch_rollouts": "auto"}),
}


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    """Each test measures its own baselines."""


def compare(tmp_path: Path, kinds: tuple[str, ...], document: dict[str, Any]) -> None:
    expected = train_here(RunSpec.model_validate(document), tmp_path / "one")
    for kind in kinds:
        ranks = ForkedRanks(tmp_path / kind, document | {"parallelism": {"kind": kind}}, 2)
        assert ranks.exit_codes() == [DONE, DONE], ranks.logs
        found = events_of(tmp_path / kind)
        assert_same_steps(found, expected)
        last = [event for event in found if isinstance(event, CheckpointSaved)][-1].path
        assert_same_checkpoint(tmp_path / kind / "attempts/1" / last, tmp_path / "one/attempts/1" / last)


@pytest.mark.parametrize("choice", CHOICES)
def test_two_processes_do_with_any_choice_what_one_does(tmp_path: Path, choice: str) -> None:
    kinds, changes = CHOICES[choice]
    compare(tmp_path, kinds, quick_document(num_steps=4, prompts_per_step=3) | changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_student_of_any_architecture_learns_what_a_whole_one_does(tmp_path: Path, family: str) -> None:
    for name, seed in (("student", 0), ("teacher", 1)):
        write_family(tmp_path / name, family, seed)
    models = {name: {"path": str(tmp_path / name)} for name in ("student", "teacher")}
    compare(tmp_path, ("fully_sharded",), quick_document(num_steps=2, **models))
