"""Values of a spec in words."""

import itertools

from backend.words import divergence_in_words, objective_in_words, weights_in_words
from tests.engine.models import tiny_spec
from tests.engine.objectives import DIVERGENCES
from tests.engine.test_token_weights import WEIGHTINGS

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


def test_what_stands_beside_the_divergence_is_named() -> None:
    assert objective_in_words(tiny_spec()) == "reverse KL"
    spec = tiny_spec(
        token_weights={"kind": "tip"}, merge_stop_tokens=True, termination_guard={"kind": "forward_kl", "weight": 0.2}
    )
    assert objective_in_words(spec) == "reverse KL, TIP 0.5, stops merged, stop guard 0.2"
    assert len({weights_in_words(weighting) for weighting in WEIGHTINGS}) == len(WEIGHTINGS)


def test_the_longest_words_fit_into_their_column() -> None:
    for divergence, weighting in itertools.product(DIVERGENCES, WEIGHTINGS):
        spec = tiny_spec(
            divergence=divergence.model_copy(update={"k": 4096} if hasattr(divergence, "k") else {}),
            token_weights=weighting,
            merge_stop_tokens=True,
            termination_guard={"kind": "forward_kl", "weight": 12.34567},
        )
        assert len(objective_in_words(spec)) <= 128
