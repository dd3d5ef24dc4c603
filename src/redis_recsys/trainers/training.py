"""Trainers: each turns a dataset into a bundle. No other code knows which trainer made a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ConfigError
from ..utils.files import claimed, keep_inputs
from ..utils.output_kinds import BUNDLE, EXPORT

if TYPE_CHECKING:
    from ..bundle.bundle import Bundle
    from ..config import Settings
    from ..dataset.interactions import Dataset


class Trainer(Protocol):
    """Interface of all trainers; the methods are called in this order.

    With ``train.final`` the first two calls choose the epochs, on the train and valid parts, unless an earlier bundle's
    training has chosen them: then they return its records. The export trains both models again, on all rows, and
    writes those.
    """

    curves: dict[str, list[dict[str, Any]]]

    def fit_retrieval(self) -> list[dict[str, Any]]:
        """Train the two towers; one record per epoch with ``epoch``, ``loss`` and ``metric``."""
        ...

    def fit_ranking(self) -> list[dict[str, Any]]:
        """Train the DLRM; one record per epoch."""
        ...

    def export(self) -> Bundle:
        """Write the bundle."""
        ...

    def close(self) -> None:
        """Release all resources, also after a failure."""
        ...


def trainer_of(
    dataset: Dataset, settings: Settings, target: Path, export: Path | None = None, chosen: Bundle | None = None
) -> Trainer:
    """Return the trainer named by ``settings.train.trainer``.

    Args:
        dataset: training data.
        settings: training settings.
        target: folder of the bundle.
        export: folder for files that the framework's own tools read; Merlin only.
        chosen: bundle whose training chose the epochs, for ``settings.train.final``; None: choose them first.

    Raises:
        ConfigError: the trainer does not support an option, or its environment is missing.
        DataError: ``target`` or ``export`` must not be written, see :func:`files.claimed`.
        TrainingError: the dataset has nothing to learn from.
    """
    if chosen is not None and not settings.train.final:
        raise ConfigError("--epochs-of is for --final: other trainings choose their epochs by themselves")
    with _claimed_outputs(dataset, target, export, force=False):  # fails before the hour of training
        pass
    if settings.train.trainer == "merlin":
        from .merlin.train import MerlinTrainer

        return MerlinTrainer(dataset, settings, target, export, chosen)
    from .torch.train import Trainer as TorchTrainer

    if export is not None:
        raise ConfigError("--export is for --trainer merlin: the torch trainer writes nothing but the bundle")
    return TorchTrainer(dataset, settings.train, target, chosen)


def train(
    dataset: Dataset,
    settings: Settings,
    target: Path,
    export: Path | None = None,
    chosen: Bundle | None = None,
    force: bool = False,
) -> Bundle:
    """Train both models and write the bundle, locked against other writers; see :func:`trainer_of`.

    Args:
        force: whether ``target`` and ``export`` may be folders of another kind that this project made.

    Raises:
        DataError: ``target`` or ``export`` exists and is something else, or another run is writing it.
    """
    with ExitStack() as stack:
        stack.enter_context(_claimed_outputs(dataset, target, export, force))
        trainer = trainer_of(dataset, settings, target, export, chosen)
        stack.callback(trainer.close)
        trainer.fit_retrieval()
        trainer.fit_ranking()
        return trainer.export()


@contextmanager
def _claimed_outputs(dataset: Dataset, target: Path, export: Path | None, force: bool) -> Iterator[None]:
    """Lock the outputs of a training against other writers, and refuse outputs that would replace its inputs."""
    with ExitStack() as stack:
        keep_inputs(target, dataset.path, export)
        stack.enter_context(claimed(target, BUNDLE, force))
        if export is not None:
            keep_inputs(export, dataset.path, target)
            stack.enter_context(claimed(export, EXPORT, force))
        yield
