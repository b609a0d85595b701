"""FLOPs against fixtures worked out by hand from published configs, against sums of single steps, and against torch's counter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from engine.flops import FlopLedger, ModelShape, rollout_flops, update_flops
from engine.language_model import load_language_model
from engine.model_spec import ModelSpec
from tests.engine.models import CPU


def qwen3(hidden: int, layers: int, heads: int, intermediate: int) -> ModelShape:
    """The published Qwen3 configs: 8 key/value heads of width 128, vocabulary 151936."""
    return ModelShape.from_config(
        {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": intermediate,
            "vocab_size": 151936,
        }
    )


SMALL, MIDDLE, LARGE = qwen3(1024, 28, 16, 3072), qwen3(2048, 28, 16, 6144), qwen3(4096, 36, 32, 12288)
TINY = ModelShape.from_config(
    {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192, "vocab_size": 81}
)


@pytest.mark.parametrize(
    ("shape", "blocks", "head"),
    [
        (SMALL, 440_401_920, 155_582_464),
        (MIDDLE, 1_409_286_144, 311_164_928),
        (LARGE, 6_945_767_424, 622_329_856),
    ],
)
def test_parameters_of_published_models(shape: ModelShape, blocks: int, head: int) -> None:
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
    ledger = update_flops(MIDDLE, LARGE, 200, tokens) + FlopLedger(rollout=rollout_flops(MIDDLE, 200, [tokens]))
    found = (ledger.rollout, ledger.teacher, ledger.student_forward, ledger.student_backward, ledger.training)
    assert found == pytest.approx((generate, teacher, forward, backward, total), rel=5e-4)


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


ledgers = st.builds(FlopLedger, **{phase: st.floats(0, 1e18) for phase in FlopLedger.model_fields})


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
        ModelShape.from_config({"hidden_size": 64})


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_torch_counts_the_same_with_the_square_of_attention(kv_heads: int) -> None:
    """The counter knows no causality, so it sees n·n key/query pairs where the ledger counts n·(n+1)/2."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        attn_implementation="eager",
    )
    model, n = LlamaForCausalLM(config), 17
    shape = ModelShape.from_config(config.to_dict())
    square_over_causal = 4.0 * shape.attention_width * n * n - 2.0 * shape.attention_width * n * (n + 1)
    rotary = 2 * 8 // 2 * n  # positions times frequencies, a matrix product in older versions
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=torch.randint(50, (1, n))).logits.sum()
    forward = counter.get_total_flops()
    assert forward - (shape.forward(n, n) + square_over_causal) in (0, rotary)
    with FlopCounterMode(display=False) as counter:
        loss.backward()  # type: ignore[no-untyped-call]
    assert counter.get_total_flops() == 2 * (shape.forward(n, n) + square_over_causal)


@pytest.mark.parametrize("name", ["student-plan", "teacher"])
def test_the_loaded_model_and_its_config_have_one_shape(name: str) -> None:
    model = load_language_model(ModelSpec(path=f"builtin:tiny/models/{name}"), "student", CPU, "float32")
    assert model.shape == ModelShape.from_config(model.module.config.to_dict())
