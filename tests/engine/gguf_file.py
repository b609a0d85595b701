"""A GGUF file of a small random Llama, written as llama.cpp's converter writes one, and the model that it came from."""

from pathlib import Path

import gguf
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

_HEADS, _KV_HEADS, _WIDTH = 4, 2, 32
_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_SPECIAL = ["<|begin|>", "<|end|>"]
_TEMPLATE = "{% for m in messages %}<|begin|>{{ m['role'] }} {{ m['content'] }}<|end|>{% endfor %}"


def write_gguf(path: Path, *, without: str = "") -> LlamaForCausalLM:
    """Write the file, but for the tensor called `without`; the model whose weights it holds."""
    tokens = [*_byte_tokens(), "Ġa", *_SPECIAL]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=_WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=_HEADS,
        num_key_value_heads=_KV_HEADS, max_position_embeddings=256, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random")
    writer.add_context_length(256)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 2) + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_pad_token_id(len(tokens) - 1)
    writer.add_chat_template(_TEMPLATE)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight" and _gguf_name(name) != without:
            writer.add_tensor(_gguf_name(name), _as_stored(name, weight).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in ("model.embed_tokens", "model.norm"):
        return {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}[stem] + ".weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.weight"


def _as_stored(name: str, weight: Tensor) -> Tensor:
    """llama.cpp keeps the two rows of a head that rotate together beside each other."""
    heads = _HEADS if "q_proj" in name else _KV_HEADS if "k_proj" in name else None
    if heads is None:
        return weight
    return weight.view(heads, 2, len(weight) // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def _byte_tokens() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(len(others))]
