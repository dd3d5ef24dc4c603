"""Tiers of the parameter server, fastest first.

- ``host_cache``: hot rows in memory
- ``device_cache``: hot rows on a GPU
- ``device_kernel``: its lookup, in Triton's language for GPUs
- ``redis_tier``: rows in Redis
- ``rocksdb_tier``: whole tables on disk
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
