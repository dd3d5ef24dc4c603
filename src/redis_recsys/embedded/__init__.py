"""Servers that the library starts, and that end with it.

- ``process``: what they share: lock, watchdog, state file, polite stop
- ``redis_binary``: the ``redis-server`` to start
- ``redis_server``: Redis
- ``redis_cluster``: Redis Cluster
- ``triton_server``: Triton
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
