"""Redis: every key name and every value layout is written and read here, and nowhere else.

- ``connection``: clients, configured or embedded
- ``lock``: one writer at a time
- ``generations``: written unseen, switched to by one command, expired later
- ``deployments``: which generation serves, and what it is made of
- ``recommendations``: lists computed ahead of time
- ``features``: packed features
- ``history``: what each user has interacted with
- ``popular_items``: popular items
- ``vectors``: item embeddings, and changes of them
- ``events``: the stream of live events, and what one changes
- ``replay``: live events once more, for a new deployment
- ``users``: removal of a user
- ``forgotten``: who has been removed
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
