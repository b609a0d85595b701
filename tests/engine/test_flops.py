"""FLOPs against fixtures worked out by hand from configs quoted from memory (shapes assumed), and against sums of single steps.

Against torch's own counter: test_flop_counter.py.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.adapter_shape import ADAPTABLE, AdapterShape
from engine.flops import FlopLedger, ModelShape, padded_update_flops, rollout_flops, rollout_ledger, update_flops
from engine.language_model import load_language_model
from engine.model_spec import ModelSpec
from tests.engine.models import CPU


def qwen3(hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, str | int]:
    """Shapes assumed, not read: Qwen3 as it is commonly quoted, 8 key/value heads of width 128, vocabulary 151936."""
    return {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": intermediate,
        "vocab_size": 151936,
    }


QWEN3_MIDDLE = qwen3(2048, 28, 16, 6144)
SMALL, MIDDLE, LARGE = map(
    ModelShape.from_config, (qwen3(1024, 28, 16, 3072), QWEN3_MIDDLE, qwen3(4096, 36, 32, 12288))
)
TINY = ModelShape.from_config(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "vocab_size": 81,
    }
)


@pytest.mark.parametrize(
    ("shape", "blocks", "head"),
    [
        (SMALL, 440_401_920, 155_582_464),
        (MIDDLE, 1_409_286_144, 311_164_928),
        (LARGE, 6_945_767_424, 622_329_856),
    ],
)
def test_parameters_of_the_assumed_shapes(shape: ModelShape, blocks: int, head: int) -> None:
    assert (shape.block_parameters, shape.head_parameters) == (blocks, head)


@pytest.mark.parametrize(
    ("tokens", "generate", "teacher", "forward", "backward", "total"),
    [
        (128, 1.014e12, 4.748e12, 1.017e12, 2.033e12, 8.811e12),
        (256, 1.466e12, 6.715e12, 1.468e12, 2.937e12, 1.259e13),
        (512, 2.381e12, 1.068e13, 2.384e12, 4.767e12, 2.021e13),
        (1024, 4.256e12, 1.872e13, 4.259e12, 8.518e12, 3.575e13),
        (2048, 8.187e12, 3.527e13, 8.191e12, 1.638e13, 6.803e13),
        (4096, 1.677e13, 7.022e13, 1.677e13, 3.355e13, 1.373e14),
        (8192, 3.682e13, 1.475e14, 3.683e13, 7.366e13, 2.949e14),
        (16384, 8.848e13, 3.319e14, 8.848e13, 1.770e14, 6.858e14),
    ],
)
def test_phases_of_a_step_behind_a_prompt_of_200_tokens(
    tokens: int, generate: float, teacher: float, forward: float, backward: float, total: float
) -> None:
    """Every printed digit of the worked table."""
    ledger = update_flops(MIDDLE, LARGE, 200, tokens) + rollout_ledger(MIDDLE, 200, [tokens])
    found = (ledger.rollout, ledger.teacher, ledger.student_forward, ledger.student_backward, ledger.training)
    assert [f"{flops:.3e}" for flops in found] == [
        f"{flops:.3e}" for flops in (generate, teacher, forward, backward, total)
    ]


@pytest.mark.parametrize(
    ("tokens", "saving"), [(256, 54.5), (512, 33.9), (1024, 19.2), (2048, 10.1), (4096, 5.0), (8192, 2.3)]
)
def test_saving_of_a_fixed_prefix_over_16384_tokens(tokens: int, saving: float) -> None:
    def cost(count: int) -> float:
        return update_flops(MIDDLE, LARGE, 200, count).training + rollout_flops(MIDDLE, 200, [count])

    assert cost(16384) / cost(tokens) == pytest.approx(saving, abs=0.05)


@given(st.integers(1, 50), st.integers(1, 60))
def test_a_decode_is_the_sum_of_its_steps(prompt: int, completion: int) -> None:
    """A step attends to all tokens before it and itself: the second token runs at context prompt + 1."""
    weights = TINY.block_parameters + TINY.head_parameters
    steps = [2 * weights + 4 * TINY.attention_width * (prompt + t) for t in range(1, completion)]
    assert TINY.decode(prompt, completion) == pytest.approx(sum(steps), rel=1e-12)


@given(st.integers(1, 50), st.integers(1, 60))
def test_decoding_costs_what_one_forward_pass_over_the_same_tokens_costs(prompt: int, completion: int) -> None:
    whole = TINY.forward(prompt + completion - 1, completion)
    assert rollout_flops(TINY, prompt, [completion]) == pytest.approx(whole, rel=1e-12)


def test_rollouts_of_a_prompt_share_its_prefill() -> None:
    single = [rollout_flops(TINY, 9, [count]) for count in (3, 8, 1)]
    assert rollout_flops(TINY, 9, [3, 8, 1]) == pytest.approx(sum(single) - 2 * TINY.prefill(9), rel=1e-12)


# The prefill is a part of the rollout: no run can record more of it.
ledgers = st.builds(FlopLedger, **{phase: st.floats(0, 1e18) for phase in FlopLedger.model_fields}).map(
    lambda ledger: ledger.model_copy(update={"rollout_prefill": min(ledger.rollout, ledger.rollout_prefill)})
)


@given(ledgers, ledgers)
def test_ledgers_add_phase_by_phase(one: FlopLedger, other: FlopLedger) -> None:
    total = one + other
    for phase in FlopLedger.model_fields:
        assert getattr(total, phase) == getattr(one, phase) + getattr(other, phase)
    assert one + FlopLedger() == one


@given(ledgers)
def test_evaluation_is_no_part_of_training(ledger: FlopLedger) -> None:
    more = ledger + FlopLedger(evaluation=1e20)
    assert more.training == ledger.training
    assert ledger.training == pytest.approx(
        ledger.rollout + ledger.teacher + ledger.student_forward + ledger.student_backward + ledger.recompute
    )


def test_a_config_of_another_kind_is_refused_by_the_name_of_its_missing_field() -> None:
    with pytest.raises(ValueError, match="num_hidden_layers"):
        ModelShape.from_config({"model_type": "llama", "hidden_size": 64})


def test_old_records_of_a_ledger_load_and_their_rollout_stays_whole() -> None:
    old = {
        "rollout": 3.0,
        "teacher": 5.0,
        "student_forward": 1.0,
        "student_backward": 2.0,
        "recompute": 0.0,
        "evaluation": 7.0,
    }
    ledger = FlopLedger.model_validate(old)
    assert ledger.training == 11.0
    assert ledger.by_phase()["rollout"] == 3.0


@given(ledgers)
def test_phases_add_up_to_training_whether_the_rollout_is_split_or_not(ledger: FlopLedger) -> None:
    assert sum(ledger.by_phase().values()) == pytest.approx(ledger.training)
    assert ledger.as_evaluation() == FlopLedger(evaluation=ledger.total)


def test_a_prefix_saves_every_phase_and_a_late_window_its_projections_only() -> None:
    full = update_flops(MIDDLE, LARGE, 200, 1024)
    window = update_flops(MIDDLE, LARGE, 200, 1024, num_supervised=256)
    prefix = update_flops(MIDDLE, LARGE, 200, 256)
    assert full.teacher - window.teacher == 2 * LARGE.head_parameters * 768
    assert full.student_forward - window.student_forward == 2 * MIDDLE.head_parameters * 768
    assert full.student_backward - window.student_backward == 4 * MIDDLE.head_parameters * 768
    assert prefix.training < 0.4 * window.training


def test_a_teacher_prefix_is_written_by_the_teacher_and_prefilled_by_the_student() -> None:
    """Off-policy: the teacher's decode replaces the student's, which goes on behind it."""
    mixed = rollout_ledger(LARGE, 200, [64]) + rollout_ledger(MIDDLE, 200 + 64, [192])
    assert mixed.rollout_prefill == LARGE.prefill(200) + MIDDLE.prefill(264)
    assert mixed.rollout_decode == pytest.approx(LARGE.decode(200, 64) + MIDDLE.decode(264, 192))
    assert rollout_ledger(MIDDLE, 200, [256]).rollout < mixed.rollout < rollout_ledger(LARGE, 200, [256]).rollout


def test_a_probe_that_is_not_continued_costs_its_own_tokens() -> None:
    kept_and_dropped = rollout_ledger(TINY, 9, [64, 8, 8, 8])
    assert kept_and_dropped.rollout_decode == pytest.approx(TINY.decode(9, 64) + 3 * TINY.decode(9, 8))


def test_adapters_train_for_two_thirds_of_what_all_weights_cost() -> None:
    """2N + 4 N_adapter behind a forward pass of 2 (N + N_adapter), but for the first block, where little is reached."""
    adapter = AdapterShape.from_config(QWEN3_MIDDLE, 16, ADAPTABLE)
    per_layer = 16 * (4 * 2048 + 2 * (2048 + 1024) + 3 * (2048 + 6144))
    assert adapter.parameters == 28 * per_layer
    assert adapter.unreached_parameters == 2048 * (2048 + 2 * 1024) + 3 * 16 * 2048
    adapted = MIDDLE.model_copy(update={"adapter": adapter})
    n, attention = 456, 2 * MIDDLE.attention_width * 456 * 457
    assert adapted.forward(n, 0) == 2 * (MIDDLE.block_parameters + adapter.parameters) * n + attention
    everywhere = 2 * MIDDLE.block_parameters * n + 4 * adapter.parameters * n + 2 * attention
    assert adapted.backward(n, 0) == everywhere - 2 * adapter.unreached_parameters * n
    assert 0.64 < (adapted.forward(n, 256) + adapted.backward(n, 256)) / (3 * MIDDLE.forward(n, 256)) < 0.69


def test_adapters_on_products_that_do_not_exist_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="not on wq"):
        AdapterShape.from_config(QWEN3_MIDDLE, 8, ["wq"])
    with pytest.raises(ValueError, match="num_attention_heads"):
        AdapterShape.from_config({"hidden_size": 8}, 8, ["q_proj"])


@given(st.integers(1, 6), st.integers(1, 40), st.booleans())
def test_a_batch_without_padding_executes_what_its_rows_need(rows: int, width: int, recomputes: bool) -> None:
    each = update_flops(TINY, SMALL, width - 1, 1, recomputes_blocks=recomputes)
    batch = padded_update_flops(TINY, SMALL, rows, width, rows, recomputes_blocks=recomputes)
    for phase in FlopLedger.model_fields:
        assert getattr(batch, phase) == pytest.approx(rows * getattr(each, phase), rel=1e-12)
    assert TINY.padded_prefill(rows, width, is_masked=False) == pytest.approx(rows * TINY.prefill(width))
    steps = sum(TINY.decode_step(rows, width + t) for t in range(1, 5))
    assert steps == pytest.approx(rows * TINY.decode(width, 5))


@pytest.mark.parametrize("name", ["student-plan", "teacher"])
def test_the_loaded_model_and_its_config_have_one_shape(name: str) -> None:
    model = load_language_model(ModelSpec(path=f"builtin:tiny/models/{name}"), "student", CPU, "float32")
    assert model.shape == ModelShape.from_config(model.module.config.to_dict())
