"""The training loop of both models: shuffled batches, early stopping, checkpoints, and timings."""

from __future__ import annotations

import copy
import errno
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...errors import TrainingError, one_line
from ...utils.files import disk_error
from ...utils.progress import console, progress
from .inputs import Batch, Interactions

AVERAGE = 0.98


class Model(Protocol):
    """Interface that the loop needs of a model."""

    def compute_loss(self, batch: Batch) -> Tensor:
        """Loss of a batch."""
        ...


class Metric(NamedTuple):
    """A validation metric to maximise.

    Attributes:
        name: display name, such as ``NDCG@10``.
        measure: function from a model to its value on the valid part.
    """

    name: str
    measure: Callable[[Any], float]


def fit(
    name: str,
    model: nn.Module,
    draw: Callable[[int], Interactions],
    validate: Metric | None,
    epochs: int,
    patience: int,
    batch_size: int,
    learning_rate: float,
    l2: float,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Train ``model`` in place and leave it with the weights of its best epoch.

    The loop validates and keeps a running average of the weights over about the last hundred steps (Polyak and
    Juditsky 1992), which varies less from epoch to epoch than the weights themselves.

    Args:
        name: label of the progress bar, and file name of the checkpoint.
        model: module with a ``compute_loss``.
        draw: function from an epoch to its interactions (the same each time, except for sampled negatives).
        validate: metric to maximise after each epoch; None trains for exactly ``epochs``.
        epochs: maximum number of epochs.
        patience: epochs without a better metric before stopping.
        batch_size: interactions per step.
        learning_rate: learning rate of Adam.
        l2: penalty on the squared weights, added to the gradient.
        seed: seed of shuffling and sampling; a resumed run draws the same as an uninterrupted one.
        device: device of the model; on cuda the forward pass runs in bfloat16.
        checkpoint: folder for the state after each epoch.
        resume: whether to continue from the checkpoint if there is one.

    Returns:
        One record per epoch: loss, metric and metric_name, rows_per_s, and the seconds in loader, forward, backward and
        validation.

    Raises:
        TrainingError: the loss is not finite, or a checkpoint does not fit the model.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=l2, fused=True)
    average = copy.deepcopy(model).eval()
    records: list[dict[str, Any]] = []
    best: dict[str, Any] = {"metric": float("-inf"), "epoch": 0, "state": copy.deepcopy(model.state_dict())}
    path = checkpoint / f"{name}.pt" if checkpoint else None
    if path and resume and path.exists():
        records, best = _restore(path, model, average, optimizer, None if validate else epochs)
    for epoch in range(len(records) + 1, epochs + 1):
        if validate and epoch - best["epoch"] > patience:
            break
        torch.manual_seed(seed + epoch)
        record: dict[str, Any] = {
            "epoch": epoch,
            **run_epoch(name, epoch, model, average, optimizer, draw, batch_size, device),
        }
        if validate:
            record |= _validate(validate, average)
            if record["metric"] > best["metric"]:
                best = {"metric": record["metric"], "epoch": epoch, "state": copy.deepcopy(average.state_dict())}
        records.append(record)
        _tell(name, record)
        if path:
            models = {"model": model.state_dict(), "average": average.state_dict()}
            state = models | {"optimizer": optimizer.state_dict(), "records": records, "best": best}
            _save(state, path)
    model.load_state_dict(best["state"] if validate else average.state_dict())
    model.eval()
    return records


def run_epoch(
    name: str,
    epoch: int,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    draw: Callable[[int], Interactions],
    batch_size: int,
    device: torch.device,
) -> dict[str, float]:
    model.train()
    clock = time.perf_counter
    started = clock()
    data = draw(epoch)
    order = data.order()
    size = min(batch_size, len(data))
    batches = order[: len(data) // size * size].split(size)  # a smaller last batch would see fewer negatives
    parameters = [parameter.data for parameter in model.parameters()]
    # Not torch's AveragedModel: its update copies all buffers, including the whole catalogue and history, and took
    # 223 µs per step of a small model; the function alone takes 40 µs (AMD EPYC, one core, MovieLens' sizes).
    averaged = [parameter.data for parameter in average.parameters()]
    steps = (epoch - 1) * len(batches)  # the first steps average over fewer, or the initial weights would linger
    loader = clock() - started
    forward = backward = 0.0
    total = torch.zeros((), device=device)
    with progress(f"{name} epoch {epoch}", total=len(order)) as advance:
        for positions in batches:
            t0 = clock()
            batch = data.batch(positions)
            t1 = clock()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                loss = model.compute_loss(batch)  # type: ignore[operator]
            t2 = clock()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            steps += 1
            get_ema_multi_avg_fn(min(AVERAGE, steps / (9 + steps)))(averaged, parameters, None)
            t3 = clock()
            loader, forward, backward = loader + t1 - t0, forward + t2 - t1, backward + t3 - t2
            total += loss.detach()
            advance(len(positions))
    mean = float(total) / len(batches)
    if mean != mean or mean == float("inf"):
        raise TrainingError(f"the loss of {name} is {mean} in epoch {epoch}: lower the learning rate")
    seconds = clock() - started
    return {
        "loss": mean,
        "rows_per_s": len(order) / seconds,
        "loader_s": loader,
        "forward_s": forward,
        "backward_s": backward,
    }


def _validate(metric: Metric, average: nn.Module) -> dict[str, Any]:
    """Validation entries of an epoch's record."""
    started = time.perf_counter()
    measured = {"metric": metric.measure(average), "metric_name": metric.name}
    return measured | {"validation_s": time.perf_counter() - started}


def _tell(name: str, record: dict[str, Any]) -> None:
    """Print an epoch's record in one line."""
    metric = f", validation {record['metric_name']} {record['metric']:.4f}" if "metric" in record else ""
    speed = f"{record['rows_per_s']:,.0f} rows/s"
    console.print(f"{name} epoch {record['epoch']}: loss {record['loss']:.4f}{metric}, {speed}", highlight=False)


def _save(state: dict[str, Any], path: Path) -> None:
    aside = path.with_suffix(".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, aside)
        aside.rename(path)
    except OSError as error:
        raise disk_error(error, path) from error
    except RuntimeError as error:  # PyTorch's error for a short write
        raise disk_error(OSError(errno.ENOSPC, str(error)), path) from error


def _restore(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, most: int | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Records and best epoch of a checkpoint, whose weights go into the models and the optimizer.

    Args:
        path: file of the checkpoint.
        model, average, optimizer: changed in place.
        most: number of epochs that it may have; None: any.

    Raises:
        TrainingError: the checkpoint does not fit.
    """
    try:
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, KeyError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = one_line(error, 200)
        raise TrainingError(f"checkpoint {path} does not fit: {reason}; train without --resume") from error
    if most is not None and len(state["records"]) > most:
        raise TrainingError(
            f"checkpoint {path} does not fit: it has {len(state['records'])} epochs of {most}; train without --resume"
        )
    return state["records"], state["best"]
