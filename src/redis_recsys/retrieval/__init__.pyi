from .index import AllowedIndex, Change, LocalIndex, VectorIndex
from .selection import diversify, order

__all__ = ["AllowedIndex", "Change", "LocalIndex", "VectorIndex", "diversify", "order"]
