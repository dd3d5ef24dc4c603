from .dataset import CriteoDataset, CriteoRows

__all__ = ["CriteoDataset", "CriteoRows"]
