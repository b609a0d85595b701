"""A model without some of its layers computes what is left when they are skipped, in every architecture; its bits are its source's."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from engine.depth_pruning import prune_layers
from incipit.cli import app
from tests.engine.families import FAMILIES, write_family

_NUM_LAYERS = 5
_DIFFERENT = {"llama", "gemma2", "gpt2", "gpt_neo", "gpt_oss", "qwen3_moe"}  # by names, windows and experts
_IDS = torch.arange(3, 23)[None]  # more than the attention windows of the families


@torch.inference_mode()
@pytest.mark.parametrize(
    "family", [name if name in _DIFFERENT else pytest.param(name, marks=pytest.mark.full) for name in FAMILIES]
)
def test_a_pruned_model_computes_what_is_left_when_the_layers_are_skipped(family: str, tmp_path: Path) -> None:
    write_family(tmp_path / "whole", family, num_layers=_NUM_LAYERS)
    (tmp_path / "pruned").mkdir()
    # Layer 1 alone: what follows it changes from odd to even, and so would the kind of attention where it went by number.
    assert prune_layers(str(tmp_path / "whole"), tmp_path / "pruned", {1}).num_layers == _NUM_LAYERS - 1
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    untouched = whole(_IDS, use_cache=False).logits
    decoder = whole.get_decoder()
    name = next(n for n, m in decoder.named_children() if isinstance(m, torch.nn.ModuleList) and len(m) == _NUM_LAYERS)
    setattr(decoder, name, torch.nn.ModuleList([m for i, m in enumerate(getattr(decoder, name)) if i != 1]))
    if getattr(whole.config, "layer_types", None):
        whole.config.layer_types = [kind for i, kind in enumerate(whole.config.layer_types) if i != 1]
    whole.config.num_hidden_layers = _NUM_LAYERS - 1  # loops of some architectures go by it
    expected = whole(_IDS, use_cache=False).logits
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    torch.testing.assert_close(pruned(_IDS, use_cache=False).logits, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(pruned(_IDS, use_cache=True).logits, expected, rtol=0, atol=1e-5)
    assert (expected - untouched).abs().max() > 0.1, "the layer counted for something"


def test_weights_keep_bits_and_precision_and_stay_in_their_shards(tmp_path: Path) -> None:
    write_family(tmp_path / "one", "llama", num_layers=_NUM_LAYERS)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "whole", max_shard_size="12KB")
    AutoTokenizer.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "whole")
    (tmp_path / "pruned").mkdir()
    pruned = prune_layers(str(tmp_path / "whole"), tmp_path / "pruned", [0, 3])
    before = {k: v for path in (tmp_path / "whole").glob("*.safetensors") for k, v in load_file(path).items()}
    index = json.loads((tmp_path / "pruned" / "model.safetensors.index.json").read_text())
    after = {}
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "pruned" / file, framework="pt") as opened:
            after[name] = opened.get_tensor(name)
    assert len(set(index["weight_map"].values())) > 1
    assert pruned.num_weights == sum(tensor.numel() for tensor in after.values())
    assert index["metadata"]["total_size"] == 2 * pruned.num_weights
    for old, new in {1: 0, 2: 1, 4: 2}.items():
        names = [name for name in before if name.startswith(f"model.layers.{old}.")]
        assert names
        for name in names:
            moved = after.pop(name.replace(f"layers.{old}.", f"layers.{new}."))
            assert moved.dtype == torch.bfloat16
            assert torch.equal(moved, before[name])
    assert not [name for name in after if ".layers." in name]
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert json.loads((tmp_path / "pruned" / "pruned_from.json").read_text()) == {
        "source": "whole",
        "num_layers": _NUM_LAYERS,
        "dropped_layers": [0, 3],
    }
    vocabularies = [AutoTokenizer.from_pretrained(tmp_path / folder).get_vocab() for folder in ("whole", "pruned")]
    assert vocabularies[0] == vocabularies[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    write_family(folder, "llama", num_layers=_NUM_LAYERS)
    return folder


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("5", "There is no layer 5:"),
        ("-1", "There is no layer -1:"),
        ("0,1,2,3,4", "5 of 5 layers would be dropped; name at least one and keep at least one."),
        ("1,x", "--without-layers is '1,x'; give numbers with commas between them, such as 5,25."),
        ("", "--without-layers is ''; give numbers"),
    ],
)
def test_wrong_layers_are_refused_and_nothing_is_left(layers: str, words: str, whole: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["models", "prune", str(whole), str(tmp_path / "new" / "it"), "--without-layers", layers]
    )
    assert done.exit_code == 1
    assert words in done.output
    assert not (tmp_path / "new" / "it").exists()
    assert not list(tmp_path.glob("new/*"))


def test_a_wrong_source_or_target_is_refused_by_name(whole: Path, tmp_path: Path) -> None:
    def refused(source: str, target: str) -> str:
        done = CliRunner().invoke(app, ["models", "prune", source, target, "--without-layers", "1"])
        assert done.exit_code == 1
        assert "Traceback" not in done.output
        return done.output

    new = str(tmp_path / "new")
    assert "'org/name' is no folder on this machine" in refused("org/name", new)
    assert "leads out of its folder" in refused("home:../x", new)
    assert "exists already; name a new folder" in refused(str(whole), str(tmp_path))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "config.json").write_text('{"auto_map": {}}')
    assert "brings code of its own" in refused(str(tmp_path / "code"), new)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 7}')
    assert "0 numbered layers, its config has 7" in refused(str(tmp_path / "odd"), new)
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "nothing-known"}')
    assert "has a config.json that transformers cannot read" in refused(str(tmp_path / "odd"), new)
    assert not Path(new).exists()


def test_the_command_says_what_it_wrote(whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "folder" / "student"
    done = CliRunner().invoke(app, ["models", "prune", str(whole), str(target), "--without-layers", "1, 3", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["folder"], said["num_layers"]) == (str(target), 3)
    assert AutoModelForCausalLM.from_pretrained(target).config.num_hidden_layers == 3
