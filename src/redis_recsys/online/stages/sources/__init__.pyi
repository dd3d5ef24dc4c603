from .merge import sources_of
from .nearest import Nearest
from .popular import PopularItems
from .similar import Similar

__all__ = ["Nearest", "PopularItems", "Similar", "sources_of"]
