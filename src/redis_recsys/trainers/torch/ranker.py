"""DLRM ranker (Naumov et al. 2019, arXiv:1906.00091): the click probability of a user-item pair.

Embeddings and bottom MLPs give each side a set of vectors. The top MLP sees the vectors themselves and the dot
products of every user vector with every item vector. Its output is added to the item's own log-odds, which start at
the click rate of the item in the training data, so that training begins at "recommend what is popular".

The share of each side in the first layer can be computed once per user and once per item: ``UserSide``, ``ItemSide``
and ``Head`` make up the bundle's ``ranker.onnx`` and equal ``DLRM.forward`` to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...config import TrainSettings
from ...dataset.schema import Schema
from .inputs import Batch, FeatureVectors, hide_ids

FIRST, SECOND = 64, 32
LEAK = 0.1
HIDDEN_ITEMS = 0.01
COLD_SHARE = 0.2


class DLRM(nn.Module):
    """Click logits of user-item pairs."""

    prior: Tensor

    def __init__(self, schema: Schema, log_odds: np.ndarray, settings: TrainSettings) -> None:
        """
        Args:
            schema: schema with cardinalities.
            log_odds: float[item vocabulary], log-odds of a click on each item, by id.
            settings: training settings.
        """
        super().__init__()
        dim = settings.ranking_dim
        self.schema, self.dim, self.id_slot = schema, dim, schema.slots(schema.id_column("item")).start
        self.user = FeatureVectors(schema, "user", dim, settings.feature_dropout)
        self.item = FeatureVectors(schema, "item", dim)
        self.register_buffer("prior", torch.from_numpy(log_odds).float()[:, None])
        self.correction = nn.Embedding(len(log_odds), 1)  # separate from the prior, so that L2 pulls towards the prior
        nn.init.zeros_(self.correction.weight)
        self.from_user = nn.Linear(self.user.count * dim, FIRST)
        self.from_item = nn.Linear(self.item.count * dim, FIRST, bias=False)
        self.from_dots = nn.Linear(self.item.count * self.user.count, FIRST, bias=False)
        last = nn.Linear(SECOND, 1)
        nn.init.zeros_(last.weight)
        # leaky: with a last layer of zeros, Adam's first steps can push all units of a plain ReLU below zero for good
        self.top = nn.Sequential(nn.LeakyReLU(LEAK), nn.Linear(FIRST, SECOND), nn.LeakyReLU(LEAK), last)

    def log_odds(self, categorical: Tensor) -> Tensor:
        """Log-odds float32[..., 1] of the items in packed rows int32[..., Ci]."""
        ids = categorical[..., self.id_slot]
        return functional.embedding(ids, self.prior) + self.correction(ids)

    def forward(self, batch: Batch) -> Tensor:
        """Logits float32[n] of n pairs."""
        user, item = self.user(*batch.users), self.item(*batch.items)
        dots = item @ user.transpose(-1, -2)
        first = self.from_user(user.flatten(-2)) + self.from_item(item.flatten(-2)) + self.from_dots(dots.flatten(-2))
        return (self.top(first) + self.log_odds(batch.items.categorical)).squeeze(-1)

    def compute_loss(self, batch: Batch) -> Tensor:
        """Mean binary cross-entropy with the clicks."""
        hidden = torch.rand(len(batch.item), device=batch.item.device) < HIDDEN_ITEMS
        logits = self(batch._replace(items=hide_ids(batch.items, self.schema, "item", hidden)))
        return functional.binary_cross_entropy_with_logits(logits.float(), batch.target)


class UserSide(nn.Module):
    """A user's part, computed once: a matrix that turns item vectors into first-layer values, and a bias."""

    def __init__(self, model: DLRM) -> None:
        super().__init__()
        self.model = model

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, Tensor]:
        """int32[b, Cu], float32[b, Fu] -> matrix float32[b, item_vectors * dim, FIRST], bias float32[b, 1, FIRST]."""
        model = self.model
        user = model.user(categorical, numeric)
        weight = model.from_dots.weight.view(FIRST, model.item.count, model.user.count)
        # the first layer is linear in the item vectors themselves too, so their weights are added to the same matrix
        # sum_g weight[h, f, g] <item_f, user_g>  =  sum_{f, e} item[f, e] (sum_g weight[h, f, g] user[g, e])
        by_vector = weight.permute(1, 0, 2).reshape(model.item.count * FIRST, model.user.count) @ user
        matrix = by_vector.view(-1, model.item.count, FIRST, model.dim).transpose(-1, -2)
        matrix = matrix.reshape(-1, model.item.count * model.dim, FIRST) + model.from_item.weight.T
        return matrix, model.from_user(user.flatten(-2)).unsqueeze(-2)


class ItemSide(nn.Module):
    """An item's part, the same for all users: its vectors and its log-odds."""

    def __init__(self, model: DLRM) -> None:
        super().__init__()
        self.model = model

    def forward(self, categorical: Tensor, numeric: Tensor) -> tuple[Tensor, Tensor]:
        """int32[..., Ci], float32[..., Fi] -> vectors float32[..., item_vectors * dim], log-odds float32[..., 1]."""
        return self.model.item(categorical, numeric).flatten(-2), self.model.log_odds(categorical)


class Head(nn.Module):
    """Joins both sides: one small matrix product per user, then the rest of the top MLP."""

    def __init__(self, model: DLRM) -> None:
        super().__init__()
        self.top = model.top

    def forward(self, matrix: Tensor, bias: Tensor, vectors: Tensor, log_odds: Tensor) -> Tensor:
        """Outputs of ``UserSide`` for b users and of ``ItemSide`` as float32[b, n, ...] -> probabilities [b, n]."""
        return torch.sigmoid(self.top(vectors @ matrix + bias) + log_odds).squeeze(-1)
