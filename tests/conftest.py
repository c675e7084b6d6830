"""What every test runs under."""

from __future__ import annotations

import torch

# Tests run side by side, one process per core: more threads in each would only wait for one another.
torch.set_num_threads(1)
