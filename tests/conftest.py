"""What every test shares: one thread, so that results do not depend on the machine's cores."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("continual", deadline=None, derandomize=True)  # no timed and no drawn assertion
settings.load_profile("continual")
