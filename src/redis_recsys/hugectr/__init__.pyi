from .network import DlrmShape
from .sparse import SparseModel

__all__ = ["DlrmShape", "SparseModel"]
