"""A causal language model as the engine uses it: backbone, output head, end-of-text ids, FLOPs shape.

B rollouts, S sequence positions, H hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engine.decode_linear import DecodeHead, pays
from engine.flops import ModelShape
from engine.llama_decoder import LlamaDecoder, is_llama_shaped
from engine.memory_plan import DECODED_ROLLOUTS
from engine.model_checks import check_model
from engine.model_files import bad_model, empty_module, open_module, open_tokenizer
from engine.model_shape import shape_of
from engine.model_spec import ModelSpec
from engine.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from engine.adapter import Adapter
    from engine.sharding import Shards
    from engine.teacher_offload import HostWeights
    from engine.teacher_servers import TeacherServers


@dataclass(frozen=True)
class OutputHead:
    """The vocabulary projection: logits = softcap((hidden · weightᵀ + bias) · scale)."""

    weight: Tensor
    """[V or more, H]"""
    bias: Tensor | None
    scale: float
    softcap: float | None
    vocabulary: int
    """V: how many entries count. Rows of the weight behind them pad it to a round size."""

    def logits(self, hidden: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """[N, H] to logits [N, V] in float32 (or more); the fused loss passes leaves in place of weight and bias."""
        used = (self.weight if weight is None else weight)[: self.vocabulary]
        added = self.bias if bias is None else bias
        products = nn.functional.linear(
            hidden.to(used.dtype), used, None if added is None else added[: self.vocabulary]
        )
        return self.shaped(products)

    def shaped(self, products: Tensor) -> Tensor:
        """Logits in float32 (or more) from hidden · weightᵀ + bias, entry by entry: the scale and the softcap."""
        logits = products.to(torch.promote_types(products.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


@dataclass(frozen=True)
class Decoder:
    """A model as the sampler uses it between two updates."""

    backbone: LlamaDecoder | None
    """One decode step; None where the module runs itself."""
    head: DecodeHead


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model. It stays in evaluation mode: without dropout, the same input gives the same loss."""

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: OutputHead
    shape: ModelShape
    eos_token_ids: frozenset[int]
    pad_token_id: int
    device: torch.device
    autocast_dtype: torch.dtype | None
    """Dtype of the forward passes when it is not that of the weights."""
    is_llama_shaped: bool
    """Whether the sampler may decode with `LlamaDecoder`; otherwise it runs the module itself."""
    adapter: Adapter | None = None
    """LoRA layers inside the module, see engine/adapter.py; None when all weights are trained."""
    leaves_out_adapter: bool = False
    """Whether this is the base alone: the teacher, when it is the student's own base."""
    host_weights: HostWeights | None = None
    """Where the weights wait while nobody reads them, see engine/teacher_offload.py; None when they stay on the device."""
    servers: TeacherServers | None = None
    """Who has the weights of a served teacher, see engine/teacher_servers.py; its module has shapes alone, and is never run."""
    ranks: Ranks = ALONE
    """The processes of the run; each has this model."""
    decoded_rollouts: int = DECODED_ROLLOUTS
    """Most rollouts that it decodes together, see engine/memory_plan.py."""
    shards: Shards | None = None
    """How the weights lie in parts over the ranks, see engine/sharding.py; None when each rank has them all."""

    def hidden(self, token_ids: Tensor, **inputs: Any) -> Tensor:
        """Last hidden states [B, S, H] of the backbone; no logits are made. A served teacher has none."""
        assert self.servers is None, "whoever reads a served teacher asks its servers"
        with self._as_meant():
            states: Tensor = self.module.get_decoder()(input_ids=token_ids, **inputs).last_hidden_state
        # Residual streams and norms of float32 weights stay float32 under autocast; the head must not.
        return states if self.autocast_dtype is None else states.to(self.autocast_dtype)

    def on_device(self, *, head_alone: bool = False) -> contextlib.AbstractContextManager[None]:
        """The context in which an offloaded or sharded model's weights may be read, all of them or those of the head."""
        if self.shards is not None:
            return self.shards.whole(head_alone=head_alone)
        if self.host_weights is None:
            return contextlib.nullcontext()
        return self.host_weights.on_device(head_alone=head_alone)

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """What `work` returns, which runs the backbone and may read the head's weights; on every rank or on none."""
        return work() if self.shards is None else self.shards.run(work)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which forward passes run."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def decoder(self, capacity: int, num_tokens: int) -> Decoder:
        """What decodes `num_tokens` tokens of each row with the weights of now, up to `capacity` positions."""
        packs, dtype = pays(num_tokens), self.autocast_dtype
        head = DecodeHead.of(self.head, dtype or self.head.weight.dtype, packs=packs)
        if not self.is_llama_shaped:
            return Decoder(None, head)
        with self._as_meant():
            return Decoder(LlamaDecoder(self.module, capacity, dtype=dtype, packs=packs), head)

    def state_dict(self) -> dict[str, Tensor]:
        """All weights under the architecture's own names; those that an adapter changes are merged copies.

        Of a sharded model rank 0 gets them whole, the others none; each has to ask.
        """
        if self.shards is not None:
            return self.shards.full_state()
        if self.adapter is None:
            return dict(self.module.state_dict())
        return self.adapter.plain_state(self.module, merged=not self.leaves_out_adapter)

    def _as_meant(self) -> contextlib.AbstractContextManager[Any]:
        if self.adapter is None or not self.leaves_out_adapter:
            return contextlib.nullcontext()
        return self.adapter.left_out()

    def limited_to(self, vocabulary: int) -> LanguageModel:
        """The same model without the last rows of its head: it neither samples nor scores their tokens."""
        head = replace(self.head, vocabulary=vocabulary)
        used = {"vocabulary": vocabulary, "head_parameters": vocabulary * self.shape.hidden}
        return replace(self, head=head, shape=self.shape.model_copy(update=used))

    @property
    def num_parameters(self) -> int:
        """All weights, shared ones once."""
        total = sum(int(parameter.numel()) for parameter in self.module.parameters())
        return total - (self.adapter.num_parameters if self.adapter is not None and self.leaves_out_adapter else 0)

    @property
    def context_tokens(self) -> int | None:
        """Longest sequence that the model's positions allow, where its config says so."""
        config = self.module.config.get_text_config()
        limits = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
        return next((int(limit) for limit in limits if isinstance(limit, int) and limit > 0), None)


def load_tokenizer(spec: ModelSpec, field: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; RunError("bad_model") when there is none."""
    return open_tokenizer(spec, field)


def load_language_model(
    spec: ModelSpec,
    field: Literal["student", "teacher"],
    device: torch.device,
    precision: Literal["float32", "bfloat16"],
    *,
    is_frozen: bool | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> LanguageModel:
    """Load a model and check that its head is what the fused loss takes it for.

    Weights that are trained are float32 whatever the precision, frozen ones have the precision itself; the teacher's are
    frozen, the student's are not (None). `tokenizer` is its own, where that has been opened already. The student's forward
    passes run under autocast. Raises RunError("bad_model").
    """
    tokenizer = load_tokenizer(spec, field) if tokenizer is None else tokenizer
    low = precision == "bfloat16"
    weights = torch.bfloat16 if low and (field == "teacher" if is_frozen is None else is_frozen) else torch.float32
    module = open_module(spec, field, tokenizer, weights)
    model = _described(module.to(device).eval(), spec, field, device, tokenizer)
    if low and field == "student":
        model = replace(model, autocast_dtype=torch.bfloat16)
    check_model(model, spec, field)
    return model


def describe_language_model(
    spec: ModelSpec, field: Literal["student", "teacher"], device: torch.device
) -> LanguageModel:
    """A model without its weights, of which config and tokenizer are enough. Raises RunError("bad_model")."""
    tokenizer = load_tokenizer(spec, field)
    return _described(empty_module(spec, field), spec, field, device, tokenizer)


def _described(
    module: PreTrainedModel, spec: ModelSpec, field: str, device: torch.device, tokenizer: PreTrainedTokenizerBase
) -> LanguageModel:
    eos = _eos_token_ids(module, tokenizer)
    if not eos:
        raise bad_model(
            field,
            f"{field}.path is {spec.path!r}, which names no end-of-text token; set eos_token_id in its generation_config.json.",
        )
    return LanguageModel(
        module=module,
        tokenizer=tokenizer,
        head=_output_head(module),
        shape=_shape(module, spec, field),
        eos_token_ids=eos,
        pad_token_id=tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else min(eos),
        device=device,
        autocast_dtype=None,
        is_llama_shaped=module.device.type != "meta" and is_llama_shaped(module),
    )


def _output_head(module: PreTrainedModel) -> OutputHead:
    projection = module.get_output_embeddings()
    config = module.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    weight = projection.weight
    return OutputHead(weight, projection.bias, scale, float(softcap) if softcap else None, len(weight))


def _shape(module: PreTrainedModel, spec: ModelSpec, field: str) -> ModelShape:
    try:
        return shape_of(module)
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        kind = getattr(module.config, "model_type", "unknown")
        raise bad_model(
            field,
            f"{field}.path is {spec.path!r}, of the architecture {kind}, which has no attention heads to count; "
            "choose a transformer with a key/value cache.",
        ) from error


def _eos_token_ids(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    found: set[int] = set()
    for value in (getattr(module.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)
