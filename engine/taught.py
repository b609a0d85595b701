"""What the teacher makes of the micro-batches of an update: hidden states, or what a served one tells.

N supervised tokens of a micro-batch, Ht hidden width of the teacher.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.batch import RolloutBatch
from engine.language_model import LanguageModel
from engine.rollout import Rollout
from engine.top_tokens import TopTokens


def taught_batches(
    groups: list[list[Rollout]], student: LanguageModel, teacher: LanguageModel
) -> Iterator[tuple[RolloutBatch, Tensor | TopTokens]]:
    """Each micro-batch with the teacher's hidden states [N, Ht] at its supervised tokens, or what a served one tells of them.

    An offloaded teacher reads them all at once and makes room; its states wait in host memory like its weights. A served
    one is asked for them all at once.
    """
    device = student.device
    batches = (RolloutBatch.collate(group, student.pad_token_id, device) for group in groups)
    if teacher.servers is not None:
        told = iter(teacher.servers.read([rollout for group in groups for rollout in group]))
        for group, batch in zip(groups, batches, strict=True):
            yield batch, TopTokens.joined([next(told) for _ in group]).to(device)
        return
    if teacher.host_weights is None:
        yield from ((batch, _hidden(teacher, batch)) for batch in batches)
        return
    with teacher.on_device():
        waiting = [(batch, _hidden(teacher, batch).cpu()) for batch in batches]
    yield from ((batch, hidden.to(device)) for batch, hidden in waiting)


@torch.inference_mode()
def _hidden(teacher: LanguageModel, batch: RolloutBatch) -> Tensor:
    return teacher.run(lambda: teacher.hidden(batch.token_ids).flatten(0, 1)[batch.hidden_index])
