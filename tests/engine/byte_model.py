"""A random model that reads any text: its tokens are bytes. For tests of data whose words the tiny pair does not know."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tests.engine.models import write_random_model

_SPECIAL = ("<pad>", "<bos>", "<eos>")


def write_byte_model(folder: Path, seed: int, *, context: int = 1024) -> Path:
    """A model folder; equal seeds have equal weights."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *characters])}
    write_random_model(folder, seed, vocabulary=len(vocabulary), context=context)
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=context
    )
    fast.save_pretrained(folder)
    return folder
