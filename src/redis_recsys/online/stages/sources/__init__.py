"""Candidate sources, and the merging of their items.

- ``nearest``: items nearest to the user's embedding
- ``similar``: items nearest to the one viewed last
- ``popular``: popular items
- ``merge``: each item once, with all its sources
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
