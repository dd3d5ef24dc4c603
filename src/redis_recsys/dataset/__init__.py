"""Datasets: interactions encoded and split, with tables of users and items.

- ``schema``: meaning of the columns
- ``raw``: reader of raw folders, with all checks
- ``encode``: raw folder to dataset
- ``encode_entities``: raw users and items to encoded ones
- ``vocabularies``: raw values of categorical columns
- ``split``: division of interactions into training, validation and test
- ``interactions``: an opened dataset: parts of encoded interactions
- ``entities``: users and items as tables of packed features
- ``user_history``: items that each user has interacted with
- ``popularity``: popular items, recently popular ones first
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
