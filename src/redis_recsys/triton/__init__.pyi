from .grpc_connection import Connection
from .tensors import Columns, Field, stack

__all__ = ["Columns", "Connection", "Field", "stack"]
