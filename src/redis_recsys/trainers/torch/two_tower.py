"""Two-tower retrieval: a user and an item tower whose unit vectors are close where a click is likely.

The loss is the in-batch sampled softmax and the sampling-probability correction of Yi et al., "Sampling-bias-
corrected neural modeling for large corpus item recommendations" (RecSys 2019); uniformly drawn catalogue items can be
added as negatives (Yang et al., "Mixed negative sampling", WWW 2020).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...config import TrainSettings
from ...dataset.schema import Schema, Side
from .inputs import Batch, FeatureVectors, Packed, Table, hide_ids

HIDDEN = 128
HIDDEN_ITEMS = 0.01


class Tower(nn.Module):
    """Unit embeddings float32[n, dim] of packed rows of one side."""

    def __init__(self, schema: Schema, side: Side, dim: int, hidden: float = 0.0) -> None:
        super().__init__()
        self.vectors = FeatureVectors(schema, side, dim, hidden)
        self.layers = nn.Sequential(nn.Linear(self.vectors.count * dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, dim))

    def forward(self, categorical: Tensor, numeric: Tensor) -> Tensor:
        """int32[n, C], float32[n, F] -> float32[n, dim] of length 1."""
        vectors = self.vectors(categorical, numeric)
        return functional.normalize(self.layers(vectors.flatten(-2)), dim=-1, eps=1e-6)


class TwoTower(nn.Module):
    """Both towers and their loss."""

    share: Tensor

    def __init__(self, schema: Schema, items: Table, counts: np.ndarray, settings: TrainSettings) -> None:
        """
        Args:
            schema: schema with cardinalities.
            items: features of the catalogue, for uniform negatives.
            counts: float[items + 1], frequency of each item as a positive.
            settings: training settings.
        """
        super().__init__()
        self.schema, self.catalogue = schema, items
        self.user_tower = Tower(schema, "user", settings.embedding_dim, settings.feature_dropout)
        self.item_tower = Tower(schema, "item", settings.embedding_dim)
        self.temperature, self.uniform_negatives = settings.temperature, settings.uniform_negatives
        self.register_buffer("share", torch.from_numpy((counts / max(counts.sum(), 1e-9)).astype(np.float32)), False)

    def compute_loss(self, batch: Batch) -> Tensor:
        """Mean softmax cross-entropy of each user's item among the batch's items and the uniform negatives."""
        items, numbers = batch.items, batch.item
        size, extra = len(numbers), self.uniform_negatives
        drawn = size * self.share[numbers]
        if extra:
            negatives = torch.randint(1, len(self.catalogue), (extra,), device=numbers.device)
            packed = self.catalogue(negatives)
            items = Packed(
                torch.cat([items.categorical, packed.categorical]), torch.cat([items.numeric, packed.numeric])
            )
            numbers = torch.cat([numbers, negatives])
            drawn = size * self.share[numbers] + extra / (len(self.catalogue) - 1)
        hidden = torch.rand(len(numbers), device=numbers.device) < HIDDEN_ITEMS
        items = hide_ids(items, self.schema, "item", hidden)
        users = self.user_tower(*batch.users) / self.temperature
        logits = users @ self.item_tower(*items).T - drawn.clamp(min=1e-9).log()
        same = numbers[None, :] == batch.item[:, None]
        same[:, :size].fill_diagonal_(False)
        return functional.cross_entropy(logits.masked_fill(same, -1e9), torch.arange(size, device=logits.device))

    @torch.inference_mode()
    def embed(self, side: Side, packed: Packed, block: int = 8192) -> np.ndarray:
        """Embeddings float32[n, dim] of packed rows."""
        tower = self.user_tower if side == "user" else self.item_tower
        blocks = zip(packed.categorical.split(block), packed.numeric.split(block), strict=True)
        return torch.cat([tower(*rows).float().cpu() for rows in blocks]).numpy()
