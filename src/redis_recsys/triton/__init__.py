"""Triton, independent of its models: no file here knows stages or tables.

- ``protocol``: names that server and clients agree on
- ``metrics_page``: reads a server's metrics
- ``tensors``: columns of a batch
- ``repository``: configurations of models
- ``python_backend``: base class of Python models
- ``counters``: counters on the metrics port
- ``grpc_connection``: connection to a model
- ``perf_analyzer``: load generator of the Triton project
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
