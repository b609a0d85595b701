"""Facts of a preflight: figures with their units, and prompts of both models as the tokens that they are."""

from streamlit.testing.v1 import AppTest

from dashboard.preflight_check import fact_in_words

HOSTILE = "<img src=x onerror=alert(1)> **bold** [link](javascript:alert(1))\n<|im_start|>user"


def test_figures_have_their_units() -> None:
    facts = {
        "device_memory_bytes": 25_276_510_208,
        "estimated_training_flops": 5.89e10,
        "train_prompts": 4096,
        "trial_first_loss": 1.20839,
        "student_context_tokens": None,
        "device": "cpu",
    }
    assert [fact_in_words(name, value) for name, value in facts.items()] == [
        "25.28 GB", "5.89e+10", "4,096", "1.208", "–", "cpu",
    ]  # fmt: skip


def test_prompts_are_shown_as_tokens_with_the_differing_ones_marked() -> None:
    def page(token: str) -> None:
        from dashboard.preflight_check import show_facts

        rows = [
            {"place": "line 1", "student": ["<s>", " What", token], "teacher": ["<t>", " What", token], "problem": ""},
            {"place": "line 2", "student": ["a", "b"], "teacher": [], "problem": "its template fails: no"},
        ]
        show_facts({"device": "cpu", "previews": rows})

    drawn = AppTest.from_function(page, args=(HOSTILE,)).run(timeout=30)
    assert not drawn.exception
    told = [block.value for block in drawn.markdown]
    assert told[0].startswith(":orange-background[\\<s\\>] What\\<img src=x")
    assert told[1].startswith(":orange-background[\\<t\\>] What")
    assert told[2] == "a b"
    assert "its template fails" in told[3]
    assert all(HOSTILE not in one for one in told)
    assert "1 token differs" in drawn.caption[0].value
