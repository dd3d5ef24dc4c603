"""Two towers and DLRM in PyTorch.

- ``train``: dataset to bundle
- ``two_tower``: retrieval
- ``ranker``: DLRM
- ``inputs``: packed rows and embeddings of features
- ``loop``: the training loop
- ``export``: ONNX files, compared with the models
"""
