"""One thread per process, as several of them share the cores; no deadline, as they share them with others.

It stands alone: the engine's contract tests run without the services' packages too, see `make test-vllm`.
"""

import torch
from hypothesis import settings

from tests.home import home as home

torch.set_num_threads(1)
settings.register_profile("engine", deadline=None)
settings.load_profile("engine")
