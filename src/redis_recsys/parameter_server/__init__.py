"""Parameter server: rows of embedding tables from the first tier that has them.

- ``server``: lookups over the tiers
- ``tiers/``: cache, Redis, RocksDB
- ``loading``: trained tables into the tiers, once
- ``updates``: online updates followed
- ``remote``: tables updated and read from outside of a server
- ``ps_json``: its configuration, with the field names of HPS
- ``layout``: keys and partitions in Redis, as HPS has them
- ``nodes``: the Redis nodes, asked in batches
- ``access``: where these nodes are
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
