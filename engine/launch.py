"""`python -m engine.launch N train …`: torchrun of N processes on this machine that ends like an engine.

torchrun itself ends with 1 whatever has stopped its processes. This ends with what the first of them has ended with
(engine/exit_codes.py), so that a supervisor reads several processes as it reads one. Several machines take torchrun itself.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from engine.exit_codes import DONE, OF_FAILURE, STOPPED

_SIGNALS = {number.value: number.name for number in signal.Signals}


def main() -> int:
    """Start as many processes as argv says and wait for their end."""
    num_processes, *arguments = sys.argv[1:]
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # it quotes what has been said, in forty lines
    os.environ["PYTHONSAFEPATH"] = "1"  # like -P: the folder it runs in stays out of the import path
    asked = ["--standalone", "--nproc-per-node", num_processes, "--module", "engine", *arguments]
    try:
        run(parse_args(asked))  # type: ignore[no-untyped-call]
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode >= 0:
            return first.exitcode
        name = _SIGNALS.get(-first.exitcode, f"signal {-first.exitcode}")
        hint = " (often the machine's memory ran out)" if -first.exitcode == signal.SIGKILL else ""
        print(f"Process {rank} of {num_processes} of this run was ended by {name}{hint}.", file=sys.stderr)
        return OF_FAILURE["rank_lost"]
    except SignalException:
        return STOPPED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
