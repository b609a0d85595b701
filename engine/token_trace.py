"""Token traces in Parquet: what student and teacher thought of each token of a rollout. It imports without torch.

One row, and one row group, per rollout, so that the API reads one rollout without the others. T completion tokens,
U candidates at a position: the union of both models' top-k and the sampled token. Log-probabilities are natural logs;
divergences and entropies are over the full vocabulary, in nats. Stored as float16 (a log-probability near -10 is off
by at most 0.004).
"""

from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from engine.frozen import Frozen

NORMAL, SPECIAL, FRAGMENT = 0, 1, 2  # TokenTrace.flags
_MAX_FLOAT16 = 65504.0  # beyond it a value would be stored as infinity, which no JSON carries


class TokenTrace(Frozen):
    """One rollout, column by column; every list but the prompt's and the vocabulary's has length T."""

    prompt_texts: list[str]
    token_ids: list[int]
    texts: list[str]
    """Each token as text; an incomplete UTF-8 piece is shown as its bytes in hex, such as ⟨E2 80⟩."""
    flags: list[int]
    """0 ordinary, 1 special token (such as the end of the text), 2 piece of a character."""
    student_logprob: list[float]
    """Log-probability of the sampled token under the student."""
    teacher_logprob: list[float]
    reverse_kl: list[float]
    """KL(student‖teacher), full vocabulary."""
    forward_kl: list[float]
    """KL(teacher‖student), full vocabulary."""
    jsd: list[float]
    """Jensen-Shannon divergence at beta 0.5, full vocabulary, at most log 2."""
    student_entropy: list[float]
    teacher_entropy: list[float]
    student_rank: list[int]
    """Rank of the sampled token under the student, 1 is the most likely."""
    teacher_rank: list[int]
    candidate_ids: list[list[int]]
    """T lists of U ids: the union of both top-k and the sampled token, most likely under either model first."""
    candidate_student_logprob: list[list[float]]
    candidate_teacher_logprob: list[list[float]]
    vocabulary_ids: list[int]
    """Every id that occurs among the candidates, with its text beside it."""
    vocabulary_texts: list[str]


def write_traces(path: Path, traces: list[TokenTrace]) -> None:
    """Write rollouts to a new Parquet file, zstd-compressed, one row group each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, _schema(), compression="zstd", compression_level=3) as writer:
        for trace in traces:
            columns: dict[str, list[Any]] = {name: [_storable(value)] for name, value in trace.model_dump().items()}
            writer.write_table(pa.table(columns, schema=_schema()))


def read_trace(path: Path | BinaryIO, row: int) -> TokenTrace:
    """One rollout of a trace file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return TokenTrace.model_validate(file.read_row_group(row).to_pylist()[0])


@cache
def _schema() -> Any:
    import pyarrow as pa  # where traces are read or written: the supervisors, which do neither, are 40 MB smaller

    floats = pa.list_(pa.float16())
    return pa.schema(
        [
            ("prompt_texts", pa.list_(pa.string())),
            ("token_ids", pa.list_(pa.int32())),
            ("texts", pa.list_(pa.string())),
            ("flags", pa.list_(pa.int8())),
            ("student_logprob", floats),
            ("teacher_logprob", floats),
            ("reverse_kl", floats),
            ("forward_kl", floats),
            ("jsd", floats),
            ("student_entropy", floats),
            ("teacher_entropy", floats),
            ("student_rank", pa.list_(pa.int32())),
            ("teacher_rank", pa.list_(pa.int32())),
            ("candidate_ids", pa.list_(pa.list_(pa.int32()))),
            ("candidate_student_logprob", pa.list_(floats)),
            ("candidate_teacher_logprob", pa.list_(floats)),
            ("vocabulary_ids", pa.list_(pa.int32())),
            ("vocabulary_texts", pa.list_(pa.string())),
        ]
    )


def _storable(value: Any) -> Any:
    if isinstance(value, list):
        return [_storable(part) for part in value]
    return min(max(value, -_MAX_FLOAT16), _MAX_FLOAT16) if isinstance(value, float) else value
