"""Trainers: each turns a dataset into a bundle. No other code knows which trainer made a bundle.

- ``training``: choice of the trainer, and the interface of all trainers
- ``torch/``: two towers and DLRM in PyTorch
- ``merlin/``: the same models in NVIDIA Merlin
- ``torchrec/``: DLRM on sharded tables, for example 3
- ``epochs``: number of epochs for a second training
- ``negatives``: negatives for data that has only positives
- ``onnx_check``: comparison of ONNX files with their models
- ``presets``: training settings chosen for known data
- ``worker_events``: progress of worker processes
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
