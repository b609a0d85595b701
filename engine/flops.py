"""FLOPs by phase, from actual token counts. It imports without torch.

One multiply-add is 2 FLOPs. Counted are the matrix products of the blocks, causal attention and the vocabulary
projection; norms, softmax, rotary embedding and the optimizer (< 1 %) are not. P prompt tokens, T completion tokens.
Sources: Kaplan et al. 2020 (2001.08361) section 2.1 for 2N per token forward and twice that backward; Hu et al. 2021
(2106.09685) for what a frozen weight saves. The causal attention sum is written out, since horizons are short and prompts
are not negligible.

*Useful* FLOPs are those of the tokens themselves. *Executed* FLOPs are those of the batches that ran: rows padded to the
longest, rows that had ended, and the whole square of attention where a kernel is given a mask instead of causality.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.adapter_shape import AdapterShape
from engine.frozen import Frozen
from engine.gated_dense import complete_config


class FlopLedger(Frozen):
    """FLOPs by phase. Ledgers add, and a number multiplies them."""

    rollout: float = 0.0
    """Completions are written, by the student or, off-policy, by the teacher: prefill and decode."""
    rollout_prefill: float = 0.0
    """The part of `rollout` that reads prompts; the rest decodes. 0 in records made before the two were told apart."""
    teacher: float = 0.0
    """The teacher scores the rollouts."""
    student_forward: float = 0.0
    """The student's forward pass of the update."""
    student_backward: float = 0.0
    """The student's backward pass: twice the forward pass, less where weights are frozen."""
    recompute: float = 0.0
    """Forward work done twice to save memory: the student's blocks under gradient checkpointing. The fused loss takes its
    gradient in the forward pass and recomputes nothing."""
    evaluation: float = 0.0
    """Everything that only measures. Never part of the training total."""

    @property
    def rollout_decode(self) -> float:
        """The part of `rollout` behind the prefill."""
        return self.rollout - self.rollout_prefill

    @property
    def training(self) -> float:
        """All phases but evaluation."""
        return self.rollout + self.teacher + self.student_forward + self.student_backward + self.recompute

    @property
    def total(self) -> float:
        """All phases."""
        return self.training + self.evaluation

    def by_phase(self) -> dict[str, float]:
        """FLOPs of the training phases, which add up to `training`: the rollout in its two parts where they are known."""
        rest = {
            "teacher": self.teacher,
            "student forward": self.student_forward,
            "student backward": self.student_backward,
            "recompute": self.recompute,
        }
        if not self.rollout_prefill:
            return {"rollout": self.rollout, **rest}
        return {"rollout prefill": self.rollout_prefill, "rollout decode": self.rollout_decode, **rest}

    def as_evaluation(self) -> FlopLedger:
        """The same work, done to measure."""
        return FlopLedger(evaluation=self.total)

    def __add__(self, other: FlopLedger) -> FlopLedger:
        mine, theirs = self.model_dump(), other.model_dump()
        return FlopLedger(**{phase: mine[phase] + theirs[phase] for phase in mine})

    def __mul__(self, factor: float) -> FlopLedger:
        return FlopLedger(**{phase: flops * factor for phase, flops in self.model_dump().items()})


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
    adapter: AdapterShape | None = None
    """What is trained, where that is not all weights; not part of `block_parameters`."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From the values of a `config.json` of one of GATED_DENSE.

        Raises ValueError when it is of another kind or does not have them; an engine counts the loaded modules, of any kind.
        """
        config = complete_config(config)
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

    @property
    def run_parameters(self) -> int:
        """Weights that each token runs through in the blocks, adapters included."""
        return self.block_parameters + (self.adapter.parameters if self.adapter else 0)

    def forward(self, num_tokens: int, num_projected: int) -> float:
        """FLOPs of a causal forward pass over `num_tokens` that projects `num_projected` of them to the vocabulary.

        F(n, n') = 2·N·n + 2·layers·heads·d·n·(n+1) + 2·N_head·n': the token at position c attends to c tokens, at 4 FLOPs per
        token and unit of attention width (query·key and weight·value).
        """
        attention = 2.0 * self.attention_width * num_tokens * (num_tokens + 1)
        return 2.0 * self.run_parameters * num_tokens + attention + 2.0 * self.head_parameters * num_projected

    def backward(self, num_tokens: int, num_projected: int) -> float:
        """FLOPs of the backward pass of `forward`.

        Twice the forward pass: each product has one gradient for its input and one for its weights. With adapters only
        theirs have the second one: 2·N + 4·N_adapter per token, no gradient at all below the first adapter.
        """
        if self.adapter is None:
            return 2.0 * self.forward(num_tokens, num_projected)
        reached = self.run_parameters - self.adapter.unreached_parameters
        attention_width = self.attention_width - self.adapter.unreached_attention_width
        attention = 4.0 * attention_width * num_tokens * (num_tokens + 1)
        weights = 2.0 * (reached + self.adapter.parameters) * num_tokens
        return weights + attention + 2.0 * self.head_parameters * num_projected

    def recompute(self, num_tokens: int) -> float:
        """FLOPs of running the blocks again in the backward pass, up to what it needs: the last product's result it does not."""
        last = self.last_product_parameters if self.adapter is None else self.adapter.unrecomputed_parameters
        return self.forward(num_tokens, 0) - 2.0 * last * num_tokens

    def prefill(self, prompt_tokens: int) -> float:
        """FLOPs of running a prompt and projecting its last position."""
        return self.forward(prompt_tokens, 1)

    def decode(self, prompt_tokens: int, completion_tokens: int) -> float:
        """FLOPs of sampling `completion_tokens` behind a prompt whose prefill is already done.

        The first token comes out of the prefill, so completion_tokens - 1 decode steps follow.
        """
        steps = max(completion_tokens - 1, 0)
        contexts = steps * prompt_tokens + steps * (steps + 1) / 2
        return 2.0 * (self.run_parameters + self.head_parameters) * steps + 4.0 * self.attention_width * contexts

    def padded_forward(self, num_rows: int, width: int, num_projected: int) -> float:
        """Executed FLOPs of a forward pass over rows padded to `width` that projects `num_projected` tokens of them all."""
        return num_rows * self.forward(width, 0) + self.forward(0, num_projected)

    def padded_prefill(self, num_rows: int, width: int, *, is_masked: bool, is_projected: bool = True) -> float:
        """Executed FLOPs of the prefill of prompts padded to `width`; a mask makes attention compute its whole square."""
        square = 2.0 * self.attention_width * width * (width - 1) if is_masked else 0.0
        return num_rows * (self.forward(width, int(is_projected)) + square)

    def padded_reading(self, num_rows: int, width: int, num_given: int) -> float:
        """Executed FLOPs of reading `num_given` completion tokens behind a cache of `width` positions, with attention's whole
        rectangle, since only a mask can describe it; the last one is projected."""
        attention = 4.0 * self.attention_width * num_given * (width + num_given)
        return num_rows * (2.0 * self.run_parameters * num_given + attention + 2.0 * self.head_parameters)

    def decode_step(self, num_rows: int, context: int) -> float:
        """Executed FLOPs of one token for each row, that attends to `context` positions with itself, padding included."""
        return num_rows * (2.0 * (self.run_parameters + self.head_parameters) + 4.0 * self.attention_width * context)


def rollout_flops(writer: ModelShape, prompt_tokens: int, completion_tokens: list[int]) -> float:
    """FLOPs of one prompt's rollouts: one shared prefill and a decode each."""
    return rollout_ledger(writer, prompt_tokens, completion_tokens).rollout


def rollout_ledger(writer: ModelShape, prompt_tokens: int, completion_tokens: list[int]) -> FlopLedger:
    """FLOPs of one prompt's rollouts by the model that writes them, prefill and decode.

    Probe selection: the decoded tokens of every probe, those that go on and those that do not.
    """
    prefill = writer.prefill(prompt_tokens)
    decode = sum(writer.decode(prompt_tokens, count) for count in completion_tokens)
    return FlopLedger(rollout=prefill + decode, rollout_prefill=prefill)


def student_flops(
    student: ModelShape, num_tokens: int, num_projected: int, *, recomputes_blocks: bool = False
) -> FlopLedger:
    """FLOPs of training on one sequence without a teacher's scores, as a warm-up on given completions does."""
    return FlopLedger(
        student_forward=student.forward(num_tokens, num_projected),
        student_backward=student.backward(num_tokens, num_projected),
        recompute=student.recompute(num_tokens) if recomputes_blocks else 0.0,
    )


def continuation_ledger(
    writer: ModelShape, prompt_tokens: int, completion_tokens: list[int], given_tokens: int
) -> FlopLedger:
    """FLOPs of continuing one prompt's completions whose first `given_tokens` somebody else wrote.

    The prompt is read once, the given tokens by each rollout; only what follows is sampled. A completion no longer than
    what was given has ended there and costs nothing.
    """
    continued = [count for count in completion_tokens if count > given_tokens]
    if not continued:
        return FlopLedger()
    prompt, begun = writer.forward(prompt_tokens, 0), prompt_tokens + given_tokens
    prefill = prompt + len(continued) * (writer.prefill(begun) - prompt)
    decode = sum(writer.decode(begun, count - given_tokens) for count in continued)
    return FlopLedger(rollout=prefill + decode, rollout_prefill=prefill)


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

    Both models read the whole rollout and project `num_supervised` of its completion tokens (None: all): a late window
    saves projections only, a prefix everything behind it. Gradient checkpointing (`recomputes_blocks`) runs the student's
    blocks once more.
    """
    num_tokens = prompt_tokens + completion_tokens
    projected = completion_tokens if num_supervised is None else num_supervised
    scored = FlopLedger(teacher=teacher.forward(num_tokens, projected))
    return scored + student_flops(student, num_tokens, projected, recomputes_blocks=recomputes_blocks)


def padded_update_flops(
    student: ModelShape,
    teacher: ModelShape,
    num_rows: int,
    width: int,
    num_projected: int,
    *,
    recomputes_blocks: bool = False,
) -> FlopLedger:
    """Executed FLOPs of `update_flops` for a micro-batch padded to `width`; only its `num_projected` tokens are projected."""
    blocks = update_flops(student, teacher, width, 0, recomputes_blocks=recomputes_blocks)
    return blocks * num_rows + update_flops(student, teacher, 0, 0, num_supervised=num_projected)


def signal_flops(student: ModelShape, teacher: ModelShape, num_projected: int) -> FlopLedger:
    """FLOPs of running both heads on `num_projected` tokens once more, without gradient, to know their weights."""
    return FlopLedger(
        teacher=2.0 * teacher.head_parameters * num_projected, recompute=2.0 * student.head_parameters * num_projected
    )
