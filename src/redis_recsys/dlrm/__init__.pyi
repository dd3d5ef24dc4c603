from .configure import Place
from .dlrm_client import DlrmClient
from .inference import DlrmModel, Samples

__all__ = ["DlrmClient", "DlrmModel", "Place", "Samples"]
