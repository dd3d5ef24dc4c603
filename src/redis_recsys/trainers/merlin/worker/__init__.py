"""Worker in Merlin's environment: ``python -m redis_recsys.trainers.merlin.worker VERB ...``.

- ``fit``: the public notebook's training
- ``convert``: conversion of SavedModels to ONNX
- ``systems``: Merlin Systems' ensemble
- ``smoke_test``: a tiny training that checks the environment
"""
