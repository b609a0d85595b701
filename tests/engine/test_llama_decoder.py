"""The decode step without module calls gives the states that transformers' modules give, or is not used."""

import tempfile
from typing import Any

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from engine import llama_decoder
from engine.decode_cache import decode_cache
from engine.llama_decoder import LlamaDecoder, is_llama_shaped
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from tests.engine.models import fresh_random_model

SHAPE: dict[str, Any] = {
    "vocab_size": 81,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def random_llama(**changes: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE | changes))


FAMILIES = {
    "llama": lambda: random_llama(),
    "llama with one key/value head": lambda: random_llama(num_key_value_heads=1),
    "llama with biases": lambda: random_llama(attention_bias=True, mlp_bias=True),
    "llama 3 rotary scaling": lambda: random_llama(
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
}


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "separate"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_states_are_those_of_the_module(family: str, joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not joined:
        monkeypatch.setattr(llama_decoder, "_MAX_JOINED_BYTES", 0)
    torch.manual_seed(1)
    module = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in module.parameters():  # biases and norms that differ from zero and one
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert is_llama_shaped(module)
    token_ids = torch.randint(3, 81, (5, 12))
    expected = module.get_decoder()(input_ids=token_ids).last_hidden_state
    cache = decode_cache(module, 12)
    module.get_decoder()(input_ids=token_ids[:, :4], past_key_values=cache, use_cache=True)
    decoder = LlamaDecoder(module, 12)
    for position in range(4, 12):
        found = decoder.hidden(token_ids[:, position], position, cache, None)
        torch.testing.assert_close(found, expected[:, position], rtol=1e-4, atol=1e-4)


def test_other_architectures_are_left_to_transformers() -> None:
    gemma = GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=8)).eval()
    assert not is_llama_shaped(gemma)


def test_a_sliding_window_is_left_to_transformers() -> None:
    assert not is_llama_shaped(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)).eval())


def test_rotary_frequencies_that_change_with_length_are_left_to_transformers() -> None:
    module = random_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    assert not is_llama_shaped(module.eval())


def test_a_block_that_computes_something_else_is_found_out() -> None:
    module = random_llama().eval()
    module.get_decoder().layers[1].mlp.register_forward_hook(lambda _module, _args, output: output * 1.5)
    assert not is_llama_shaped(module)


@pytest.mark.parametrize("num_rollouts", [1, 3])
def test_both_ways_sample_the_same_tokens(num_rollouts: int) -> None:
    asked = [RolloutRequest(i, list(range(3, 4 + i % 5)), num_rollouts, 1) for i in range(10)]
    model = fresh_random_model(2)
    assert model.is_llama_shaped
    lean = Sampler(model, 0, 1.0).sample(asked, 24)
    plain_model = type(model)(**{**vars(model), "is_llama_shaped": False})
    plain = Sampler(plain_model, 0, 1.0).sample(asked, 24)
    assert [r.completion_token_ids for r in lean] == [r.completion_token_ids for r in plain]
    for mine, theirs in zip(lean, plain, strict=True):
        assert mine.completion_logprobs == pytest.approx(theirs.completion_logprobs, abs=1e-5)


def test_weights_that_an_update_changed_are_the_ones_used() -> None:
    """The joined copies are made anew for every batch of rollouts."""
    model = fresh_random_model(2)
    request = [RolloutRequest(0, [1, 5, 6], 4, 1)]
    before = Sampler(model, 0, 1.0).sample(request, 10)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(1.3)
    after = Sampler(model, 0, 1.0).sample(request, 10)
    with tempfile.TemporaryDirectory() as folder:
        model.module.save_pretrained(folder)
        reloaded = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    assert before != after
    ids = torch.tensor([after[0].prompt_token_ids + after[0].completion_token_ids])
    with torch.no_grad():
        logprobs = torch.log_softmax(reloaded(input_ids=ids[:, :-1]).logits[0, 2:], -1)
    picked = logprobs.gather(1, ids[0, 3:, None])[:, 0]
    assert after[0].completion_logprobs == pytest.approx(picked.tolist(), abs=1e-5)
