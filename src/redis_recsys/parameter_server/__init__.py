"""Parameter server: rows of embedding tables from the first tier that has them.

- ``server``: lookups over the tiers
- ``tiers/``: cache, Redis, RocksDB
- ``loading``: loads trained tables into the tiers, once
- ``updates``: follower of online updates
- ``remote``: updates and reads tables from outside a server
- ``ps_json``: its configuration, with the field names of HPS
- ``layout``: keys and partitions in Redis, as in HPS
- ``nodes``: batched access to the Redis nodes
- ``access``: addresses and login of these nodes
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
