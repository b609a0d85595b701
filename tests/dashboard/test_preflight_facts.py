"""Facts of a preflight: figures with their units, and chats of models as the text that they are."""

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


def test_chats_of_both_models_are_shown_as_code() -> None:
    def page(chat: str) -> None:
        from dashboard.preflight_check import show_facts

        show_facts({"device": "cpu", "student_chat": chat})

    drawn = AppTest.from_function(page, args=(HOSTILE,)).run(timeout=30)
    assert not drawn.exception
    assert [block.value for block in drawn.code] == [HOSTILE, "(no chat template)"]
    assert all(HOSTILE not in block.value for block in drawn.markdown)
