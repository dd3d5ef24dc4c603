"""DLRM (Naumov et al. 2019, arXiv:1906.00091) in the public shape of HugeCTR, with TorchRec's embedding tables.

There is one table per slot, and one key per slot and row. The interaction equals HugeCTR's layer ``Interaction``, so
that HugeCTR's inference, or any reader of its formats, gives the same probability for the same weights.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor, PoolingType

from ...config import DlrmSettings
from ...data.criteo.dataset import DENSE, SLOTS
from ...hugectr.network import DlrmShape


def network(settings: DlrmSettings, slot_sizes: tuple[int, ...]) -> DlrmShape:
    """Widths of the model that the settings describe."""
    dim = settings.embedding_dim
    return DlrmShape(len(DENSE), slot_sizes, dim, (*settings.bottom, dim), (*settings.top, 1))


class DLRM(nn.Module):
    """Click logits of rows of dense features and slots. The tables take no memory until they are sharded."""

    def __init__(self, shape: DlrmShape) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(
                name=slot,
                embedding_dim=shape.dim,
                num_embeddings=size,
                feature_names=[slot],
                pooling=PoolingType.SUM,
            )
            for slot, size in zip(SLOTS, shape.slot_sizes, strict=True)
        ]
        self.tables = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
        self.bottom = _mlp(shape.dense, shape.bottom, last_relu=True)
        self.top = _mlp(shape.interaction, shape.top, last_relu=False)
        self.shape = shape

    def forward(self, dense: Tensor, keys: KeyedJaggedTensor) -> Tensor:
        """Logits float32[n] of dense features float32[n, 13] and the keys of :func:`jagged`."""
        bottom = self.bottom(dense)
        # sharded tables return slots in the order of their placement on the processes
        embeddings = KeyedTensor.regroup([self.tables(keys)], [list(SLOTS)])[0]
        vectors = embeddings.view(len(dense), self.shape.slots, self.shape.dim)
        return self.top(interaction(bottom, vectors)).squeeze(-1)


def interaction(bottom: Tensor, embeddings: Tensor) -> Tensor:
    """HugeCTR's ``Interaction`` of float32[n, dim] and float32[n, slots, dim].

    The columns are the bottom output itself; the dot products of all pairs of distinct vectors, ``(i, j)`` with
    ``i > j`` row by row, where vector 0 is the bottom output; and one column of zeros.

    Returns:
        float32[n, dim + (slots + 1) slots / 2 + 1].
    """
    vectors = torch.cat([bottom[:, None], embeddings], dim=1)
    count = vectors.shape[1]
    row, column = torch.tril_indices(count, count, -1, device=vectors.device)
    dots = (vectors @ vectors.transpose(1, 2)).flatten(1)[:, row * count + column]
    return torch.cat([bottom, dots, bottom.new_zeros(len(bottom), 1)], dim=1)


def jagged(ids: Tensor) -> KeyedJaggedTensor:
    """Ids int64[n, 26] as TorchRec's input, one per slot and row."""
    ones = torch.ones(ids.numel(), dtype=torch.int32, device=ids.device)
    return KeyedJaggedTensor(keys=list(SLOTS), values=ids.T.reshape(-1), lengths=ones)


def linear_layers(mlp: nn.Module) -> list[nn.Linear]:
    """Fully connected layers of an MLP, in order."""
    return [layer for layer in mlp.modules() if isinstance(layer, nn.Linear)]


def _mlp(inputs: int, widths: tuple[int, ...], last_relu: bool) -> nn.Sequential:
    """Fully connected layers with ReLU between them, initialised after He et al. 2015."""
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *widths)):
        linear = nn.Linear(before, after)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))
