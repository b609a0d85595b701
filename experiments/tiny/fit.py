"""Supervised training of a tiny model on texts."""

import math
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from experiments.tiny.texts import TrainingText
from experiments.tiny.tokenizer import MAX_TOKENS

_UNLEARNED = -100  # the label that cross_entropy ignores
_DECAY_SHARE = 0.4

Batch = tuple[torch.Tensor, torch.Tensor]
"""Input ids and labels, both [B, T]."""


def new_model(tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, num_layers: int) -> LlamaForCausalLM:
    """A fresh model; its weights follow from torch's global seed."""
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.08,  # at the usual 0.02 so narrow a model starts too slowly
        tie_word_embeddings=True,
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    return model


def collate(texts: list[TrainingText], tokenizer: PreTrainedTokenizerFast, max_tokens: int = MAX_TOKENS) -> Batch:
    """A batch of texts with completions cut at `max_tokens`; only completions carry loss."""
    rows, labels = [], []
    for text in texts:
        prompt = tokenizer.encode(text.prompt)
        completion = tokenizer.encode(text.completion + " <eos>", add_special_tokens=False)
        learned = [_UNLEARNED if i in text.unlearned else t for i, t in enumerate(completion)]
        rows.append(torch.tensor(prompt + completion[:max_tokens]))
        labels.append(torch.tensor([_UNLEARNED] * len(prompt) + learned[:max_tokens]))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=_UNLEARNED)


def fit(
    model: LlamaForCausalLM,
    batches: Iterator[Batch],
    *,
    num_steps: int,
    learning_rate: float,
    warmup_steps: int = 0,
    on_step: Callable[[float], None],
) -> float:
    """Train in place on the mean loss per learned token and return the last loss, in nats."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    loss_nats = math.nan
    for step in range(num_steps):
        input_ids, labels = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate(step, num_steps, warmup_steps)
        logits = model(input_ids=input_ids[:, :-1]).logits
        # The logits at position t predict token t + 1.
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss_nats = loss.item()
        on_step(loss_nats)
    return loss_nats


def rate(step: int, num_steps: int, warmup_steps: int) -> float:
    """Warm-up, flat, then linear decay: the factor of the learning rate at a step."""
    warmup = (step + 1) / warmup_steps if warmup_steps else 1.0
    return min(1.0, warmup, (num_steps - step) / (_DECAY_SHARE * num_steps))
