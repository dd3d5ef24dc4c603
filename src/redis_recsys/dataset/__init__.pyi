from .entities import Entities
from .interactions import Dataset, Rows
from .popularity import Clicks, Popular
from .schema import Column, Schema
from .split import Split
from .user_history import History

__all__ = ["Clicks", "Column", "Dataset", "Entities", "History", "Popular", "Rows", "Schema", "Split"]
