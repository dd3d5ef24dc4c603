from .connection import connect
from .events import publish
from .recommendations import Recommendations, get_many
from .users import forget
from .vectors import RedisIndex

__all__ = ["Recommendations", "RedisIndex", "connect", "forget", "get_many", "publish"]
