"""Values of a spec in words."""

from backend.words import divergence_in_words
from tests.engine.objectives import DIVERGENCES

WORDS = {
    "reverse KL", "forward KL", "JSD(0.5)", "forward skew KL(0.1)", "reverse skew KL(0.4)", "policy gradient",
    "policy gradient with baseline", "order of the teacher's top 2", "reverse KL of the teacher's top 2 + tail",
    "forward KL of both models' top 2 renormalised",
}  # fmt: skip


def test_each_choice_of_each_divergence_has_words_of_its_own() -> None:
    words = [divergence_in_words(divergence) for divergence in DIVERGENCES]
    assert len(set(words)) == len(words)
    assert set(words) >= WORDS
    assert max(map(len, words)) <= 128, "the column of the table of runs"
