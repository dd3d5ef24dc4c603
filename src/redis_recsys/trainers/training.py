"""Trainers: each turns a dataset into a bundle. Nothing else knows which one made a bundle."""

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
    """What every trainer does, in this order.

    With ``train.final`` the first two calls choose the epochs, on the train and valid parts, unless a bundle's training
    has done so, whose records they then return. The export trains both models again, on every row, and writes these.
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
        """Give up what is still held, after whatever went wrong."""
        ...


def trainer_of(
    dataset: Dataset, settings: Settings, target: Path, export: Path | None = None, chosen: Bundle | None = None
) -> Trainer:
    """The trainer that ``settings.train.trainer`` names.

    Args:
        dataset: to learn from.
        settings: of the training.
        target: of the bundle.
        export: folder in which to keep what the framework's own tools read; only Merlin has such.
        chosen: bundle whose training has chosen the epochs, for ``settings.train.final``; None: they are chosen first.

    Raises:
        ConfigError: an option does not go with the trainer, or its environment is missing.
        DataError: ``target`` or ``export`` must not be written, see :func:`files.claimed`.
        TrainingError: the dataset has nothing to learn from.
    """
    if chosen is not None and not settings.train.final:
        raise ConfigError("--epochs-of is for --final: other trainings choose their epochs by themselves")
    with _claimed_outputs(dataset, target, export, force=False):  # said before the hour of training
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
    """Train both models and write the bundle, which nobody else can write meanwhile; see :func:`trainer_of`.

    Args:
        force: whether ``target`` and ``export`` may be another folder that this project made.

    Raises:
        DataError: something else is in the place of ``target`` or ``export``, or another run is writing it.
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
    """Keep others from writing what a training writes, and the training from replacing what it reads."""
    with ExitStack() as stack:
        keep_inputs(target, dataset.path, export)
        stack.enter_context(claimed(target, BUNDLE, force))
        if export is not None:
            keep_inputs(export, dataset.path, target)
            stack.enter_context(claimed(export, EXPORT, force))
        yield
