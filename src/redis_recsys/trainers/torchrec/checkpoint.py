"""Checkpoints of a sharded model, from which any number of processes can continue.

::

    checkpoints/
      step-000002000/       named after the number of steps
        progress.json       position of the training
        dense.pt            MLPs and their optimiser
        tables/             tables and their optimiser: each process writes its shards

A checkpoint is written under a temporary name and renamed. The newest one and that of the best epoch are kept.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import checkpoint as dcp
from torchrec.distributed import DistributedModelParallel

from ...errors import TrainingError, one_line
from ...utils.files import disk_error
from .sharding import moments, tables


@dataclass
class Progress:
    """Position of a training.

    Attributes:
        epoch: current epoch, from 1.
        share: finished share of the epoch, from 0 to 1.
        steps: total number of steps.
        records: one record per finished epoch.
        best: name of the checkpoint of the best epoch.
    """

    epoch: int = 1
    share: float = 0.0
    steps: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    best: str | None = None

    @property
    def name(self) -> str:
        """Name of the checkpoint."""
        return f"step-{self.steps:09}"


class Checkpoints:
    """The checkpoints of a run, in a folder that all processes can reach."""

    def __init__(
        self,
        folder: Path,
        model: DistributedModelParallel,
        optimizer: torch.optim.Optimizer,
        group: dist.ProcessGroup,
    ) -> None:
        """
        Args:
            folder: folder of the checkpoints, created by the first save.
            model: model to save and restore.
            optimizer: optimiser of the dense parameters.
            group: group of all processes that transfers CPU tensors.
        """
        self._folder, self._model, self._optimizer, self._group = folder, model, optimizer, group

    def save(self, progress: Progress) -> None:
        """Write a checkpoint, in all processes together, and remove those no longer needed.

        Raises:
            DataError: the folder cannot be written.
        """
        first = dist.get_rank() == 0
        aside = self._folder / f".{progress.name}.writing"
        try:
            if first:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
                (aside / "progress.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")
                dense = {"model": _dense(self._model), "optimizer": self._optimizer.state_dict()}
                torch.save(dense, aside / "dense.pt")
            dist.barrier(self._group)
            with _quiet():
                dcp.save(self._sharded(), checkpoint_id=aside / "tables", process_group=self._group)
            if first:
                self._replace(aside, progress)
            dist.barrier(self._group)
        except OSError as error:
            raise disk_error(error, self._folder) from error
        except dcp.CheckpointException as error:
            reason = next(iter(error.failures.values()))[0]
            raise disk_error(reason if isinstance(reason, OSError) else OSError(str(reason)), self._folder) from error

    def _replace(self, aside: Path, progress: Progress) -> None:
        target = self._folder / progress.name
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        for other in self._folder.glob("step-*"):
            if other.name not in (progress.name, progress.best):
                shutil.rmtree(other)

    def newest(self) -> str | None:
        """Name of the newest checkpoint, the same on every process; None if there is none."""
        names = [max((path.name for path in self._folder.glob("step-*")), default=None)]
        dist.broadcast_object_list(names, 0, group=self._group)
        return names[0]

    def restore(self, name: str) -> Progress:
        """Load weights and optimisers from a checkpoint.

        Raises:
            TrainingError: the checkpoint is damaged, or of a model of another shape.
        """
        path = self._folder / name
        try:
            progress = Progress(**json.loads((path / "progress.json").read_text()))
            dense = torch.load(path / "dense.pt", weights_only=True, map_location="cpu")
            parameters = _dense(self._model)
            if {key: value.shape for key, value in parameters.items()} != {
                key: value.shape for key, value in dense["model"].items()
            }:
                raise ValueError("the MLPs have other widths")
            for key, value in parameters.items():
                value.copy_(dense["model"][key])
            self._optimizer.load_state_dict(dense["optimizer"])
            with _quiet():
                dcp.load(self._sharded(), checkpoint_id=path / "tables", process_group=self._group)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise TrainingError(f"checkpoint {path} does not fit: {_reason(error)}; train without --resume") from error
        except dcp.CheckpointException as error:
            reason = _reason(next(iter(error.failures.values()))[0])
            raise TrainingError(f"checkpoint {path} does not fit: {reason}; train without --resume") from error
        return progress

    def clear(self) -> None:
        """Remove all checkpoints."""
        if dist.get_rank() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        dist.barrier(self._group)

    def _sharded(self) -> dict[str, Any]:
        return {"tables": tables(self._model), "moments": moments(self._model)}


def _dense(model: DistributedModelParallel) -> dict[str, torch.Tensor]:
    """The dense parameters themselves, not copies."""
    return {name: value.data for name, value in model.named_parameters() if not name.startswith("tables.")}


def _reason(error: BaseException) -> str:
    return one_line(error, 200)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
