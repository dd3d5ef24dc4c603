"""Two-tower and DLRM in PyTorch.

Two settings of the process are made here, before PyTorch is loaded. Waiting OpenMP threads sleep instead of spinning,
because next to any other busy process spinning makes training on few cores ten times slower. Denormal numbers count
as zero, because weights that a penalty pulls towards zero become denormal and slow arithmetic down.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

torch.set_flush_denormal(True)
