"""Example 3 in operation: configure, serve and query a DLRM whose tables are larger than one device.

- ``configure``: ``ps.json`` and ``config.pbtxt``, ours and NVIDIA's
- ``inference``: click probabilities from the parameter server and ONNX Runtime
- ``dlrm_serving``: Redis, tables and Triton from end to end
- ``dlrm_model``: the model in Triton
- ``table_metrics``: its metrics on Triton's metrics port
- ``statistics``: reads these metrics back
- ``dlrm_client``: client that asks a Triton, in HugeCTR's form
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
