"""From scored rollouts to token traces that a person can read."""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerBase

from engine.events import RolloutSummary
from engine.language_model import LanguageModel
from engine.scoring import TokenColumns
from engine.token_trace import FRAGMENT, NORMAL, SPECIAL, TokenTrace

_BYTE_FALLBACK = re.compile("<0x([0-9A-F]{2})>")  # how SentencePiece vocabularies name a lone byte
_MAX_TEXT = 4000  # characters of prompt and completion in a list row; the trace itself has all tokens


def token_trace(columns: TokenColumns, tokenizer: PreTrainedTokenizerBase) -> TokenTrace:
    """The trace of one rollout; candidates are made unique and sorted by the larger of both models' log-probabilities."""
    token_ids = columns.rollout.completion_token_ids
    candidates = [
        _unique(ids, student, teacher)
        for ids, student, teacher in zip(
            columns.candidate_ids.tolist(),
            columns.candidate_student_logprob.tolist(),
            columns.candidate_teacher_logprob.tolist(),
            strict=True,
        )
    ]
    vocabulary = sorted({token_id for position in candidates for token_id, _, _ in position})
    special = set(tokenizer.all_special_ids)
    return TokenTrace(
        prompt_texts=[token_text(tokenizer, token_id) for token_id in columns.rollout.prompt_token_ids],
        token_ids=token_ids,
        texts=[token_text(tokenizer, token_id) for token_id in token_ids],
        flags=[
            SPECIAL if token_id in special else FRAGMENT if _bytes_of_piece(tokenizer, token_id) else NORMAL
            for token_id in token_ids
        ],
        student_logprob=columns.student_logprob.tolist(),
        teacher_logprob=columns.teacher_logprob.tolist(),
        reverse_kl=columns.reverse_kl.tolist(),
        forward_kl=columns.forward_kl.tolist(),
        jsd=columns.jsd.tolist(),
        student_entropy=columns.student_entropy.tolist(),
        teacher_entropy=columns.teacher_entropy.tolist(),
        student_rank=columns.student_rank.tolist(),
        teacher_rank=columns.teacher_rank.tolist(),
        candidate_ids=[[token_id for token_id, _, _ in position] for position in candidates],
        candidate_student_logprob=[[student for _, student, _ in position] for position in candidates],
        candidate_teacher_logprob=[[teacher for _, _, teacher in position] for position in candidates],
        vocabulary_ids=vocabulary,
        vocabulary_texts=[token_text(tokenizer, token_id) for token_id in vocabulary],
    )


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """One token as text, its leading space kept; an incomplete UTF-8 piece as its bytes, such as ⟨E2 80⟩."""
    fragment = _bytes_of_piece(tokenizer, token_id)
    if fragment:
        return f"⟨{' '.join(f'{byte:02X}' for byte in fragment)}⟩"
    piece = tokenizer.convert_ids_to_tokens(token_id)
    text = tokenizer.decode([token_id])
    assert isinstance(text, str)
    # SentencePiece drops the leading space of a lone token; its mark in the vocabulary still shows it.
    if isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" "):
        return " " + text
    return text


def rollout_summary(
    columns: TokenColumns,
    *,
    row: int,
    horizon: int,
    model: LanguageModel,
    prompt: str,
    answer: str | None,
    is_right: bool | None,
) -> RolloutSummary:
    """What a list shows of a traced rollout."""
    rollout, reverse = columns.rollout, columns.reverse_kl
    total = float(reverse.sum())
    completion = model.tokenizer.decode(rollout.completion_token_ids)
    assert isinstance(completion, str)
    return RolloutSummary(
        row=row,
        prompt_index=rollout.prompt_index,
        prompt=prompt[:_MAX_TEXT],
        completion=completion[:_MAX_TEXT],
        answer=answer,
        is_right=is_right,
        num_prompt_tokens=len(rollout.prompt_token_ids),
        num_tokens=len(rollout.completion_token_ids),
        finish_reason=rollout.finish_reason,
        mean_reverse_kl=float(reverse.mean()),
        max_reverse_kl=float(reverse.max()),
        inside_share=float(reverse[:horizon].sum()) / total if total > 0 else None,
    )


def _unique(ids: list[int], student: list[float], teacher: list[float]) -> list[tuple[int, float, float]]:
    by_id = {token_id: (token_id, s, t) for token_id, s, t in zip(ids, student, teacher, strict=True)}
    return sorted(by_id.values(), key=lambda c: -max(c[1], c[2]))


def _bytes_of_piece(tokenizer: PreTrainedTokenizerBase, token_id: int) -> list[int]:
    """The bytes of a token that is no whole text; none when it is."""
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if "�" not in tokenizer.decode([token_id]) or not isinstance(piece, str):
        return []
    fallback = _BYTE_FALLBACK.fullmatch(piece)
    return [int(fallback[1], 16)] if fallback else _byte_level(piece)


def _byte_level(piece: str) -> list[int]:
    """The bytes of a byte-level BPE piece (GPT-2's table: printable bytes stand for themselves, the rest from U+0100 on)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(0x100 + i): byte for i, byte in enumerate(b for b in range(256) if b not in printable)}
    return [table[character] if character in table else ord(character) & 0xFF for character in piece]
