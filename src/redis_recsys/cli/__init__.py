"""The command line ``recsys``: one verb per step, one file per group of verbs.

Heavy libraries are imported inside the verb that needs them, so that ``recsys --help`` and ``recsys get`` are quick.

- ``main``: entry point; errors, signals, the order of the verbs
- ``app``: the Typer application, and what verbs share
- ``options``: options out of the settings models
- ``tables``: tables that verbs print
- ``check``: machine and Redis looked at
- ``setup``: other Python environments made
- ``data``: data fetched or made, encoded, moved to and from S3
- ``offline``: train, evaluate, batch, get
- ``online``: deploy, serve, recommend, events
- ``user``: what is done with one user
- ``merlin``: import from and export to NVIDIA Merlin
- ``dlrm``: DLRM of example 3 configured, served, asked
- ``dlrm_train``: its data and training
- ``demo``: the main job from end to end
- ``perf``: load generator of Triton's makers
"""
