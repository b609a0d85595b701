"""How an engine process ends: a small fixed table that the supervisor reads."""

from engine.events import FailureKind

DONE = 0
STOPPED = 10

OF_FAILURE: dict[FailureKind, int] = {
    "bad_spec": 11,
    "bad_model": 12,
    "bad_data": 13,
    "bad_checkpoint": 14,
    "oom_host": 15,
    "nan_loss": 16,
    "disk_full": 17,
    "gpu_error": 18,
    "server_unreachable": 19,
    "server_mismatch": 20,
    "rank_lost": 21,
    "internal": 70,
}
FAILURE_OF: dict[int, FailureKind] = {code: kind for kind, code in OF_FAILURE.items()}
