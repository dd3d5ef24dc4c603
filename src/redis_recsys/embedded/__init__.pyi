from .redis_cluster import EmbeddedCluster
from .redis_server import EmbeddedRedis
from .triton_server import EmbeddedTriton

__all__ = ["EmbeddedCluster", "EmbeddedRedis", "EmbeddedTriton"]
