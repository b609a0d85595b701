"""A causal language model as the engine uses it: backbone, output head, end-of-text ids, FLOPs shape.

B rollouts, S sequence positions, H hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from engine.errors import RunError
from engine.findings import Finding
from engine.flops import ModelShape
from engine.gradient_checkpointing import last_product_parameters
from engine.llama_decoder import LlamaDecoder, is_llama_shaped
from engine.locations import resolve
from engine.model_spec import ModelSpec

if TYPE_CHECKING:
    from engine.adapter import Adapter

# Difference between head(hidden) and the model's own logits above which the head is not what we take it for.
_HEAD_TOLERANCE = 1e-2
_FORBIDDEN_CONFIG_KEYS = ("auto_map", "_attn_implementation_internal", "trust_remote_code")


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
        logits = nn.functional.linear(hidden.to(used.dtype), used, None if added is None else added[: self.vocabulary])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


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

    def hidden(self, token_ids: Tensor, **inputs: Any) -> Tensor:
        """Last hidden states [B, S, H] of the backbone; no logits are made."""
        with self._as_meant():
            states: Tensor = self.module.get_decoder()(input_ids=token_ids, **inputs).last_hidden_state
        # Residual streams and norms of float32 weights stay float32 under autocast; the head must not.
        return states if self.autocast_dtype is None else states.to(self.autocast_dtype)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which forward passes run."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def decoder(self, capacity: int) -> LlamaDecoder | None:
        """One decode step of the backbone with the weights of now, for `capacity` positions; None where it runs itself."""
        if not self.is_llama_shaped:
            return None
        with self._as_meant():
            return LlamaDecoder(self.module, capacity)

    def state_dict(self) -> dict[str, Tensor]:
        """All weights under the architecture's own names; those that an adapter changes are merged copies."""
        if self.adapter is None:
            return dict(self.module.state_dict())
        return self.adapter.plain_state(self.module, merged=not self.leaves_out_adapter)

    def _as_meant(self) -> contextlib.AbstractContextManager[Any]:
        if self.adapter is None or not self.leaves_out_adapter:
            return contextlib.nullcontext()
        return self.adapter.left_out()

    def limited_to(self, vocabulary: int) -> LanguageModel:
        """The same model without the last rows of its head: it neither samples nor scores their tokens."""
        return replace(self, head=replace(self.head, vocabulary=vocabulary))

    @property
    def num_parameters(self) -> int:
        """All weights, shared ones once."""
        total = sum(int(parameter.numel()) for parameter in self.module.parameters())
        return total - (self.adapter.num_parameters if self.adapter is not None and self.leaves_out_adapter else 0)

    @property
    def context_tokens(self) -> int | None:
        """Longest sequence that the model's positions allow, where its config says so."""
        limit = getattr(self.module.config, "max_position_embeddings", None)
        return int(limit) if limit else None


def load_tokenizer(spec: ModelSpec, field: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; RunError("bad_model") when there is none."""
    path = _checked_path(spec, field)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, revision=spec.revision)
    except Exception as error:  # whatever transformers raises here means one thing to a person
        raise _bad_model(
            field, f"{field}.path is {spec.path!r}, but its tokenizer cannot be opened: {_brief(error)}"
        ) from error
    return tokenizer


def load_language_model(
    spec: ModelSpec,
    field: Literal["student", "teacher"],
    device: torch.device,
    precision: Literal["float32", "bfloat16"],
    *,
    is_frozen: bool | None = None,
) -> LanguageModel:
    """Load a model and check that its head is what the fused loss takes it for.

    Weights that are trained are float32 whatever the precision, frozen ones have the precision itself; the teacher's are
    frozen, the student's are not (None). The student's forward passes run under autocast. Raises RunError("bad_model").
    """
    tokenizer = load_tokenizer(spec, field)
    low = precision == "bfloat16"
    weights = torch.bfloat16 if low and (field == "teacher" if is_frozen is None else is_frozen) else torch.float32
    try:
        module, loading = AutoModelForCausalLM.from_pretrained(
            _checked_path(spec, field),
            revision=spec.revision,
            dtype=weights,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise _bad_model(
            field, f"{field}.path is {spec.path!r}, but the model cannot be opened: {_brief(error)}"
        ) from error
    if loading["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = sorted(loading["missing_keys"])
        raise _bad_model(
            field,
            f"{field}.path is {spec.path!r}, whose weights lack {len(missing)} tensors, {missing[0]} first; get a complete copy.",
        )
    module = module.to(device).eval()
    eos = _eos_token_ids(module, tokenizer)
    if not eos:
        raise _bad_model(
            field,
            f"{field}.path is {spec.path!r}, which names no end-of-text token; set eos_token_id in its generation_config.json.",
        )
    model = LanguageModel(
        module=module,
        tokenizer=tokenizer,
        head=_output_head(module),
        shape=_shape(module),
        eos_token_ids=eos,
        pad_token_id=tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else min(eos),
        device=device,
        autocast_dtype=torch.bfloat16 if low and field == "student" else None,
        is_llama_shaped=is_llama_shaped(module),
    )
    _check_head(model, spec, field)
    return model


def _checked_path(spec: ModelSpec, field: str) -> str:
    """The resolved path; a folder must exist and its config must not ask for code of its own."""
    try:
        path = resolve(spec.path)
    except ValueError:
        raise _bad_model(
            field, f"{field}.path is {spec.path!r}, but it leads out of its folder; correct the path."
        ) from None
    looks_local = spec.path.startswith(("builtin:", "home:", "/", "./", "../", "~"))
    folder = Path(path).expanduser()
    is_folder = _is_folder(folder)
    if looks_local and not is_folder:
        raise _bad_model(
            field, f"{field}.path is {spec.path!r}, but there is no such folder on this machine; correct the path."
        )
    if is_folder:
        config = folder / "config.json"
        if not config.is_file():
            raise _bad_model(
                field, f"{field}.path is {spec.path!r}, a folder without config.json; name a Hugging Face model folder."
            )
        try:
            values = json.loads(config.read_text())
        except ValueError as error:
            raise _bad_model(
                field, f"{field}.path is {spec.path!r}, whose config.json is not JSON ({error})."
            ) from None
        if not isinstance(values, dict):
            raise _bad_model(field, f"{field}.path is {spec.path!r}, whose config.json is not an object.")
        asked = [key for key in _FORBIDDEN_CONFIG_KEYS if key in values]
        if asked or any(folder.glob("*.py")):
            raise _bad_model(
                field,
                f"{field}.path is {spec.path!r}, which brings code of its own; only models that transformers knows are loaded.",
            )
        return str(folder)
    return path


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no file system takes
        return False


def _output_head(module: PreTrainedModel) -> OutputHead:
    projection = module.get_output_embeddings()
    config = module.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    weight = projection.weight
    return OutputHead(weight, projection.bias, scale, float(softcap) if softcap else None, len(weight))


def _check_head(model: LanguageModel, spec: ModelSpec, field: str) -> None:
    token_ids = torch.tensor([[min(model.eos_token_ids)] * 2], device=model.device)
    with torch.no_grad(), model.autocast():
        expected = model.module(input_ids=token_ids).logits.float()
        found = model.head.logits(model.hidden(token_ids)[0])[None]
    if not bool(expected.isfinite().all()):
        raise _bad_model(field, f"{field}.path is {spec.path!r}, whose logits are not finite; its weights are damaged.")
    gap = float((expected - found).abs().max()) / max(1.0, float(expected.abs().max()))
    if not gap < _HEAD_TOLERANCE:
        raise _bad_model(
            field,
            f"{field}.path is {spec.path!r}: its logits differ by {gap:.2g} from head(hidden); this architecture is not supported.",
        )


def _shape(module: PreTrainedModel) -> ModelShape:
    """Counted from the loaded modules, so that it holds for any architecture."""
    config = module.config.get_text_config()
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    layers = int(config.num_hidden_layers)
    blocks = sum(m.weight.numel() for m in module.get_decoder().modules() if isinstance(m, nn.Linear))
    head = module.get_output_embeddings().weight
    return ModelShape(
        block_parameters=blocks,
        head_parameters=head.numel(),
        attention_width=layers * heads * head_dim,
        hidden=int(config.hidden_size),
        vocabulary=head.shape[0],
        layers=layers,
        kv_width=layers * kv_heads * head_dim,
        last_product_parameters=last_product_parameters(module),
    )


def _eos_token_ids(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    found: set[int] = set()
    for value in (getattr(module.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)


def _bad_model(field: str, message: str) -> RunError:
    return RunError("bad_model", message, [Finding(field=f"{field}.path", message=message)])


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"
