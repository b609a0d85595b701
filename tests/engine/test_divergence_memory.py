"""The fused loss needs at most a twentieth of the memory of whole logits at 4,096 tokens of a vocabulary of 151,936."""

import sys

import pytest

from benchmarks.divergence_memory import measured

VOCABULARY, TOKENS, FEWER = 151_936, 4096, 512


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and resets the peak of a process")
def test_a_twentieth_of_whole_logits() -> None:
    """Whole logits grow with the tokens: they are measured at an eighth of them, since all need 15 GB."""
    naive = measured("naive", FEWER, VOCABULARY)
    assert naive > 4 * FEWER * VOCABULARY, "at least one matrix of logits"
    assert measured("fused", TOKENS, VOCABULARY) <= naive * (TOKENS // FEWER) / 20
