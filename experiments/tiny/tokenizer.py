"""The word-level tokenizer of the tiny pair."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from experiments.tiny.task import vocabulary

MAX_TOKENS = 256
_SPECIAL = ("<pad>", "<bos>", "<eos>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 81 words that puts <bos> before a text and refuses unknown words.

    There is no <unk> on purpose: a word outside the task is a mistake in the data, not a token.
    """
    words = WordLevel({word: i for i, word in enumerate([*_SPECIAL, *vocabulary()])}, unk_token="")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A $B",
        special_tokens=[("<bos>", _SPECIAL.index("<bos>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )
