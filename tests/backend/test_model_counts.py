"""What an estimate counts from a config.json alone, held against the models of transformers; other kinds have none."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from backend.estimate import model_of
from backend.problems import Refusal
from engine.adapter_spec import NoAdapter
from engine.gated_dense import GATED_DENSE
from engine.model_shape import shape_of
from engine.model_spec import ModelSpec
from tests.engine.families import FAMILIES, STATEFUL, write_family

# 64 heads, since classes that are not told have up to 32 of keys.
_SIZES = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_STATED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def written(folder: Path, config: dict[str, Any]) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSpec(path=str(folder))


def num_matrix_weights(model: PreTrainedModel) -> int:
    """All weights but those of norms and biases, which an estimate leaves out."""
    return model.num_parameters() - sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)


@pytest.mark.parametrize("kind", GATED_DENSE)
@pytest.mark.parametrize(
    "stated", [{}, _STATED, _STATED | {"tie_word_embeddings": True}, _STATED | {"tie_word_embeddings": False}]
)
def test_the_weights_are_those_of_the_model(tmp_path: Path, kind: str, stated: dict[str, Any]) -> None:
    values = _SIZES | stated
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
    counted = model_of(written(tmp_path, {"model_type": kind, **values}), "student.path", NoAdapter())
    assert counted.num_parameters == num_matrix_weights(model)
    shape = shape_of(model)
    for name in ("block_parameters", "head_parameters", "attention_width", "kv_width"):
        assert getattr(counted.shape, name) == getattr(shape, name), name


@pytest.mark.parametrize("kind", sorted((FAMILIES.keys() | STATEFUL.keys()) - set(GATED_DENSE)))
def test_a_model_of_another_kind_has_no_estimate(tmp_path: Path, kind: str) -> None:
    write_family(tmp_path, kind)
    with pytest.raises(Refusal) as refused:
        model_of(ModelSpec(path=str(tmp_path)), "student.path", NoAdapter())
    (finding,) = refused.value.errors
    assert f"whose cost cannot be estimated (its model_type is {kind!r}; only dense decoders" in finding.message
    assert "run a preflight" in finding.message
