from .recommender import BundleRecommender

__all__ = ["BundleRecommender"]
