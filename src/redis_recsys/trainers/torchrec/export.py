"""Export of a trained model in HugeCTR's formats, as a parameter server reads them.

::

    dlrm/
      dlrm.json                 the network
      dlrm_dense.model          weights of the MLPs
      dlrm0_sparse.model/       one table for all slots: ``key`` int64, ``emb_vector`` float32 rows
      sample.npz                test rows and the trained model's output for them, to check a server with
      report.json               metrics, speed, placement of the shards

A key is an id plus the sizes of the preceding slots, so that one table holds all slots.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel

from ...data.criteo.dataset import CriteoDataset, CriteoRows
from ...hugectr import dense as dense_model
from ...hugectr import network, sparse
from ...utils import output_kinds
from ...utils.files import written_aside
from ...utils.output_kinds import DENSE, NETWORK, SPARSE
from .model import DLRM, jagged, linear_layers
from .sharding import dlrm, gathered, tables

SAMPLE = 512  # rows at most


def export(
    model: DistributedModelParallel,
    dataset: CriteoDataset,
    out: Path,
    device: torch.device,
    group: dist.ProcessGroup,
    report: dict[str, Any],
) -> None:
    """Write the folder atomically; all processes call this together, and process 0 writes.

    Args:
        model: trained model.
        dataset: its training data.
        out: folder to write.
        device: device of this process.
        group: group of all processes that transfers CPU tensors.
        report: content of ``report.json``.

    Raises:
        DataError: the folder cannot be written.
    """
    inner = dlrm(model)
    offsets = np.array(inner.shape.offsets(), np.int64)
    sample = next(dataset.batches("test", min(SAMPLE, dataset.count("test"))))
    probability = _probability(model, sample, device)
    blocks = _keyed(model, offsets, group)
    if dist.get_rank():
        for _ in blocks:
            raise AssertionError("only process 0 is given rows")
        return
    with written_aside(out, output_kinds.DLRM) as folder:
        network.write(folder / NETWORK, inner.shape)
        dense_model.write(folder / DENSE, _layers(inner))
        sparse.write(folder / SPARSE, blocks)
        np.savez(
            folder / "sample.npz",
            dense=sample.dense,
            keys=sample.ids + offsets,
            label=sample.label,
            probability=probability,
        )
        slots = {"slot_sizes": list(dataset.slot_sizes), "embedding_dim": inner.shape.dim}
        (folder / "report.json").write_text(json.dumps(report | slots, indent=2) + "\n")


@torch.no_grad()
def _probability(model: DistributedModelParallel, rows: CriteoRows, device: torch.device) -> np.ndarray:
    """Click probabilities float32[n]; every process passes the same rows."""
    model.eval()
    logits = model(torch.from_numpy(rows.dense).to(device), jagged(torch.from_numpy(rows.ids).to(device)))
    return torch.sigmoid(logits).cpu().numpy()


def _layers(model: DLRM) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernel float32[inputs, outputs] and bias float32[outputs] of each layer, bottom MLP first."""
    layers = [*linear_layers(model.bottom), *linear_layers(model.top)]
    return [(layer.weight.detach().cpu().numpy().T, layer.bias.detach().cpu().numpy()) for layer in layers]


def _keyed(
    model: DistributedModelParallel, offsets: np.ndarray, group: dist.ProcessGroup
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys int64[n] and rows float32[n, dim] of all tables, in blocks."""
    for offset, table in zip(offsets, tables(model).values(), strict=True):
        key = int(offset)
        for block in gathered(table, group):
            yield np.arange(key, key + len(block)), block.numpy()
            key += len(block)
