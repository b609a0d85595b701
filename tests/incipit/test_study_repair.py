"""The section of a study's page that tells where in a text the divergence went."""

import statistics
from dataclasses import replace

from incipit.arm_study import read_arm_study
from incipit.study_data import Figure, StudyData
from incipit.study_repair import repair_lines
from tests.incipit.study_figures import T_95, figures, study_document


def _of(key: str, arm: str, values_by_seed: list[list[float]]) -> list[Figure]:
    return [
        replace(one, key=key) for seed, values in enumerate(values_by_seed) for one in figures(arm, seed, values, 1.0)
    ]


def _rows(lines: list[str]) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: rest for name, *rest in cells}


def test_it_tells_the_untrained_and_the_last_of_each_place() -> None:
    arms = [
        {"name": "full", "changes": {"prefix": {"kind": "full"}}},
        {"name": "prefix 8", "changes": {"prefix": {"kind": "constant", "tokens": 8}}},
        {"name": "linear", "changes": {"prefix": {"kind": "linear"}}},
    ]
    study = read_arm_study(study_document(arms=arms, claims=[], reference="full"), "here")
    last = [0.2, 0.4]
    data = StudyData(
        [
            *_of("reverse_kl_inside", "prefix 8", [[1.0, 0.5, last[0]], [2.0, 0.5, last[1]]]),
            *_of("reverse_kl_beyond", "prefix 8", [[0.7, 0.6, 0.5]]),
            *_of("reverse_kl_inside", "linear", [[1.0, 0.9]]),
            *_of("forward_kl_on_teacher_texts_quarter_2", "linear", [[0.8, 0.25]]),
            # The untrained student alone says nothing of a repair.
            *_of("forward_kl_on_teacher_texts_quarter_2", "full", [[0.8]]),
        ]
    )
    lines = repair_lines(study, data)
    rows = _rows(lines)
    assert rows["arm"] == [
        "own samples, where the loss applies",
        "own samples, behind it",
        "teacher's texts, quarter 2",
    ]
    half = T_95[1] * statistics.stdev(last) / 2**0.5
    assert rows["prefix 8"] == [f"1.500 → 0.300 [{0.3 - half:.3f}, {0.3 + half:.3f}]", "0.700 → 0.500", "–"]
    assert rows["linear"] == ["–", "–", "0.800 → 0.250"], "its inside is another place at the end"
    assert rows["full"] == ["–", "–", "–"]
    assert "forward KL by quarters" in "\n".join(lines)


def test_a_study_that_measured_no_place_has_no_such_section() -> None:
    study = read_arm_study(study_document(), "here")
    assert repair_lines(study, StudyData(figures("full", 0, [0.1, 0.9], 1.0))) == []
