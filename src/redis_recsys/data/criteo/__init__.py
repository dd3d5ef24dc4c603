"""Criteo datasets: clicks with 13 numbers and 26 categories each, encoded and split.

- ``dataset``: the dataset as DLRM training reads it
- ``tsv``: the public click logs (Kaggle, Terabyte)
- ``generate``: made-up clicks with a known click probability
- ``part_writer``: streaming writer of the dataset's parts
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
