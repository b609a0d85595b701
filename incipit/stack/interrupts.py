"""What ends a local stack from outside: Ctrl-C, SIGTERM, or a terminal that closes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_ASKED = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """In the block SIGTERM and a closing terminal raise KeyboardInterrupt, as Ctrl-C does; only Ctrl-C can do so again."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ASKED)}
    # A closing terminal means nothing to what nohup started, nor Ctrl-C to what a script put in the background.
    heard = [number for number in before if number == signal.SIGTERM or before[number] != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def let_the_end_be_orderly() -> None:
    """From here on SIGTERM and SIGHUP change nothing: both come more than once, the latter from the shell and the kernel."""
    for number in _ASKED:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, _pass_over)  # not SIG_IGN, which a child would inherit


def _interrupt(*_: object) -> NoReturn:
    let_the_end_be_orderly()
    raise KeyboardInterrupt


def _pass_over(*_: object) -> None:
    pass
