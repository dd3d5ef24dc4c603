"""Example 1: recommendations computed ahead of time.

- ``recommender``: a bundle's models on many users at once
- ``batch``: every user scored and written to Redis as one generation
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
