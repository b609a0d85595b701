"""Weights that oneDNN has laid out give the products of the plain ones, and decoding with them the tokens of `generate`."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from engine.decode_cache import decode_cache
from engine.decode_linear import MIN_PACKED_ENTRIES, DecodeHead, Linear, is_packable
from engine.language_model import LanguageModel, OutputHead, load_language_model
from engine.llama_decoder import LlamaDecoder
from engine.model_spec import ModelSpec
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from tests.engine.models import CPU, write_random_model

INPUTS = 256
OUTPUTS = MIN_PACKED_ENTRIES // INPUTS
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def product_of(dtype: torch.dtype, *, bias: bool, factors: bool) -> Linear:
    torch.manual_seed(0)
    pair = (torch.randn(4, INPUTS, dtype=dtype), torch.randn(OUTPUTS, 4, dtype=dtype)) if factors else None
    weight = torch.randn(OUTPUTS, INPUTS, dtype=dtype)
    return Linear(weight.t(), torch.randn(OUTPUTS, dtype=dtype) if bias else None, pair)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("bias", "factors"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("rows", [1, 3, 8, 40])
@torch.inference_mode()
def test_products_are_those_of_the_plain_weight(dtype: torch.dtype, bias: bool, factors: bool, rows: int) -> None:
    plain = product_of(dtype, bias=bias, factors=factors)
    packed = plain.packed()
    # Without AVX-512 oneDNN has no layout for bfloat16, and the weight stays plain.
    has_layout = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert (type(packed) is not Linear) == has_layout
    states = torch.randn(rows, INPUTS)
    expected = plain(states)

    def gap(found: Tensor) -> float:
        return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())

    assert gap(packed(states)) < TOLERANCE[dtype]
    for linear in (plain, packed):
        residual = torch.ones(rows, OUTPUTS)
        linear.add_to(residual, states)
        assert gap(residual - 1) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "weight", [torch.ones(8, 8), torch.ones(OUTPUTS, INPUTS).double(), torch.ones(OUTPUTS, INPUTS).half()]
)
def test_small_weights_and_other_types_stay_plain(weight: Tensor) -> None:
    assert not is_packable(weight)
    linear = Linear(weight.t(), None)
    assert linear.packed() is linear


@torch.inference_mode()
def test_a_head_gives_the_logits_of_its_vocabulary() -> None:
    torch.manual_seed(0)
    head = OutputHead(torch.randn(OUTPUTS + 64, INPUTS), torch.randn(OUTPUTS + 64), 0.5, 3.0, OUTPUTS)
    hidden = torch.randn(5, INPUTS)
    found = DecodeHead.of(head, torch.float32, packs=True).logits(hidden)
    torch.testing.assert_close(found, head.logits(hidden), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_a_decoder_of_packed_weights_gives_the_states_of_the_module(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    shape: dict[str, Any] = {"vocab_size": 99, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3}
    module = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2)).eval()
    token_ids = torch.randint(99, (5, 12))
    expected = module.get_decoder()(input_ids=token_ids).last_hidden_state
    cache = decode_cache(module, 12)
    module.get_decoder()(input_ids=token_ids[:, :4], past_key_values=cache, use_cache=True)
    decoder = LlamaDecoder(module, 12, dtype=dtype, packs=True)
    for position in range(4, 12):
        found = decoder.hidden(token_ids[:, position], position, cache, None)
        gap = float((found - expected[:, position]).norm() / expected[:, position].norm())
        assert gap < TOLERANCE[dtype]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random Llama in float32 whose weights are large enough to be packed."""
    folder: Path = tmp_path_factory.mktemp("wide")
    write_random_model(folder, 3, hidden=512)
    model = load_language_model(ModelSpec(path=str(folder)), "student", CPU, "float32")
    return dataclasses.replace(model, eos_token_ids=frozenset())


def test_greedy_float32_tokens_of_packed_weights_are_those_of_generate(wide: LanguageModel) -> None:
    prompts = [[1, 5, 6], [1, 9, 4, 30], [7]]
    requests = [RolloutRequest(i, prompt, 1, 1) for i, prompt in enumerate(prompts)]
    found = Sampler(wide, 0, 0.0).sample(requests, 24)
    module: Any = wide.module
    for rollout, prompt in zip(found, prompts, strict=True):
        ids = torch.tensor([prompt])
        output = module.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, min_new_tokens=24
        )
        first_eos = module.generation_config.eos_token_id
        expected = output[0, len(prompt) :].tolist()
        # `generate` forbids its end of text to reach the length; ours does not know one here.
        until = next((i for i, token in enumerate(rollout.completion_token_ids) if token == first_eos), 24)
        assert rollout.completion_token_ids[:until] == expected[:until]
        assert until > 8


def test_bfloat16_rollouts_keep_their_logprobs_near_those_of_float32(wide: LanguageModel) -> None:
    """The gap that a run shows as sampled_logprob_gap; a weight cast wrongly would make it nats."""
    low = dataclasses.replace(wide, autocast_dtype=torch.bfloat16)
    rollout = Sampler(low, 0, 1.0).sample([RolloutRequest(0, [1, 5, 6], 1, 1)], 16)[0]
    ids = torch.tensor([rollout.prompt_token_ids + rollout.completion_token_ids])
    with torch.no_grad():
        logprobs = torch.log_softmax(wide.head.logits(wide.hidden(ids)[0]), -1)
    places = torch.arange(2, 2 + 16)
    exact = logprobs[places, torch.tensor(rollout.completion_token_ids)]
    assert float((exact - torch.tensor(rollout.completion_logprobs)).abs().mean()) < 0.15
