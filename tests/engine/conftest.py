"""One thread per process, as several of them share the cores; no deadline, as they share them with others."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("engine", deadline=None)
settings.load_profile("engine")
