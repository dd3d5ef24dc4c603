"""Worker in Merlin's environment, started by ``worker_process``: one verb per process.

- ``fit``: the public notebook's training
- ``convert``: conversion of SavedModels to ONNX
- ``systems``: Merlin Systems' ensemble
- ``smoke_test``: a tiny training that checks the environment
"""
