"""Stages of the online pipeline: named columns in, named columns out, for a batch of requests.

- ``stage``: base class
- ``user_features``: user's packed features, and items already seen
- ``user_embedding``: user tower
- ``candidates``: merged candidates of all sources
- ``sources/``: one candidate source per file
- ``filter``: seen, denied and removed items left out
- ``item_features``: features of candidates
- ``feast_features``: features of users and items through the Feast SDK
- ``ranking``: DLRM
- ``ordering``: selection and order of the items shown
- ``funnel``: number of candidates from stage to stage
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
