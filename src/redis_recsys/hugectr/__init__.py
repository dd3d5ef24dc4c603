"""HugeCTR's artefacts of a trained DLRM, read and written.

HugeCTR up to 25.03 saved them and its inference server loaded them; formats from its public sources (v23 and v24).

- ``network``: the network file ``dlrm.json``
- ``dense``: the dense weights
- ``sparse``: folders of embedding tables
- ``graph``: the dense part as an ONNX graph
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
