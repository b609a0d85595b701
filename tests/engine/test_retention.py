"""Which checkpoints stay: the newest, the best, every so many steps, and those that are pinned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.retention import Kept, dropped
from engine.spec import CheckpointSpec

SCORES = {10: 0.1, 20: 0.5, 30: 0.4, 40: 0.2, 50: 0.3}


def on_disk(*, best: int | None = 20, pinned: tuple[int, ...] = ()) -> list[Kept]:
    """Checkpoints of the steps 5, 10, … 50; every second one was evaluated."""
    return [
        Kept(
            step=step,
            attempt=1,
            score=(SCORES[step], 0.0) if step in SCORES else None,
            is_best=step == best,
            is_pinned=step in pinned,
        )
        for step in range(5, 51, 5)
    ]


@pytest.mark.parametrize(
    ("spec", "pinned", "kept"),
    [
        ({}, (), {20, 45, 50}),
        ({"keep_last": 1}, (), {20, 50}),
        ({"keep_last": 1, "keep_best": 2}, (), {20, 30, 50}),
        ({"keep_last": 1, "keep_best": 3}, (), {20, 30, 50}),  # the third best is the newest
        ({"keep_last": 1, "keep_best": 4}, (), {20, 30, 40, 50}),
        ({"keep_last": 1, "keep_every_steps": 15}, (), {15, 20, 30, 45, 50}),
        ({"keep_last": 1}, (5, 25), {5, 20, 25, 50}),
        ({"keep_last": 99}, (), set(range(5, 51, 5))),
    ],
)
def test_a_checkpoint_stays_when_any_rule_keeps_it(
    spec: dict[str, int], pinned: tuple[int, ...], kept: set[int]
) -> None:
    checkpoints = on_disk(pinned=pinned)
    gone = {one.step for one in dropped(checkpoints, CheckpointSpec.model_validate(spec))}
    assert {one.step for one in checkpoints} - gone == kept


def test_the_best_stays_also_when_its_score_is_not_known_or_another_scores_as_high() -> None:
    checkpoints = [Kept(step=10, attempt=1, is_best=True), *on_disk(best=None)[2:]]
    gone = dropped(checkpoints, CheckpointSpec(keep_last=1, keep_best=1))
    assert checkpoints[0] not in gone


@pytest.mark.parametrize("step", [10, 5])
def test_what_a_later_attempt_wrote_is_newer_whatever_its_step(step: int) -> None:
    older, newer = Kept(step=10, attempt=3), Kept(step=step, attempt=12)
    assert dropped([newer, older], CheckpointSpec(keep_last=1)) == [older]
    pinned = older.model_copy(update={"is_pinned": True})
    assert dropped([newer, pinned], CheckpointSpec(keep_last=1)) == []


@given(
    st.lists(
        st.builds(
            Kept,
            step=st.integers(1, 40),
            attempt=st.integers(1, 3),
            score=st.none() | st.tuples(st.floats(0, 1), st.floats(-1, 0)),
            is_best=st.booleans(),
            is_pinned=st.booleans(),
        ),
        unique_by=lambda one: (one.step, one.attempt),
    ),
    st.builds(
        CheckpointSpec,
        keep_last=st.integers(1, 5),
        keep_best=st.integers(1, 5),
        keep_every_steps=st.none() | st.integers(1, 9),
    ),
)
def test_pinned_best_and_newest_stay_and_a_second_look_drops_nothing_more(
    checkpoints: list[Kept], spec: CheckpointSpec
) -> None:
    gone = dropped(checkpoints, spec)
    assert not [one for one in gone if one.is_pinned or one.is_best]
    left = [one for one in checkpoints if one not in gone]
    assert len(left) >= min(len(checkpoints), spec.keep_last)
    assert dropped(left, spec) == []
