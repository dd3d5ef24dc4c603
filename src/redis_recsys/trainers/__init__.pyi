from .training import Trainer, train, trainer_of

__all__ = ["Trainer", "train", "trainer_of"]
