"""Memory of a run by part, in bytes, from the shapes of its models."""

from dataclasses import dataclass

from engine.flops import ModelShape
from engine.spec import RunSpec

_FLOAT32, _BFLOAT16 = 4, 2
# Korthikanti et al. 2022 (2205.05198) eq. 1 without the attention scores, which fused attention does not store.
_ACTIVATION_BYTES_PER_HIDDEN = 17  # per byte of the element type: 34 in bfloat16
# What engine/fused_loss.py and engine/sampler.py allow themselves.
_CHUNK_ENTRIES, _CHUNK_TENSORS, _MIN_CHUNK_TOKENS, _MAX_DECODED = 2**23, 6, 16, 128


@dataclass(frozen=True)
class Model:
    """What an estimate knows of a model."""

    shape: ModelShape
    num_parameters: int


def memory_bytes(
    spec: RunSpec, student: Model, teacher: Model, prompt_tokens: int, longest_horizon: int
) -> dict[str, int]:
    """Bytes by part; activations and cache are those of the longest step, evaluation included for the cache."""
    is_half = spec.precision == "bfloat16" or (spec.precision == "auto" and spec.device == "cuda")
    size = _BFLOAT16 if is_half else _FLOAT32
    shape = student.shape
    trained_tokens = min(spec.micro_batch_rollouts, spec.rollouts_per_step) * (prompt_tokens + longest_horizon)
    decoded = min(_MAX_DECODED, max(spec.rollouts_per_step, spec.evaluation.num_prompts))
    decoded_tokens = decoded * (prompt_tokens + spec.max_completion_tokens)
    chunk_tokens = max(_MIN_CHUNK_TOKENS, _CHUNK_ENTRIES // shape.vocabulary)
    num_trained = student.num_parameters if shape.adapter is None else shape.adapter.parameters
    num_frozen = student.num_parameters if shape.adapter is not None else 0
    is_shared = shape.adapter is not None and spec.student == spec.teacher
    of_layer = shape.hidden * _ACTIVATION_BYTES_PER_HIDDEN * size
    # Under gradient checkpointing a layer keeps its input, and the one that is being recomputed everything.
    kept = of_layer * shape.layers if not spec.recomputes_blocks else shape.hidden * size * shape.layers + of_layer
    return {
        "student_weights": num_trained * _FLOAT32 + num_frozen * size,
        "optimizer": 2 * num_trained * _FLOAT32,
        "gradients": num_trained * _FLOAT32,
        "teacher_weights": 0 if is_shared else teacher.num_parameters * size,
        "activations": trained_tokens * kept,
        "cache": 2 * decoded_tokens * max(shape.kv_width, teacher.shape.kv_width) * size,
        "divergence": _CHUNK_TENSORS * _FLOAT32 * min(chunk_tokens, trained_tokens) * shape.vocabulary,
    }
