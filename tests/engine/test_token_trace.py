"""Token traces: what is written is read, candidates are complete, and every token has a text a person can read."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.scoring import TokenColumns, score_rollouts
from engine.token_trace import FRAGMENT, NORMAL, SPECIAL, TokenTrace, read_trace, write_traces
from engine.trace import rollout_summary, token_text, token_trace
from tests.engine.models import random_model

STUDENT, TEACHER = random_model(0), random_model(1, hidden=32)
TEXT = "naïve café: 東京 😀 “quoted” ⟨x⟩"


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with few merges, so that characters beyond ASCII fall into pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the theme then there the quoted quote"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: words with ▁ for the space, and <0xE2> for bytes that no word covers."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "a"]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def scored(top_k: int = 5, horizon: int = 12) -> list[TokenColumns]:
    asked = [RolloutRequest(i, [1, 10 + i, 11][: 2 + i % 2], 1, 1) for i in range(5)]
    rollouts = Sampler(STUDENT, 0, 1.0).sample(asked, horizon)
    return score_rollouts(STUDENT, TEACHER, rollouts, temperature=1.0, top_k=top_k, micro_batch=2)


def trace_of(token_ids: list[int], tokenizer: PreTrainedTokenizerFast) -> TokenTrace:
    """A trace of given tokens, whose figures come from some scored rollout of the same length."""
    columns = next(c for c in scored(horizon=len(token_ids)) if c.rollout.finish_reason == "length")
    rollout = dataclasses.replace(columns.rollout, completion_token_ids=token_ids)
    return token_trace(dataclasses.replace(columns, rollout=rollout), tokenizer)


def test_columns_come_in_the_order_of_the_rollouts_whatever_the_micro_batches() -> None:
    for columns in scored():
        count = len(columns.rollout.completion_token_ids)
        assert {len(getattr(columns, f.name)) for f in dataclasses.fields(columns)[1:]} == {count}
        assert columns.student_logprob.tolist() == pytest.approx(columns.rollout.completion_logprobs, abs=1e-5)


def test_columns_are_those_of_the_models_own_logits() -> None:
    for columns in scored():
        rollout, start = columns.rollout, len(columns.rollout.prompt_token_ids)
        ids = torch.tensor([rollout.prompt_token_ids + rollout.completion_token_ids])
        with torch.no_grad():
            s = torch.log_softmax(STUDENT.module(input_ids=ids[:, :-1]).logits[0, start - 1 :], -1)
            t = torch.log_softmax(TEACHER.module(input_ids=ids[:, :-1]).logits[0, start - 1 :], -1)
        rows, picked = torch.arange(len(s)), ids[0, start:]
        close = {"rtol": 0, "atol": 1e-6, "check_dtype": False}
        torch.testing.assert_close(columns.student_logprob, s[rows, picked], **close)
        torch.testing.assert_close(columns.teacher_logprob, t[rows, picked], **close)
        torch.testing.assert_close(columns.reverse_kl, (s.exp() * (s - t)).sum(-1), **close)
        torch.testing.assert_close(columns.forward_kl, (t.exp() * (t - s)).sum(-1), **close)
        torch.testing.assert_close(columns.student_entropy, -(s.exp() * s).sum(-1), **close)
        torch.testing.assert_close(columns.teacher_entropy, -(t.exp() * t).sum(-1), **close)
        order = s.argsort(-1, descending=True)
        rank = (order == picked[:, None]).nonzero()[:, 1] + 1
        assert columns.student_rank.tolist() == rank.tolist()
        assert columns.student_top.tolist() == order[:, :5].tolist()
        assert columns.top1_agrees.tolist() == (s.argmax(-1) == t.argmax(-1)).tolist()


@pytest.mark.parametrize("top_k", [1, 5, 200])
def test_candidates_hold_both_top_k_and_the_sampled_token(top_k: int) -> None:
    for columns in scored(top_k=top_k):
        trace = token_trace(columns, STUDENT.tokenizer)
        for t, (sampled, ids) in enumerate(zip(trace.token_ids, trace.candidate_ids, strict=True)):
            assert len(set(ids)) == len(ids)
            wanted = {sampled, *columns.student_top[t].tolist(), *columns.teacher_top[t].tolist()}
            assert set(ids) == wanted
            for logprobs in (trace.candidate_student_logprob[t], trace.candidate_teacher_logprob[t]):
                assert torch.tensor(logprobs, dtype=torch.double).exp().sum() <= 1 + 1e-6
            here = ids.index(sampled)
            assert trace.candidate_student_logprob[t][here] == pytest.approx(trace.student_logprob[t])
            assert trace.candidate_teacher_logprob[t][here] == pytest.approx(trace.teacher_logprob[t])
            larger = [
                max(pair)
                for pair in zip(trace.candidate_student_logprob[t], trace.candidate_teacher_logprob[t], strict=True)
            ]
            assert larger == sorted(larger, reverse=True)
        assert {i for ids in trace.candidate_ids for i in ids} == set(trace.vocabulary_ids)
        assert len(trace.vocabulary_texts) == len(trace.vocabulary_ids)


def test_a_trace_file_gives_every_rollout_back_within_half_precision(tmp_path: Path) -> None:
    traces = [token_trace(columns, STUDENT.tokenizer) for columns in scored()]
    write_traces(tmp_path / "step-0.parquet", traces)
    for row, trace in enumerate(traces):
        found = read_trace(tmp_path / "step-0.parquet", row)
        for name, value in trace:
            if name in ("candidate_student_logprob", "candidate_teacher_logprob"):
                for mine, theirs in zip(getattr(found, name), value, strict=True):
                    assert mine == pytest.approx(theirs, rel=2**-11, abs=1e-7)
            elif value and isinstance(value[0], float):
                assert getattr(found, name) == pytest.approx(value, rel=2**-11, abs=1e-7)
            else:
                assert getattr(found, name) == value


def test_values_beyond_half_precision_are_stored_at_its_edge(tmp_path: Path) -> None:
    """A diverged model may find a token less likely than exp(-65504); its trace still opens."""
    trace = token_trace(scored()[0], STUDENT.tokenizer)
    extreme = trace.model_copy(
        update={"teacher_logprob": [-1e9] * len(trace.token_ids), "reverse_kl": [1e9] * len(trace.token_ids)}
    )
    write_traces(tmp_path / "step-0.parquet", [extreme])
    found = read_trace(tmp_path / "step-0.parquet", 0)
    assert set(found.teacher_logprob) == {-65504.0}
    assert set(found.reverse_kl) == {65504.0}


def test_texts_of_whole_tokens_join_to_the_completion() -> None:
    tokenizer = byte_level_tokenizer()
    ids = tokenizer.encode("the then quoted there")
    trace = trace_of(ids, tokenizer)
    assert "".join(trace.texts) == "the then quoted there"
    assert set(trace.flags) == {NORMAL}


def test_pieces_of_a_character_are_flagged_and_shown_as_their_bytes() -> None:
    tokenizer = byte_level_tokenizer()
    ids = tokenizer.encode(TEXT)
    trace = trace_of(ids, tokenizer)
    shown = b""
    for text, flag in zip(trace.texts, trace.flags, strict=True):
        shown += bytes.fromhex(text.strip("⟨⟩")) if flag == FRAGMENT else text.encode()
    assert shown.decode() == TEXT
    assert FRAGMENT in trace.flags
    assert NORMAL in trace.flags
    assert token_text(tokenizer, tokenizer.encode("東")[0]).startswith("⟨E6")


def test_bytes_of_a_byte_fallback_vocabulary_are_shown_as_bytes() -> None:
    tokenizer = byte_fallback_tokenizer()
    assert token_text(tokenizer, tokenizer.convert_tokens_to_ids("<0xE2>")) == "⟨E2⟩"
    assert token_text(tokenizer, tokenizer.convert_tokens_to_ids("<0x41>")) == "A"
    assert token_text(tokenizer, tokenizer.convert_tokens_to_ids("▁the")) == " the"


def test_special_tokens_are_flagged() -> None:
    tokenizer = byte_level_tokenizer()
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    trace = trace_of([*tokenizer.encode("the"), end], tokenizer)
    assert trace.flags[-1] == SPECIAL
    assert trace.texts[-1] == "</s>"
    assert SPECIAL not in trace.flags[:-1]


def test_an_ordinary_token_in_angle_brackets_is_no_fragment() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["⟨x⟩"])
    trace = trace_of([tokenizer.convert_tokens_to_ids("⟨x⟩")] * 2, tokenizer)
    assert trace.texts == ["⟨x⟩", "⟨x⟩"]
    assert trace.flags == [NORMAL, NORMAL]


def test_a_summary_says_how_much_of_the_divergence_lies_inside_the_horizon() -> None:
    columns = scored()[0]
    rollout: Rollout = columns.rollout
    summary = rollout_summary(columns, row=0, horizon=3, model=STUDENT, prompt="p" * 5000, answer=None, is_right=None)
    assert summary.inside_share == pytest.approx(float(columns.reverse_kl[:3].sum() / columns.reverse_kl.sum()))
    assert summary.mean_reverse_kl == pytest.approx(float(columns.reverse_kl.mean()))
    assert summary.max_reverse_kl == pytest.approx(float(columns.reverse_kl.max()))
    assert summary.num_tokens == len(rollout.completion_token_ids)
    assert len(summary.prompt) == 4000
