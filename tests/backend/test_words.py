"""Every schedule, region and anchoring has words of its own for tables."""

from typing import Any, get_args

import pytest

from backend.words import prefix_in_words
from engine.prefixes import PrefixSchedule
from engine.spec import RunSpec
from tests.engine.models import tiny_document

WORDS = {
    "constant": ({"tokens": 8}, "8"),
    "ratio": ({"share": 0.25}, "0.25 of full"),
    "full": ({}, "full"),
    "linear": ({"start_tokens": 16, "increment_tokens": 0.5}, "16 + 0.5/step"),
    "staircase": ({"start_tokens": 16, "increment_tokens": 8, "every_steps": 20}, "16 + 8 every 20 steps"),
    "cosine": ({"start_tokens": 16, "end_tokens": 64}, "16 to 64 along a cosine"),
    "stages": ({"stages": [{"steps": 5, "tokens": 8}, {"steps": 5, "tokens": 16}]}, "8, then 16"),
    "plateau": ({"start_tokens": 16, "increment_tokens": 8}, "16 + 8 at plateaus"),
    "divergence_share": ({"cap_tokens": 64}, "16 + 16 while the outer part diverges, at most 64"),
    "validation": ({}, "16 + 16 when validation stalls"),
}


def words(**changes: Any) -> str:
    return prefix_in_words(RunSpec.model_validate(tiny_document(**changes)))


@pytest.mark.parametrize("member", get_args(get_args(PrefixSchedule)[0]), ids=lambda member: member.__name__)
def test_each_schedule_has_words(member: Any) -> None:
    kind = member.model_fields["kind"].default
    fields, expected = WORDS[kind]
    assert words(prefix={"kind": kind} | fields) == expected


def test_many_stages_are_cut_short() -> None:
    stages = [{"steps": 1, "tokens": tokens} for tokens in (8, 16, 24, 32)]
    assert words(prefix={"kind": "stages", "stages": stages}) == "8, then 16, then 24, …"


def test_regions_and_anchors_are_said_behind_the_schedule() -> None:
    full = {"kind": "full"}
    assert words(prefix=full, loss_region={"kind": "window", "start": 32, "end": 64}) == "full, loss on [32, 64)"
    assert words(prefix=full, loss_region={"kind": "suffix", "tokens": 16}) == "full, loss on the last 16"
    assert words(anchoring={"kind": "every_nth_step", "n": 8}) == "8, every 8th full"
    assert words(anchoring={"kind": "fraction", "share": 0.125}) == "8, 0.125 of each batch full"
