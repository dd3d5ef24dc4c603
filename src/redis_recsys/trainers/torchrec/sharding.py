"""Placement of the tables on the processes: large tables are split by rows, small ones lie whole on one process.

TorchRec's planner balances the small ones. The optimiser of the tables, row-wise Adagrad, runs inside the embedding
kernels during the backward pass, so that the gradient of a table is never stored.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingType

from ...config import DlrmSettings
from ...data.criteo.dataset import SLOTS
from .model import DLRM

BLOCK = 65_536  # rows of a table initialised or sent at a time
RESERVED = 0.2  # share of a device's memory that the planner reserves for everything but tables


class Sharder(EmbeddingBagCollectionSharder):
    """Sharder that also splits by rows on a CPU, where gloo now supports reduce-scatter."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Sharding types that the planner may choose from."""
        return [ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value]


def shard(model: DLRM, settings: DlrmSettings, device: torch.device) -> DistributedModelParallel:
    """Distribute the model over all processes and fill its tables, independently of the number of processes."""
    constraints = {}
    for slot, size in zip(SLOTS, model.shape.slot_sizes, strict=True):
        split = ShardingType.ROW_WISE if size >= settings.row_wise_from else ShardingType.TABLE_WISE
        constraints[slot] = ParameterConstraints(
            sharding_types=[split.value], compute_kernels=[EmbeddingComputeKernel.FUSED.value]
        )
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    topology = Topology(dist.get_world_size(), device.type, hbm_cap=memory)
    sharder = Sharder(
        fused_params={
            "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            "learning_rate": settings.embedding_lr,
            "eps": settings.embedding_eps,
        }
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=settings.batch,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
    )
    plan = planner.collective_plan(model, [sharder], dist.group.WORLD)
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=[sharder])
    for number, table in enumerate(tables(sharded).values()):
        _fill_rows(table, [settings.seed, number])
    return sharded


def dlrm(model: DistributedModelParallel) -> DLRM:
    """The wrapped model; its dense parameters are the same on every process."""
    inner = model.module
    assert isinstance(inner, DLRM)
    return inner


def tables(model: DistributedModelParallel) -> dict[str, ShardedTensor]:
    """Tables float32[size, dim] by slot; each process holds some of their rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        state = model.state_dict()
    return {slot: state[f"tables.embedding_bags.{slot}.weight"] for slot in SLOTS}


def moments(model: DistributedModelParallel) -> dict[str, ShardedTensor]:
    """Adagrad's sums of squared gradients float32[size] by slot, of tables that have rows on this process."""
    state = model.fused_optimizer.state_dict()["state"]
    names = {slot: f"tables.embedding_bags.{slot}.weight" for slot in SLOTS}
    return {slot: state[name][f"{slot}.momentum1"] for slot, name in names.items() if name in state}


def placement(model: DistributedModelParallel) -> dict[str, list[list[int]]]:
    """Shards by slot, each as ``[process, first row, rows]``."""
    return {slot: [list(shard) for shard in _shards(table)] for slot, table in tables(model).items()}


def gathered(table: ShardedTensor, group: dist.ProcessGroup) -> Iterator[torch.Tensor]:
    """Yield the rows of a table in order, as CPU blocks float32[n, dim] on process 0; the others only send.

    All processes must exhaust the iterator.

    Args:
        table: one of :func:`tables`.
        group: group of all processes that transfers CPU tensors.
    """
    local = table.local_shards()[0].tensor if table.local_shards() else None
    rank = dist.get_rank()
    for owner, _, rows in _shards(table):
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            if rank == owner:
                assert local is not None
                block = local[start : start + count].detach().cpu().contiguous()
                if rank:
                    dist.send(block, 0, group=group)
            elif rank == 0:
                block = torch.empty(count, table.size()[1])
                dist.recv(block, owner, group=group)
            if rank == 0:
                yield block


def _shards(table: ShardedTensor) -> list[tuple[int, int, int]]:
    """Return (process, first row, rows) of each shard, ordered by first row."""
    shards = []
    for shard in table.metadata().shards_metadata:
        owner = shard.placement.rank() if shard.placement else None
        assert owner is not None
        shards.append((owner, shard.shard_offsets[0], shard.shard_sizes[0]))
    return sorted(shards, key=lambda shard: shard[1])


def _fill_rows(table: ShardedTensor, seed: list[int]) -> None:
    """Fill with uniform values within 1 / sqrt(rows), like the reference; row i does not depend on its process."""
    rows, dim = table.size()
    bound = rows**-0.5
    for shard in table.local_shards():
        first, count = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
        for block in range(first // BLOCK, -(-(first + count) // BLOCK)):
            random = np.random.Generator(np.random.SFC64([*seed, block]))
            values = random.uniform(-bound, bound, (min(BLOCK, rows - block * BLOCK), dim)).astype(np.float32)
            low, high = max(first, block * BLOCK), min(first + count, block * BLOCK + len(values))
            local_rows = torch.from_numpy(values[low - block * BLOCK : high - block * BLOCK])
            shard.tensor.detach()[low - first : high - first].copy_(local_rows)
