from .ps_json import Config
from .remote import Remote
from .server import ParameterServer

__all__ = ["Config", "ParameterServer", "Remote"]
