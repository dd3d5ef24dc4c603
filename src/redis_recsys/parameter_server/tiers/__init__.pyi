from .host_cache import HostCache
from .redis_tier import VolatileTier
from .rocksdb_tier import PersistentTier

__all__ = ["HostCache", "PersistentTier", "VolatileTier"]
