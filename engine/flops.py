"""FLOPs by phase, from actual token counts. It imports without torch.

One multiply-add is 2 FLOPs. Counted are the matrix products of the blocks, causal attention and the vocabulary
projection; norms, softmax, rotary embedding and the optimizer (< 1 %) are not. P prompt tokens, T completion tokens.
Sources: Kaplan et al. 2020 (2001.08361) section 2.1 for 2N per token forward and twice that backward; the causal
attention sum is written out, since horizons are short and prompts are not negligible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.frozen import Frozen


class FlopLedger(Frozen):
    """FLOPs by phase. Ledgers add."""

    rollout: float = 0.0
    """The student samples: prefill of the prompt and one decode step per token."""
    teacher: float = 0.0
    """The teacher scores the rollouts."""
    student_forward: float = 0.0
    """The student's forward pass of the update."""
    student_backward: float = 0.0
    """The student's backward pass: twice the forward pass."""
    recompute: float = 0.0
    """Forward work done twice to save memory: the student's blocks under gradient checkpointing. The fused loss takes its
    gradient in the forward pass and recomputes nothing."""
    evaluation: float = 0.0
    """Everything that only measures. Never part of the training total."""

    @property
    def training(self) -> float:
        """All phases but evaluation."""
        return self.rollout + self.teacher + self.student_forward + self.student_backward + self.recompute

    def __add__(self, other: FlopLedger) -> FlopLedger:
        mine, theirs = self.model_dump(), other.model_dump()
        return FlopLedger(**{phase: mine[phase] + theirs[phase] for phase in mine})


class ModelShape(Frozen):
    """What the FLOPs and the memory of a decoder depend on."""

    block_parameters: int
    """Weights of the matrix products in all blocks."""
    head_parameters: int
    """hidden × vocabulary: the output projection, counted also when it shares the embedding's weights."""
    attention_width: int
    """layers × heads × head dimension."""
    hidden: int
    vocabulary: int
    layers: int
    kv_width: int
    """layers × key/value heads × head dimension."""
    last_product_parameters: int = 0
    """Weights of the last matrix product of all blocks: recomputing a block stops before it."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From the values of a `config.json` of the Llama family (gated MLP, grouped-query attention).

        Raises ValueError when the config does not have them; the engine then counts the loaded modules instead.
        """
        try:
            hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
            heads, vocabulary = int(config["num_attention_heads"]), int(config["vocab_size"])
            intermediate = int(config["intermediate_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"config.json lacks {error}; only decoder configs with that field can be estimated."
            ) from None
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
        block = layers * (2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim + 3 * hidden * intermediate)
        return cls(
            block_parameters=block,
            head_parameters=hidden * vocabulary,
            attention_width=layers * heads * head_dim,
            hidden=hidden,
            vocabulary=vocabulary,
            layers=layers,
            kv_width=layers * kv_heads * head_dim,
            last_product_parameters=layers * hidden * intermediate,
        )

    def forward(self, num_tokens: int, num_projected: int) -> float:
        """FLOPs of a causal forward pass over `num_tokens` that projects `num_projected` of them to the vocabulary."""
        attention = 2.0 * self.attention_width * num_tokens * (num_tokens + 1)
        return 2.0 * self.block_parameters * num_tokens + attention + 2.0 * self.head_parameters * num_projected

    def recompute(self, num_tokens: int) -> float:
        """FLOPs of running the blocks again in the backward pass, up to what it needs: the last product's result it does not."""
        return self.forward(num_tokens, 0) - 2.0 * self.last_product_parameters * num_tokens

    def decode(self, prompt_tokens: int, completion_tokens: int) -> float:
        """FLOPs of sampling `completion_tokens` behind a prompt whose prefill is already done.

        The first token comes out of the prefill, so completion_tokens - 1 decode steps follow.
        """
        steps = completion_tokens - 1
        contexts = steps * prompt_tokens + steps * (steps + 1) / 2
        return 2.0 * (self.block_parameters + self.head_parameters) * steps + 4.0 * self.attention_width * contexts

    def prefill(self, prompt_tokens: int) -> float:
        """FLOPs of running a prompt and projecting its last position."""
        return self.forward(prompt_tokens, 1)


def rollout_flops(student: ModelShape, prompt_tokens: int, completion_tokens: list[int]) -> float:
    """FLOPs of one prompt's rollouts: one shared prefill and a decode each."""
    return student.prefill(prompt_tokens) + sum(student.decode(prompt_tokens, count) for count in completion_tokens)


def update_flops(
    student: ModelShape,
    teacher: ModelShape,
    prompt_tokens: int,
    completion_tokens: int,
    *,
    num_supervised: int | None = None,
    recomputes_blocks: bool = False,
) -> FlopLedger:
    """FLOPs of scoring one rollout with the teacher and training the student on it.

    Both models read the whole rollout and project `num_supervised` of its completion tokens (None: all). Gradient
    checkpointing (`recomputes_blocks`) runs the student's blocks once more.
    """
    num_tokens = prompt_tokens + completion_tokens
    projected = completion_tokens if num_supervised is None else num_supervised
    forward = student.forward(num_tokens, projected)
    return FlopLedger(
        teacher=teacher.forward(num_tokens, projected),
        student_forward=forward,
        student_backward=2.0 * forward,
        recompute=student.recompute(num_tokens) if recomputes_blocks else 0.0,
    )
