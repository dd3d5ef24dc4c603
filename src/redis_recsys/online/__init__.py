"""Example 2: recommendations on demand.

From deployment to answer: ``deploy`` writes a generation, ``serving`` starts Triton, ``recommender_model`` runs in it,
``runner`` runs the stages of ``partition`` for the deployment that ``follower`` has loaded.

- ``deploy``: deployment of a bundle
- ``recall``: tuning of the vector set
- ``feature_store``: features as Feast objects, and in its layout in Redis
- ``serving``: Redis, Triton and the consumer of events from end to end
- ``model_repository``: Triton's model repository
- ``recommender_model``: the model in Triton
- ``triton_alias``: the public example's name and tensors in front of it
- ``runner``: one model's stages run and timed
- ``partition``: stages, and their division among models
- ``follower``: loads the next deployment in the background
- ``fallback``: popular items when Redis or a model fails
- ``loaded_deployment``: record and bundle of one deployment
- ``stage_metrics``: time per stage and counts, for Prometheus
- ``stages/``: one stage per file
- ``consumer``: applies live events
- ``recommender_client``: client that asks a Triton
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
