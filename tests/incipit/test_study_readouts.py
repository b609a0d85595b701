"""Read-outs and verdicts of studies against formulas written independently."""

import itertools
import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from incipit.arm_study import Claim, Measure, read_arm_study
from incipit.study_data import StudyData
from incipit.study_evidence import evidence
from incipit.study_readouts import Paired, curve, paired, sign_flip_p, value_at
from incipit.study_verdicts import Decision, decided, verdict
from tests.incipit.study_figures import T_95, figures, study_document

HIGHER = Measure(key="accuracy", name="exact match", is_better_when="higher", margin=0.02)


def test_two_arms_are_compared_where_the_shorter_one_ended() -> None:
    data = StudyData(
        [
            *figures("short", 0, [0.4, 0.6, 0.8], 1.0), *figures("long", 0, [0.4, 0.5, 0.7, 0.9], 4.0),
            *figures("short", 1, [0.4, 0.5, 0.6], 1.0), *figures("long", 1, [0.4, 0.4, 0.6, 0.9], 4.0),
            *figures("long", 2, [0.4, 0.4], 4.0),
        ]
    )  # fmt: skip
    at_steps = paired(data, "short", "long", "accuracy", "steps", [0, 1, 2])
    assert at_steps is not None
    assert at_steps.seeds == [0, 1]
    assert at_steps.differences == pytest.approx([0.8 - 0.7, 0.6 - 0.6])
    half = T_95[1] * statistics.stdev(at_steps.differences) / math.sqrt(2)
    assert at_steps.interval == pytest.approx((0.05 - half, 0.05 + half), abs=1e-6)
    # 20 FLOPs are half of the way to the long one's first evaluation.
    at_flops = paired(data, "short", "long", "accuracy", "flops", [0, 1])
    assert at_flops is not None
    assert at_flops.differences == pytest.approx([0.8 - 0.45, 0.6 - 0.4])
    at_time = paired(data, "short", "long", "accuracy", "time", [0, 1])
    assert at_time is not None
    assert at_time.differences == pytest.approx(at_steps.differences)
    assert paired(data, "short", "long", "accuracy", "steps", [2]) is None


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=6), share=st.floats(0, 1))
def test_between_evaluations_a_curve_is_a_line(values: list[float], share: float) -> None:
    points = curve(StudyData(figures("a", 0, values, 3.0)), "a", 0, "accuracy")
    end = points[-1].flops
    expected = np.interp(share * end, [p.flops for p in points], [p.value for p in points])
    assert value_at(points, "flops", share * end) == pytest.approx(float(expected), abs=1e-9)
    assert value_at(points, "flops", end * 1.01) is None


@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=7))
def test_the_sign_flip_test_counts_all_signs(differences: list[float]) -> None:
    observed = abs(sum(differences))
    flipped = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=len(differences))]
    assert sign_flip_p(differences) == pytest.approx(np.mean([one >= observed - 1e-9 for one in flipped]))


@pytest.mark.parametrize(
    ("says", "interval", "expected"),
    [
        ("as good", (-0.01, 0.3), "confirmed"), ("as good", (-0.3, -0.03), "refuted"), ("as good", (-0.03, 0.3), "undecided"),
        ("better", (0.01, 0.3), "confirmed"), ("better", (-0.3, -0.01), "refuted"), ("better", (-0.1, 0.1), "undecided"),
        ("worse", (-0.3, -0.01), "confirmed"), ("worse", (0.01, 0.3), "refuted"), ("worse", (-0.1, 0.1), "undecided"),
        ("better", None, "undecided"), ("better", (-0.01, 0.019), "refuted"), ("worse", (-0.019, 0.3), "refuted"),
        ("better", (0.001, 0.002), "refuted"), ("worse", (-0.002, -0.001), "refuted"), ("worse", (-0.3, 0.1), "undecided"),
    ],
)  # fmt: skip
def test_a_claim_is_decided_by_the_interval(says: Any, interval: tuple[float, float] | None, expected: str) -> None:
    claim = Claim(statement="…", arm="a", against="b", at="steps", says=says)
    seeds = [0, 1, 2] if interval else [0]
    assert verdict(claim, HIGHER, Paired(seeds, [], 0.0, interval, 1.0)) == expected
    lower = HIGHER.model_copy(update={"is_better_when": "lower"})
    mirrored = None if interval is None else (-interval[1], -interval[0])
    assert verdict(claim, lower, Paired(seeds, [], 0.0, mirrored, 1.0)) == expected
    assert verdict(claim, HIGHER, Paired([0, 1], [], 0.0, interval, 1.0)) == "undecided", "two seeds decide nothing"


def test_a_claim_may_speak_of_the_reports() -> None:
    claim = {
        "statement": "It is as good elsewhere.",
        "arm": "prefix 8",
        "against": "full",
        "at": "steps",
        "says": "as good",
        "on": "report",
    }
    study = read_arm_study(study_document(claims=[claim]), "here")
    reports = [
        one
        for seed in (0, 1, 2)
        for arm, end in (("full", 0.5), ("prefix 8", 0.5 + seed / 100))
        for split, values in (("dev", [0.4, 0.9 if arm == "full" else 0.1]), ("report", [0.3, end]))
        for one in figures(arm, seed, values, 1.0, split)
    ]
    decision = decided(study, StudyData(reports), study.claims[0])
    assert decision.found is not None
    assert decision.found.differences == pytest.approx([0.0, 0.01, 0.02])
    assert decision.verdict == "confirmed", "what dev says does not count"
    assert "at the best checkpoint, report prompts: +0.010" in evidence(study, study.claims[0], decision)
    with pytest.raises(ValueError, match=r"claims\.0\.at is 'flops', but a report is made once"):
        read_arm_study(study_document(claims=[claim | {"at": "flops"}]), "here")


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (Paired([0, 1], [], 0.25, (-0.1, 0.6), 1.0), "+0.250 [-0.100, +0.600]"),
        (Paired([0, 1], [], -0.00021, (-0.00062, 0.0002), 1.0), "-0.00021 [-0.00062, +0.00020]"),
        (Paired([0], [], 0.0046, None, 1.0), "+0.0046"),
        (Paired([0, 1], [], 0.0, (0.0, 0.0), 1.0), "+0.000 [+0.000, +0.000]"),
        (Paired([0, 1], [], 0.3, (0.2, 0.4), 1.0, ([0.1, 0.2], [0.5, 0.6])), "between +0.150 and +0.550"),
    ],
)
def test_a_small_difference_is_not_shown_as_none(found: Paired, shown: str) -> None:
    study = read_arm_study(study_document(), "here")
    decision = Decision("undecided", found, is_margin_too_wide=False)
    assert f": {shown}, {len(found.seeds)} seed" in evidence(study, study.claims[0], decision)


def test_before_the_first_evaluation_both_ends_must_say_the_same() -> None:
    """The long run is read half-way to its first evaluation, which may have been reached at once or not at all."""
    claim = Claim(statement="…", arm="short", against="long", at="flops", says="better")
    for first, expected in ((0.6, "confirmed"), (0.9, "undecided"), (0.1, "confirmed")):
        data = StudyData(
            [
                one
                for seed in range(3)
                for one in (
                    *figures("short", seed, [0.4, 0.6, 0.8], 1.0),
                    *figures("long", seed, [0.4, first, 0.9], 4.0),
                )
            ]
        )
        found = paired(data, "short", "long", "accuracy", "flops", [0, 1, 2])
        assert found is not None
        assert found.differences == pytest.approx([0.8 - (0.4 + first) / 2] * 3)
        assert found.bounds is not None
        assert found.bounds[0] == pytest.approx([0.8 - max(0.4, first)] * 3)
        assert found.bounds[1] == pytest.approx([0.8 - min(0.4, first)] * 3)
        assert verdict(claim, HIGHER, found) == expected
    at_steps = paired(data, "short", "long", "accuracy", "steps", [0, 1, 2])
    assert at_steps is not None
    assert at_steps.bounds is None


def test_a_margin_wider_than_all_that_was_seen_decides_nothing() -> None:
    claims = [
        {"statement": "…", "arm": "prefix 8", "against": "full", "at": "steps", "says": says}
        for says in ("as good", "better", "worse")
    ]
    for spread, expected in ((0.019, ["undecided"] * 3), (0.5, ["confirmed", "refuted", "refuted"])):
        study = read_arm_study(study_document(claims=claims), "here")
        data = StudyData(
            [
                one
                for seed in range(3)
                for arm in ("full", "prefix 8")
                for one in figures(arm, seed, [0.4, 0.4 + spread], 1.0)
            ]
        )
        decisions = [decided(study, data, claim) for claim in study.claims]
        assert [one.verdict for one in decisions] == expected
        words = "; all values of the study lie within the margin of 0.02.)"
        assert all(one.is_margin_too_wide == (spread < 0.02) for one in decisions)
        assert (words in evidence(study, study.claims[0], decisions[0])) == (spread < 0.02)
