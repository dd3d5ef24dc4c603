"""What runs in the Merlin environment: ``python -m redis_recsys.trainers.merlin.worker VERB ...``.

Only the standard library, Merlin's packages and ``job`` are imported here, so that it runs in NVIDIA's container as it
does in ``.venv-merlin``. Progress goes to standard output, one JSON object a line; what the libraries say goes to
standard error.
"""
