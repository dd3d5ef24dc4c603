"""Redis: every key name and every value layout is written and read here, and nowhere else.

- ``connection``: clients, configured or embedded
- ``lock``: one writer at a time
- ``generations``: written unseen, made live by one command, expired later
- ``deployments``: the generation that serves, and its contents
- ``recommendations``: precomputed lists
- ``features``: packed features
- ``history``: items each user has interacted with
- ``popular_items``: popular items
- ``vectors``: item embeddings and their changes
- ``events``: the stream of live events, and their effects
- ``replay``: live events applied to a new deployment
- ``users``: removal of a user
- ``forgotten``: users who have been removed
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
