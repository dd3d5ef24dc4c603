"""Trainers: each turns a dataset into a bundle. Nothing else knows which one made a bundle.

- ``training``: the choice of a trainer, and the three calls of each
- ``torch/``: two towers and DLRM in PyTorch
- ``merlin/``: the same by NVIDIA Merlin
- ``torchrec/``: DLRM on sharded tables, for example 3
- ``epochs``: number of epochs for a training on other rows
- ``negatives``: negatives for data that has only positives
- ``worker_events``: progress of worker processes
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
