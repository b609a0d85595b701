"""An objective that does not fit the opened models is refused at its field, in preflight and at the start of a run."""

import pytest

from engine.check import check
from engine.errors import RunError
from engine.setup import load_models
from tests.engine.models import CPU, tiny_spec


@pytest.mark.parametrize("kind", ["top_k_kl", "teacher_order"])
def test_more_top_tokens_than_the_vocabulary_has_are_refused_with_the_limit(kind: str) -> None:
    spec = tiny_spec(divergence={"kind": kind, "k": 82})
    sentence = "divergence.k is 82 but student and teacher share a vocabulary of 81 tokens; lower it to at most 81."
    assert [(found.field, found.message) for found in check(spec).findings] == [("divergence.k", sentence)]
    with pytest.raises(RunError) as caught:
        load_models(spec, CPU, "float32")
    assert (caught.value.failure, caught.value.message) == ("bad_spec", sentence)
    assert check(tiny_spec(divergence={"kind": kind, "k": 81})).findings == []
