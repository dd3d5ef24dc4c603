"""Two towers and DLRM in PyTorch.

- ``train``: dataset to bundle
- ``two_tower``: retrieval
- ``ranker``: DLRM
- ``inputs``: packed rows and feature embeddings
- ``loop``: the training loop
- ``export``: ONNX files, checked against the models
"""
