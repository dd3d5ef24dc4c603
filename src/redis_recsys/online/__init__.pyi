from .consumer import Consumer
from .feature_store import FeastGeneration
from .loaded_deployment import Deployment
from .recommender_client import Answer, Client, Explanation
from .runner import Runner

__all__ = ["Answer", "Client", "Consumer", "Deployment", "Explanation", "FeastGeneration", "Runner"]
