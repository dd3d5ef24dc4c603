"""Retrieval: arrays in, arrays out.

- ``index``: exact search, and the interface of every vector index
- ``topk``: exact top-k of score matrices
- ``selection``: sampling and diversity of scored candidates
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
