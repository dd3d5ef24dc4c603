"""How the tables lie on the processes: large ones split by rows, small ones whole, each on one process.

TorchRec's planner balances the small ones. The optimiser of the tables, row-wise Adagrad, runs inside the embedding
kernels during the backward pass, so that no gradient of a table is ever held.
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

BLOCK = 65_536  # rows of a table that are made or sent at a time
RESERVED = 0.2  # share of a device's memory that the planner leaves for all but tables


class Sharder(EmbeddingBagCollectionSharder):
    """Also by rows on a CPU, where gloo can reduce-scatter by now."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """What the planner may choose from."""
        return [ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value]


def shard(model: DLRM, settings: DlrmSettings, device: torch.device) -> DistributedModelParallel:
    """Distribute the model over all processes and fill its tables, the same however many processes there are."""
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
    """The model itself, its dense parameters being the same on every process."""
    inner = model.module
    assert isinstance(inner, DLRM)
    return inner


def tables(model: DistributedModelParallel) -> dict[str, ShardedTensor]:
    """Slot -> its table, float32[size, dim], of which each process holds some rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        state = model.state_dict()
    return {slot: state[f"tables.embedding_bags.{slot}.weight"] for slot in SLOTS}


def moments(model: DistributedModelParallel) -> dict[str, ShardedTensor]:
    """Slot -> Adagrad's sums of squared gradients, float32[size], of tables that have rows on this process."""
    state = model.fused_optimizer.state_dict()["state"]
    names = {slot: f"tables.embedding_bags.{slot}.weight" for slot in SLOTS}
    return {slot: state[name][f"{slot}.momentum1"] for slot, name in names.items() if name in state}


def placement(model: DistributedModelParallel) -> dict[str, list[list[int]]]:
    """Slot -> ``[process, first row, rows]`` of each of its shards."""
    return {slot: [list(shard) for shard in _shards(table)] for slot, table in tables(model).items()}


def gathered(table: ShardedTensor, group: dist.ProcessGroup) -> Iterator[torch.Tensor]:
    """The rows of a table in order, in blocks float32[n, dim] on the CPU of process 0; others yield nothing but send.

    All processes must exhaust it.

    Args:
        table: of :func:`tables`.
        group: of all processes, that moves tensors of the CPU.
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
    """(process, first row, rows) of each shard, by rows."""
    found = []
    for shard in table.metadata().shards_metadata:
        owner = shard.placement.rank() if shard.placement else None
        assert owner is not None
        found.append((owner, shard.shard_offsets[0], shard.shard_sizes[0]))
    return sorted(found, key=lambda shard: shard[1])


def _fill_rows(table: ShardedTensor, seed: list[int]) -> None:
    """Uniform values within 1 / sqrt(rows), as the reference initialises; row i gets the same wherever it lies."""
    rows, dim = table.size()
    bound = rows**-0.5
    for shard in table.local_shards():
        first, count = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
        for block in range(first // BLOCK, -(-(first + count) // BLOCK)):
            random = np.random.Generator(np.random.SFC64([*seed, block]))
            values = random.uniform(-bound, bound, (min(BLOCK, rows - block * BLOCK), dim)).astype(np.float32)
            low, high = max(first, block * BLOCK), min(first + count, block * BLOCK + len(values))
            part = torch.from_numpy(values[low - block * BLOCK : high - block * BLOCK])
            shard.tensor.detach()[low - first : high - first].copy_(part)
