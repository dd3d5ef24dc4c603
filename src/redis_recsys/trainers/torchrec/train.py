"""Work of every training process: epochs over its share of the rows, validation, checkpoints, and the export.

Rows are split over the processes (data parallel), and so are tables (model parallel): each step sends ids to the
processes that hold their rows, embeddings back to those of the impressions, and gradients the same way. The MLPs are
replicated, with averaged gradients. Process 0 makes decisions, such as to stop, and broadcasts them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import islice

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.optimizers import in_backward_optimizer_filter

from ...data.criteo.dataset import CriteoDataset, CriteoRows, Part
from ...errors import TrainingError
from ...evaluation.metrics import auc, log_loss
from .checkpoint import Checkpoints, Progress
from .export import export
from .job import Job
from .model import DLRM, jagged, network
from .sharding import placement, shard

REPORT_SECONDS = 0.2
WAIT = timedelta(minutes=30)  # time to wait for the other processes, which may be writing a checkpoint

Emit = Callable[..., None]


class Trainer:
    """One of the processes of a training; ``emit`` is called on process 0 alone, with an event and its fields."""

    def __init__(self, job: Job, device: torch.device, emit: Emit) -> None:
        """
        Raises:
            DataError: the dataset is damaged.
        """
        self.job, self.settings, self.device, self.emit = job, job.settings, device, emit
        self.rank, self.processes = dist.get_rank(), dist.get_world_size()
        self.dataset = CriteoDataset(job.dataset)
        self.group = dist.new_group(backend="gloo", timeout=WAIT)
        torch.manual_seed(self.settings.seed)
        self.model = shard(DLRM(network(self.settings, self.dataset.slot_sizes)), self.settings, device)
        dense = [value for _, value in in_backward_optimizer_filter(self.model.named_parameters())]
        self.optimizer = torch.optim.Adam(dense, lr=self.settings.learning_rate)
        self.checkpoints = Checkpoints(job.checkpoints, self.model, self.optimizer, self.group)

    def run(self) -> None:
        """Train, evaluate on the test part, and export.

        Raises:
            TrainingError: the loss is not finite, or a checkpoint does not fit.
            DataError: data cannot be read, or an output cannot be written.
        """
        progress = self._start()
        while progress.epoch <= self.settings.epochs and self._goes_on(progress):
            self._epoch(progress)
        assert progress.best is not None
        self.checkpoints.restore(progress.best)
        report = {
            "test": self.evaluate("test"),
            "records": progress.records,
            "samples_per_s": float(np.median([record["rows_per_s"] for record in progress.records])),
            "processes": self.processes,
            "device": str(self.device.type),
            "sharding": placement(self.model),
        }
        export(self.model, self.dataset, self.job.out, self.device, self.group, report)
        self.checkpoints.clear()

    def _start(self) -> Progress:
        if not self.settings.resume:
            self.checkpoints.clear()
            return Progress()
        newest = self.checkpoints.newest()
        return self.checkpoints.restore(newest) if newest else Progress()

    def _goes_on(self, progress: Progress) -> bool:
        best = max(progress.records, key=lambda record: record["auc"], default={"epoch": 0})
        return len(progress.records) - best["epoch"] < self.settings.patience or not progress.records

    def _epoch(self, progress: Progress) -> None:
        record = {"epoch": progress.epoch, **self._train(progress), **self.evaluate("valid")}
        best = max((earlier["auc"] for earlier in progress.records), default=-math.inf)
        progress.records.append(record)
        progress.epoch, progress.share = progress.epoch + 1, 0.0
        if record["auc"] > best:
            progress.best = progress.name
        self.checkpoints.save(progress)
        if self.rank == 0:
            self.emit("epoch", **record)

    def _train(self, progress: Progress) -> dict[str, float]:
        """Train the rest of an epoch; return the mean loss and the rows per second over all processes."""
        self.model.train()
        steps = self.dataset.steps("train", self.settings.batch, self.processes)
        finished = round(progress.share * steps)
        batches = self.dataset.batches(
            "train", self.settings.batch, self.rank, self.processes, (self.settings.seed, progress.epoch)
        )
        total, done, rows = torch.zeros(2, dtype=torch.float64), 0, self.dataset.count("train")
        started = reported = time.perf_counter()
        for step, batch in enumerate(islice(batches, finished, None), finished + 1):
            loss = functional.binary_cross_entropy_with_logits(
                self.logits(batch), torch.from_numpy(batch.label).to(self.device)
            )
            self._decay(progress.steps / (steps * self.settings.epochs))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += torch.tensor([float(loss.detach()), 1.0], dtype=torch.float64)
            done += len(batch) * self.processes
            progress.steps += 1
            if self.rank == 0 and (time.perf_counter() - reported > REPORT_SECONDS or step == steps):
                reported = time.perf_counter()
                self.emit("step", epoch=progress.epoch, done=min(round(rows * step / steps), rows), total=rows)
            if progress.steps % self.settings.checkpoint == 0 and step < steps:
                progress.share = step / steps
                self.checkpoints.save(progress)
        seconds = time.perf_counter() - started
        dist.all_reduce(total, group=self.group)
        loss_sum, count = total.tolist()
        if not math.isfinite(loss_sum):
            raise TrainingError(f"the loss is {loss_sum} in epoch {progress.epoch}: lower the learning rates")
        return {"loss": loss_sum / max(count, 1), "rows_per_s": done / seconds}

    def _decay(self, share: float) -> None:
        """Lower the learning rates linearly, to 0 at the end of the last epoch; ``share`` is the share done."""
        left = max(0.0, 1.0 - share)
        for rate, optimizer in (
            (self.settings.learning_rate, self.optimizer),
            (self.settings.embedding_lr, self.model.fused_optimizer),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * left
        self.model.fused_optimizer.step()  # gives the kernels the rate; they update the tables in the backward pass

    def logits(self, rows: CriteoRows) -> torch.Tensor:
        """Click logits float32[n]; all processes must call this together, each with its own rows."""
        return predict(self.model, rows, self.device)

    @torch.no_grad()
    def evaluate(self, part: Part) -> dict[str, float]:
        """AUC and log loss over all rows of a part, also the oracle's if it is known; the same on every process."""
        self.model.eval()
        steps = self.dataset.steps(part, self.settings.batch, self.processes)
        width = math.ceil(self.dataset.count(part) / self.processes / steps)  # of the largest batch anywhere
        results = torch.full((steps, 3, width), torch.nan)
        batches = self.dataset.batches(part, self.settings.batch, self.rank, self.processes)
        for columns, batch in zip(results, batches, strict=True):
            padded = batch[np.arange(width).clip(max=len(batch) - 1)]
            columns[0, : len(batch)] = self.logits(padded).cpu()[: len(batch)]
            columns[1, : len(batch)] = torch.from_numpy(batch.label)
            if batch.click_probability is not None:
                columns[2, : len(batch)] = torch.from_numpy(batch.click_probability)
        gathered = [torch.empty_like(results) for _ in range(self.processes)] if self.rank == 0 else None
        dist.gather(results, gathered, group=self.group)
        metrics: list[dict[str, float] | None] = [None]
        if gathered is not None:
            values = torch.cat([process.transpose(0, 1).flatten(1) for process in gathered], dim=1).numpy()
            metrics = [_metrics(*values[:, ~np.isnan(values[1])])]
        dist.broadcast_object_list(metrics, 0, group=self.group)
        assert metrics[0] is not None
        return metrics[0]


def predict(model: DistributedModelParallel, rows: CriteoRows, device: torch.device) -> torch.Tensor:
    """Click logits float32[n]."""
    dense, ids = torch.from_numpy(rows.dense).to(device), torch.from_numpy(rows.ids).to(device)
    logits: torch.Tensor = model(dense, jagged(ids))
    return logits


def _metrics(logits: np.ndarray, label: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    metrics = {"auc": auc(logits, label), "log_loss": log_loss(probability, label)}
    if not np.isnan(truth).any():
        metrics |= {"oracle_auc": auc(truth, label), "oracle_log_loss": log_loss(truth, label)}
    return metrics
