"""Evaluation: models and baselines on the test part, over the full catalogue.

- ``evaluate``: evaluation of recommenders and rankers
- ``metrics``: metrics of lists and of click probabilities, in NumPy
- ``comparison``: means over users and paired differences, with bootstrap intervals
- ``baselines``: popularities, item neighbours, random walks, a linear autoencoder, matrix factorisations
- ``plots``: pictures of data, training, quality and speed
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
