"""The playground page in each state, its form, two answers stacked, and how texts are compared."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from dashboard.text_diff import MAX_WORDS, diff_markdown, from_where_they_part, literal, num_common, word_diff

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def opened(page: str = "playground", **query: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params.update(query)
    return app.switch_page(f"views/{page}.py").run()


def said(app: AppTest) -> str:
    everything = [*app.title, *app.markdown, *app.caption, *app.error, *app.warning, *app.info, *app.code]
    return "\n".join(str(one.value) for one in everything).replace("\\", "")


def num_lenses(app: AppTest) -> int:
    return len(app.get("bidi_component"))


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("queued", "scored by the teacher of prefix 8"),
        ("running", "scored by the teacher of prefix 8"),
        ("succeeded", "9 tokens, ended by itself · mean reverse KL 0.400 nats"),
        ("failed", "prompt has 300 tokens for the teacher"),
        ("cancelled", "nothing was kept"),
    ],
)
def test_a_question_draws_in_every_state(state: str, says: str) -> None:
    app = opened(question=f"q-{state}")
    assert not app.exception
    assert says in said(app)
    assert ("cancel-question" in {one.key for one in app.button}) is (state in ("queued", "running"))


@pytest.mark.usefixtures("scene")
def test_answers_stand_side_by_side_with_what_each_lens_shows() -> None:
    app = opened(question="q-succeeded")
    words = said(app)
    assert "The teacher's column shows its own words as read by prefix 8 at step 120" in words
    assert "Not scored: its tokenizer is not the teacher's (3 of 81 ids differ)." in words
    assert "The speakers' chat templates differ." in words
    assert "seed 7 and the same random numbers · divergences at temperature 1, before top-p" in words
    assert num_lenses(app) == 3


@pytest.mark.usefixtures("scene")
def test_two_answers_are_aligned_until_they_part_and_compared_by_words_behind() -> None:
    app = opened(question="q-succeeded", view="A and B")
    assert not app.exception
    words = said(app)
    assert "The first **3** tokens of A and B are the same" in words
    assert "Word by word, from where they part" in words
    assert num_lenses(app) == 2
    app.session_state["behind-aligned"] = True
    table = next(one.value for one in app.run().dataframe if "reverse KL, A" in one.value)
    assert table["token"].tolist() == ["m3", " 1+1", ";"]
    diff = next(str(one.value) for one in app.markdown if "orange-background" in str(one.value))
    assert "\\<img" in diff
    assert "<img" not in diff.replace("\\<img", "")


@pytest.mark.usefixtures("scene")
def test_without_one_tokenizer_nothing_is_aligned_and_it_is_said_why() -> None:
    app = opened(question="q-succeeded", view="A and B")
    app.selectbox(key="b-q-succeeded").set_value(2).run()
    assert not app.exception
    words = said(app)
    assert "No tokens are aligned: of base student, its tokenizer is not the teacher's" in words
    assert "Word by word" in words
    assert num_lenses(app) == 1
    app.selectbox(key="b-q-succeeded").set_value(0).run()
    assert "the same answer; choose another B" in said(app)


@pytest.mark.usefixtures("scene")
def test_a_question_is_asked_with_a_recorded_prompt_and_the_best_checkpoint() -> None:
    app = opened(run="r-p8")
    assert app.text_area[0].value == "k3 k0 c3 c2 c3 4 N13 |"
    assert "A prompt that this run has recorded." in said(app)
    assert app.multiselect[0].value == ["r-p8.120", "base", "teacher"]
    app.button(key="ask").click().run()
    assert not app.exception
    assert app.query_params["question"] in ("q-queued", ["q-queued"])


@pytest.mark.usefixtures("scene")
def test_what_is_wrong_is_said_before_it_is_asked() -> None:
    app = opened(run="r-p8", a="r-full.240", b="r-p8.80")
    assert app.multiselect[0].value == ["r-full.240", "r-p8.80"]
    assert any("tokenizer that is not the teacher's" in one.value for one in app.warning)
    assert not app.button(key="ask").disabled
    next(one for one in app.number_input if one.label == "Most tokens").set_value(900).run()
    assert any("too many; lower it" in one.value for one in app.error)
    assert app.button(key="ask").disabled
    app.text_area[0].set_value("").run()
    assert app.button(key="ask").disabled
    assert not app.error


@pytest.mark.usefixtures("scene")
def test_an_earlier_question_is_asked_again_with_its_settings() -> None:
    app = opened(run="r-p16", question="q-failed")
    app.button(key="ask-again").click().run()
    assert not app.exception
    assert app.selectbox(key="chosen-run").value == "r-p8"
    assert app.multiselect[0].value == ["r-p8.120", "r-mix8.120", "base", "teacher"]
    assert "onerror" in app.text_area[0].value
    assert next(one for one in app.number_input if one.label == "Seed").value == 7


@pytest.mark.usefixtures("scene")
def test_an_unknown_question_is_said_to_be_unknown() -> None:
    app = opened(question="q-nope")
    assert not app.exception
    assert any("There is no question" in one.value for one in app.error)


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize(("page", "query"), [("inspect", {"run": "r-p8"}), ("checkpoints", {"run": "r-p8"})])
def test_other_pages_lead_here(page: str, query: dict[str, str]) -> None:
    app = opened(page, **query)
    assert not app.exception
    assert any(one.proto.page == "playground" for one in app.get("page_link"))


def test_texts_share_their_leading_tokens() -> None:
    assert [num_common(*pair) for pair in (([], []), ([1], [2]), ([1, 2], [1]), ([1, 2, 3], [1, 2, 4]))] == [0, 0, 1, 2]


def test_words_that_differ_are_marked_by_sign_and_colour() -> None:
    assert word_diff("a b  c", "a x c") == [("both", ["a"]), ("first", ["b"]), ("second", ["x"]), ("both", ["c"])]
    marked = diff_markdown(word_diff("a b", "a\nc"))
    assert marked == "a :orange-background[~~b~~] :violet-background[**⏎**]  \n:violet-background[**c**]"
    assert len(word_diff("w " * (MAX_WORDS + 5), "")[0][1]) == MAX_WORDS


def test_what_two_texts_share_at_the_start_is_cut_to_a_few_words() -> None:
    shared = " ".join("abcdefghijkl")
    runs = from_where_they_part(word_diff(f"{shared} x", f"{shared} y"))
    assert runs == [("both", ["…", *"efghijkl"]), ("first", ["x"]), ("second", ["y"])]
    assert from_where_they_part(word_diff(shared, shared)) == from_where_they_part([]) == []
    assert from_where_they_part(word_diff("x", "y")) == [("first", ["x"]), ("second", ["y"])]


def test_markdown_of_a_model_is_text() -> None:
    assert literal("# <b>[x](y) :red[z] `$1$` -") == r"\# \<b\>\[x\]\(y\) \:red\[z\] \`\$1\$\` \-"
    assert literal("a\u202eb\x1b[2J") == "a�b�\\[2J"


_TEXTS = st.text(st.sampled_from("ab \n"), max_size=30)


@given(_TEXTS, _TEXTS)
@settings(deadline=None, max_examples=60)
def test_a_diff_holds_both_texts_whole(first: str, second: str) -> None:
    runs = word_diff(first, second)
    for text, sides in ((first, ("both", "first")), (second, ("both", "second"))):
        words = [word for whose, run in runs if whose in sides for word in run]
        assert " ".join(words).split() == text.split()
        assert words.count("\n") == text.count("\n")
