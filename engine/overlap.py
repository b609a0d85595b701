"""Rollouts of the next step while the student is updated: an option that makes them one step off-policy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar

import torch

from engine.collect import StepRollouts
from engine.errors import StopRequested
from engine.language_model import LanguageModel

_T = TypeVar("_T")

Collect = Callable[[LanguageModel, Callable[[], None]], StepRollouts]
"""Collects a step's rollouts from a student; what it is given beside is to be called at every token, and may raise."""


class Overlap:
    """A copy of the student that samples in a thread of its own, on a stream of its own where there is a GPU.

    The copy has the weights from before the update that goes on beside it, whatever that does to them.
    """

    def __init__(self, student: LanguageModel) -> None:
        own = copy.deepcopy(student.module).requires_grad_(requires_grad=False)
        pairs = list(zip(student.module.parameters(), own.parameters(), strict=True))
        self._trained, self._own = ([pair[i].detach() for pair in pairs] for i in (0, 1))
        twins = {id(trained): twin for trained, twin in pairs}
        head = student.head
        bias = None if head.bias is None else twins[id(head.bias)]
        self._student = replace(student, module=own, head=replace(head, weight=twins[id(head.weight)], bias=bias))
        is_cuda = student.device.type == "cuda"
        self._stream = torch.cuda.Stream(student.device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="overlap")
        self._is_given_up = False

    def beside(
        self, work: Callable[[], _T], collect: Collect, on_token: Callable[[], None] = lambda: None
    ) -> tuple[_T, StepRollouts]:
        """What `work` returns and what `collect` gathers from the student as it is now, done at the same time.

        `on_token` is called after every decode step, by the other thread. What either raises is raised when both have ended.
        """
        torch._foreach_copy_(self._own, self._trained)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._student.device))

        def guarded() -> None:
            if self._is_given_up:
                raise StopRequested
            on_token()

        def collected() -> StepRollouts:
            with ExitStack() as stack:
                if self._stream is not None:
                    stack.enter_context(torch.cuda.stream(self._stream))
                return collect(self._student, guarded)

        gathering = self._thread.submit(collected)
        try:
            done = work()
        except BaseException:
            self._is_given_up = True  # else the process would end only when all of them were sampled
            raise
        return done, gathering.result()
