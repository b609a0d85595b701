"""The comparison: its figures come from recorded ones, and its words follow its figures."""

from datetime import UTC, datetime

import pytest

from backend.comparison import compare, si
from backend.needs import RunNeeds
from backend.schemas import Evaluation, Run
from engine.flops import FlopLedger
from engine.spec import RunSpec
from engine.verdicts import Verdicts

PREFIX_8 = {"kind": "constant", "tokens": 8}


def a_run(name: str, prefix: dict[str, object], flops: float, **changes: object) -> Run:
    spec = RunSpec.model_validate(
        {
            "name": name,
            "student": {"path": "student"},
            "teacher": {"path": "teacher"},
            "prompts": {"path": "p.jsonl"},
            "evaluation": {"path": "e.jsonl"},
            "prefix": prefix,
            **changes,
        }
    )
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ledger = FlopLedger(rollout=flops / 4, teacher=flops / 4, student_forward=flops / 4, student_backward=flops / 4)
    return Run(
        id=name,
        experiment_id="x",
        experiment_name="x",
        name=name,
        variant=name,
        note="",
        seed=0,
        state="succeeded",
        desired_state="run",
        priority=0,
        phase="",
        step=100,
        num_steps=100,
        student=spec.student.path,
        teacher="teacher",
        prefix=str(prefix["kind"]),
        divergence="reverse_kl",
        attempt=1,
        best_accuracy=None,
        report_accuracy=None,
        training_flops=flops,
        training_seconds=2.0,
        failure_kind=None,
        failure_message=None,
        created_at=now,
        started_at=now,
        finished_at=now,
        heartbeat_at=now,
        spec=spec,
        flops=ledger,
        executed_flops=flops,
        done_share=None,
        eta_seconds=None,
        queue_position=None,
        needs=RunNeeds.stated(spec),
        row_version=1,
        last_seq=1,
    )


def measured(subject: str, split: str, accuracy: float, *, flops: float = 0.0, **metrics: float) -> Evaluation:
    return Evaluation.model_validate(
        {
            "step": 10,
            "subject": subject,
            "split": split,
            "num_prompts": 300,
            "horizon": 8,
            "metrics": {"accuracy": accuracy, **metrics},
            "training_flops": flops,
            "training_seconds": 1.0,
            "is_best": False,
        }
    )


def an_arm(report: float, *, reached_at: float, beyond: float = 0.01) -> list[Evaluation]:
    return [
        measured("base", "report", 0.4, share_inside=0.95, reverse_kl_beyond=0.001),
        measured("teacher", "report", 1.0),
        measured("student", "dev", 0.5, flops=reached_at / 2),
        measured("student", "dev", 0.97, flops=reached_at),
        measured("student", "report", report, reverse_kl_beyond=beyond, eos_rate=1.0),
    ]


def test_saving_and_compute_to_target_are_ratios_of_recorded_flops() -> None:
    full, prefix = a_run("full", {"kind": "full"}, 800e9), a_run("prefix 8", PREFIX_8, 50e9)
    comparison = compare([(full, an_arm(0.99, reached_at=400e9)), (prefix, an_arm(0.98, reached_at=20e9))])
    by_name = {arm.name: arm for arm in comparison.arms}
    assert by_name["full"].is_baseline
    assert by_name["full"].saving == 1.0
    assert by_name["prefix 8"].saving == 16.0
    assert by_name["prefix 8"].flops_to_target == 20e9
    assert by_name["full"].share_inside is None
    assert comparison.base_accuracy == {"student": 0.4}
    assert comparison.teacher_accuracy == 1.0


@pytest.mark.parametrize(("accuracy", "word"), [(0.98, "level with"), (0.5, "below")])
def test_the_verdict_follows_the_intervals(accuracy: float, word: str) -> None:
    full, prefix = a_run("full", {"kind": "full"}, 800e9), a_run("prefix 8", PREFIX_8, 50e9)
    comparison = compare([(full, an_arm(0.99, reached_at=1e11)), (prefix, an_arm(accuracy, reached_at=1e9))])
    sentence = next(s for s in comparison.sentences if s.startswith("prefix 8"))
    assert f"{word} full (0.990) at 16.0x fewer training FLOPs" in sentence
    assert "95% of the divergence lay inside the prefix" in sentence
    assert "from 0.001 to 0.010 nats" in sentence


def test_an_arm_with_another_student_has_no_saving() -> None:
    full = a_run("full", {"kind": "full"}, 800e9)
    other = a_run("late", PREFIX_8, 50e9, student={"path": "other"})
    comparison = compare([(full, an_arm(0.99, reached_at=1e11)), (other, an_arm(0.1, reached_at=1e9))])
    late = next(arm for arm in comparison.arms if arm.name == "late")
    assert late.saving is None
    assert "fewer" not in next(s for s in comparison.sentences if s.startswith("late"))


def test_runs_that_did_not_succeed_are_left_out() -> None:
    failed = a_run("full", {"kind": "full"}, 1e9).model_copy(update={"state": "failed"})
    assert compare([(failed, an_arm(0.9, reached_at=1e9))]).arms == []


def test_a_teacher_that_cannot_do_the_task_is_named() -> None:
    full = a_run("full", {"kind": "full"}, 1e9)
    evaluations = [measured("teacher", "report", 0.0, eos_rate=0.6), measured("student", "report", 0.0, eos_rate=0.1)]
    sentences = compare([(full, evaluations)]).sentences
    assert sentences[0].startswith("Accuracy cannot tell these arms apart, the teacher itself scores 0.00")


def test_a_student_that_no_longer_ends_its_texts_is_named() -> None:
    full, prefix = a_run("full", {"kind": "full"}, 8e11), a_run("prefix 8", PREFIX_8, 5e10)
    ended = [measured("teacher", "report", 1.0, eos_rate=0.6), measured("student", "report", 0.9, eos_rate=0.0)]
    sentences = compare([(full, an_arm(0.99, reached_at=1e11)), (prefix, ended)]).sentences
    assert "0% of its texts end by themselves" in next(s for s in sentences if s.startswith("prefix 8"))


def test_without_a_report_split_the_kept_checkpoint_counts() -> None:
    full = a_run("full", {"kind": "full"}, 1e9)
    earlier, kept, later = (measured("student", "dev", 0.0, reverse_kl=kl) for kl in (0.5, 0.3, 0.4))
    marked = [e.model_copy(update={"is_best": True}) for e in (earlier, kept)]
    (arm,) = compare([(full, [*marked, later])]).arms
    assert arm.reverse_kl == 0.3


def test_seeds_of_a_variant_are_summed_up() -> None:
    full = a_run("full", {"kind": "full"}, 8e11)
    seeds = [
        (
            a_run(f"prefix 8 · seed {seed}", PREFIX_8, 5e10).model_copy(update={"variant": "prefix 8", "seed": seed}),
            accuracy,
        )
        for seed, accuracy in enumerate((0.9, 0.8, 1.0))
    ]
    runs = [(full, an_arm(0.99, reached_at=1e11)), *((run, an_arm(a, reached_at=1e9)) for run, a in seeds)]
    made = compare(runs, flops_budget=6e8)
    # Student's t with 2 degrees of freedom: 4.303 · 0.1 / √3 = 0.248.
    assert "prefix 8 over 3 seeds: mean 0.900 [0.652, 1.000], from 0.800 to 1.000." in made.sentences
    of_full, of_prefix = made.seeds
    assert (of_full.num_seeds, of_full.accuracy_interval, of_full.accuracy_at_budget) == (1, None, None)
    assert of_prefix.accuracy_interval == pytest.approx((0.652, 1.0), abs=1e-3)
    # Within 6e8 lies the evaluation at half the FLOPs to the target alone.
    assert of_prefix.accuracy_at_budget == 0.5
    assert of_prefix.times_less == pytest.approx(100.0)
    assert of_prefix.times_less_interval is None  # one seed of the baseline
    assert made.sentences[-1].startswith("One seed for an arm"), "full ran once"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0 "), (52.7e9, "52.7 G"), (1.6e12, "1.6 T"), (None, "–"), (2e21, "2e+03 E")]
)
def test_si_prefixes(value: float | None, text: str) -> None:
    assert si(value) == text


def test_arms_on_the_same_problems_are_paired() -> None:
    def arm(right: str, problems: str = "p") -> list[Evaluation]:
        verdicts = Verdicts(problems=problems, right=right)
        return [measured("student", "report", right.count("1") / 10).model_copy(update={"verdicts": verdicts})]

    full, same, other = (
        a_run(name, {"kind": "full"}, flops) for name, flops in (("full", 8e11), ("b", 7e11), ("c", 6e11))
    )
    comparison = compare([(full, arm("1111111100")), (same, arm("0000000100")), (other, arm("0000000100", "q"))])
    assert [arm.mcnemar_p for arm in comparison.arms] == [None, pytest.approx(2 / 2**7), None]
    assert "McNemar p = 0.016 on the same problems" in next(s for s in comparison.sentences if s.startswith("b:"))


@pytest.mark.parametrize(("num_wrong", "word"), [(5, "level with"), (6, "below")])
def test_the_verdict_follows_the_paired_test_where_there_is_one(num_wrong: int, word: str) -> None:
    """5 of 300 against 0 gives p = 2/32, 6 give 2/64; the two intervals overlap in both cases."""

    def arm(right: str) -> list[Evaluation]:
        verdicts = Verdicts(problems="p", right=right)
        one = measured("student", "report", right.count("1") / 300)
        return [one.model_copy(update={"verdicts": verdicts, "num_prompts": 300})]

    full, prefix = a_run("full", {"kind": "full"}, 8e11), a_run("prefix 8", PREFIX_8, 5e10)
    comparison = compare([(full, arm("1" * 300)), (prefix, arm("0" * num_wrong + "1" * (300 - num_wrong)))])
    assert comparison.arms[1].accuracy_high >= comparison.arms[0].accuracy_low
    assert f"{word} full (1.000" in next(s for s in comparison.sentences if s.startswith("prefix 8"))


def test_an_average_over_samples_is_told_with_its_interval() -> None:
    full = a_run("full", {"kind": "full"}, 8e11)
    sampled = measured("student", "report", 0.5, avg_at_k=0.25, avg_at_k_low=0.2, avg_at_k_high=0.3)
    verdicts = Verdicts(problems="p", right="10", samples_per_problem=4, samples_right=[2, 0])
    prefix = (a_run("prefix", PREFIX_8, 5e10), [sampled.model_copy(update={"verdicts": verdicts})])
    sentences = compare([(full, an_arm(0.9, reached_at=1e9)), prefix]).sentences
    assert "avg@4 0.250 [0.200, 0.300]" in next(s for s in sentences if s.startswith("prefix"))


def test_a_window_of_a_full_prefix_is_no_baseline_and_its_share_is_said_to_lie_in_the_window() -> None:
    region = {"kind": "window", "start": 4, "end": 8}
    window = a_run("window", {"kind": "full"}, 9e9, loss_region=region)
    base = measured("base", "dev", 0.5, share_inside=0.25, reverse_kl_beyond=0.2)
    made = compare([
        (a_run("full", {"kind": "full"}, 4e9), [base, measured("student", "dev", 0.9)]),
        (window, [base, measured("student", "dev", 0.7, reverse_kl_beyond=0.3)]),
    ])  # fmt: skip
    assert [(arm.name, arm.is_baseline, arm.region) for arm in made.arms] == [
        ("full", True, "prefix"), ("window", False, "window"),
    ]  # fmt: skip
    assert "25% of the divergence lay inside the window at the start" in made.sentences[0]


def _seeded(name: str, prefix: dict[str, object], reached: list[float]) -> list[tuple[Run, list[Evaluation]]]:
    runs = [a_run(f"{name} · seed {seed}", prefix, 8e11) for seed in range(len(reached))]
    named = [run.model_copy(update={"variant": name, "seed": seed}) for seed, run in enumerate(runs)]
    return [(run, an_arm(0.99, reached_at=flops)) for run, flops in zip(named, reached, strict=True)]


def test_compute_to_the_target_is_compared_with_an_interval_where_both_have_seeds() -> None:
    full, prefix = [1e11, 2e11, 4e11], [1e10, 2e10, 1e10]
    made = compare(_seeded("full", {"kind": "full"}, full) + _seeded("prefix 8", PREFIX_8, prefix))
    of_full, of_prefix = made.seeds
    assert of_full.is_baseline
    assert of_full.times_less_interval is None  # nothing to compare with itself
    assert of_prefix.flops_to_target == pytest.approx((1e10 * 2e10 * 1e10) ** (1 / 3))
    assert of_prefix.times_less == pytest.approx(2e11 / (2e30) ** (1 / 3))
    assert of_prefix.times_less_interval is not None
    low, high = of_prefix.times_less_interval
    assert low < of_prefix.times_less < high
    assert any("15.9x less compute than the baseline to reach 0.95 [" in sentence for sentence in made.sentences)


def test_a_seed_that_never_arrives_leaves_no_mean_of_those_that_did() -> None:
    runs = _seeded("prefix 8", PREFIX_8, [1e10, 2e10])
    never = [one for one in runs[1][1] if one.metrics["accuracy"] != 0.97]
    made = compare([*_seeded("full", {"kind": "full"}, [1e11, 1e11]), runs[0], (runs[1][0], never)])
    of_prefix = made.seeds[1]
    assert (of_prefix.num_reached, of_prefix.flops_to_target, of_prefix.times_less) == (1, None, None)
    assert any("1 of 2 reached 0.95 on the dev prompts" in sentence for sentence in made.sentences)


def _named(run: Run, run_id: str, name: str, seed: int = 0) -> Run:
    return run.model_copy(update={"id": run_id, "name": name, "variant": name, "seed": seed})


def test_runs_of_one_name_that_differ_in_more_than_their_seed_are_no_seeds_of_one_variant() -> None:
    slow, fast = (a_run("x", PREFIX_8, 5e10, optimizer={"learning_rate": rate}) for rate in (1e-4, 1e-3))
    made = compare([
        (_named(slow, "run-000001", "a copy"), an_arm(0.3, reached_at=1e9)),
        (_named(fast, "run-000002", "a copy"), an_arm(0.8, reached_at=1e9)),
        (_named(fast, "run-000003", "a copy", seed=1), an_arm(0.7, reached_at=1e9)),
    ])  # fmt: skip
    assert [(one.variant, one.num_seeds) for one in made.seeds] == [("a copy (000001)", 1), ("a copy (000002)", 2)]


def test_a_seed_that_was_run_twice_counts_once() -> None:
    run = a_run("x", PREFIX_8, 5e10)
    twice = [(_named(run, f"run-00000{number}", "prefix 8"), an_arm(0.9, reached_at=1e9)) for number in (1, 2)]
    assert [one.num_seeds for one in compare(twice).seeds] == [1, 1]


def test_where_checkpoints_are_written_makes_no_other_variant() -> None:
    runs = [
        (_named(a_run("x", PREFIX_8, 5e10, checkpoints={"keep_last": kept}), f"run-{kept}", "prefix 8", kept), an_arm(0.9, reached_at=1e9))
        for kept in (1, 2)
    ]  # fmt: skip
    assert [(one.variant, one.num_seeds) for one in compare(runs).seeds] == [("prefix 8", 2)]


def test_runs_on_other_problems_are_not_held_against_the_baseline() -> None:
    full = a_run("full", {"kind": "full"}, 8e11)
    other = a_run("prefix 8", PREFIX_8, 5e10, evaluation={"path": "harder.jsonl"})
    made = compare([(full, an_arm(0.99, reached_at=1e11)), (other, an_arm(0.98, reached_at=1e9))])
    assert (made.arms[1].saving, made.arms[1].shares_problems) == (None, False)
    assert made.seeds[1].times_less is None
    about = next(sentence for sentence in made.sentences if sentence.startswith("prefix 8"))
    assert "level with" not in about
    assert "fewer" not in about
    assert any(s.startswith("Least compute to reach 0.95 on the dev prompts: full") for s in made.sentences)


def test_nor_are_runs_whose_file_of_problems_has_changed_since() -> None:
    def arm(problems: str) -> list[Evaluation]:
        verdicts = Verdicts(problems=problems, right="1110")
        return [measured("student", "report", 0.75).model_copy(update={"verdicts": verdicts})]

    full, same, changed = (
        a_run(name, {"kind": "full"}, flops) for name, flops in (("full", 8e11), ("b", 7e11), ("c", 6e11))
    )
    arms = compare([(full, arm("p")), (same, arm("p")), (changed, arm("q"))]).arms
    assert [(one.name, one.shares_problems) for one in arms] == [("full", True), ("b", True), ("c", False)]


def test_two_runs_of_one_name_are_told_apart_in_words() -> None:
    full, short = a_run("full", {"kind": "full"}, 8e11), a_run("copy", PREFIX_8, 5e10)
    twins = [(_named(short, f"run-00000{number}", "a copy"), an_arm(0.99, reached_at=1e9)) for number in (1, 2)]
    said = compare([(full, an_arm(0.99, reached_at=1e11)), *twins]).sentences
    assert [sum(one.startswith(f"a copy (00000{number}): ") for one in said) for number in (1, 2)] == [1, 1]
    assert any("on the dev prompts: a copy (000001), " in one for one in said)
