"""Worker in Merlin's environment: ``python -m redis_recsys.trainers.merlin.worker VERB ...``.

- ``fit``: the public notebook's training
- ``convert``: SavedModels as ONNX
- ``systems``: Merlin Systems' ensemble
- ``smoke_test``: a tiny training, to see that the environment works
"""
