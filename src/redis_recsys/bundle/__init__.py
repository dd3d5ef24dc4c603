"""Bundles: the output of training, one folder that every later step reads.

- ``bundle``: an opened bundle: manifest, schema, users, items, popularity
- ``writer``: writing of bundles, whole or not at all, and the last step of every trainer
- ``models``: its ONNX models: towers, ranker, item side
- ``rules``: business rules over its items: allow and deny
- ``s3``: bundles and datasets to and from S3
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
