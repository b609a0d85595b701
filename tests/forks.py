"""Processes that are forked from a server which has imported engine and API already: their imports take seconds of a processor.

One list for all: a test process has one such server, which follows the last list that it was given before it started.
"""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["engine.attempt", "engine.check", "backend.__main__", "tests.engine.models"])
