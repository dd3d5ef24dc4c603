"""Packed feature rows of entity numbers, and embeddings of packed rows."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...dataset.entities import Entities
from ...dataset.interactions import Rows
from ...dataset.schema import Column, Schema, Side
from ...dataset.user_history import History

Shown = Literal["exact", "earlier"]
NEXT = 5  # clicks after a row that are no negatives for it
RATES = (0.0, 0.5, 2.0, 4.0)  # how steeply the weight of each head falls from an item to the one before, at the start


class Packed(NamedTuple):
    """Packed rows of one side: categorical int32[n, C], numeric float32[n, F]."""

    categorical: Tensor
    numeric: Tensor


class Table(nn.Module):
    """Packed features of all entities of a side on the training device; row 0 is the unknown entity."""

    categorical: Tensor
    numeric: Tensor

    def __init__(self, entities: Entities) -> None:
        super().__init__()
        for name, array in (("categorical", entities.categorical), ("numeric", entities.numeric)):
            padded = np.concatenate([np.zeros((1, array.shape[1]), array.dtype), array])
            self.register_buffer(name, torch.from_numpy(padded), persistent=False)

    def forward(self, numbers: Tensor) -> Packed:
        """Features of int64[n] entity numbers."""
        return Packed(self.categorical[numbers], self.numeric[numbers])

    def known(self) -> Packed:
        """Features of all entities except the unknown one."""
        return Packed(self.categorical[1:], self.numeric[1:])

    def __len__(self) -> int:
        return len(self.categorical)


class RecentItems(nn.Module):
    """Fills the history column of packed user rows with the user's items before each interaction."""

    items: Tensor
    starts: Tensor

    def __init__(self, history: History, schema: Schema) -> None:
        super().__init__()
        column = schema.history
        self.slots = schema.slots(column) if column else None
        self.vocabulary = (column.cardinality or 0) if column else 0
        self.register_buffer("items", torch.from_numpy(history.items.astype(np.int64)), persistent=False)
        self.register_buffer("starts", torch.from_numpy(history.starts), persistent=False)

    def later(self, numbers: Tensor, ends: Tensor) -> Tensor:
        """Items int64[n, NEXT] of each user after the one at position ``ends``, 0 where there are fewer."""
        if not len(self.items):
            return ends.new_zeros(len(ends), NEXT)
        positions = ends[:, None] + 1 + torch.arange(NEXT, device=ends.device)
        inside = positions < self.starts[numbers + 1][:, None]
        return torch.where(inside, self.items[positions.clamp(max=len(self.items) - 1)], 0)

    def forward(self, users: Packed, numbers: Tensor, ends: Tensor) -> Packed:
        """``users`` with the newest items before position ``ends`` (int64[n], see ``History.ends_before``)."""
        if self.slots is None or not len(self.items):
            return users
        positions = ends[:, None] - 1 - torch.arange(self.slots.stop - self.slots.start, device=ends.device)
        recent = torch.where(positions >= self.starts[numbers][:, None], self.items[positions.clamp(min=0)], 0)
        recent = torch.where(recent < self.vocabulary, recent, 0).to(torch.int32)
        filled = users.categorical.clone()
        filled[:, self.slots] = recent
        return Packed(filled, users.numeric)


def hide_ids(packed: Packed, schema: Schema, side: Side, hidden: Tensor) -> Packed:
    """Replace ids by "unknown" where bool[n] ``hidden`` is set, so that id 0 learns to represent new entities."""
    slot = schema.slots(schema.id_column(side)).start
    categorical = packed.categorical.clone()
    categorical[:, slot] = torch.where(hidden, 0, categorical[:, slot])
    return Packed(categorical, packed.numeric)


class RecentVectors(nn.Module):
    """Embeds the history column of packed user rows: one vector per head, each a weighted mean of the items' vectors.

    A weight is the softmax of a learnt score of the item's place (0 is the newest) and one of the item. The heads begin
    with different views, from the mean of all items to hardly more than the newest. The items' vectors are those of the
    item tower, so that what is learnt of an item as a target serves in histories too.
    """

    def __init__(self, schema: Schema, items: FeatureVectors) -> None:
        super().__init__()
        assert schema.history is not None
        self.slots = schema.slots(schema.history)
        self.embedding, self.offset = items.embedding, items.offset_of(schema.id_column("item"))
        width = self.slots.stop - self.slots.start
        self.place = nn.Parameter(-torch.arange(width, dtype=torch.float32)[:, None] * torch.tensor(RATES))
        self.score = nn.Parameter(torch.zeros(self.embedding.embedding_dim, len(RATES)))
        self.count = len(RATES)

    def forward(self, categorical: Tensor) -> Tensor:
        """Vectors float32[n, heads, dim] of packed rows int32[n, C]."""
        ids = categorical[:, self.slots]
        vectors = self.embedding(ids + self.offset)
        scores = (self.place + vectors @ self.score).masked_fill(~_present(ids).unsqueeze(-1), -1e9)
        return scores.softmax(-2).transpose(-1, -2) @ vectors


class FeatureVectors(nn.Module):
    """Embeds packed rows of one side: one vector per categorical column, with multi-valued columns averaged.

    All columns share one table, addressed by offsets, so that a row costs a single lookup. A bottom MLP turns the
    numeric features into one more vector, as in DLRM (Naumov et al. 2019, arXiv:1906.00091).

    In training, the share ``hidden`` of the vectors is dropped at random, which keeps a model of few users from
    memorising them.
    """

    offsets: Tensor

    def __init__(
        self,
        schema: Schema,
        side: Side,
        dim: int,
        hidden: float = 0.0,
        std: float = 0.1,
        recent: RecentVectors | None = None,
    ) -> None:
        """
        Args:
            schema: schema with cardinalities.
            side: user or item.
            dim: length of the vectors.
            hidden: share of the vectors that is dropped in training.
            std: standard deviation of the initial embeddings.
            recent: vectors of the history column, which come last; None: it is averaged like other lists.
        """
        super().__init__()
        self.hide, self.recent = nn.Dropout1d(hidden), recent
        columns = [c for c in schema.categorical(side) if recent is None or c.role != "history"]
        self.slots = [schema.slots(column) for column in columns]
        self.columns = columns
        offsets, total = [], 0
        self.widths: list[int] = []  # of the pieces of a row: each list, and each run of single values
        self.pooled: list[bool] = []
        for column in columns:
            offsets += [total] * column.width
            total += column.cardinality or 1
            pooled = column.max_length is not None
            if pooled or not self.widths or self.pooled[-1]:
                self.widths.append(column.width)
                self.pooled.append(pooled)
            else:
                self.widths[-1] += 1
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int32), persistent=False)
        self.embedding = nn.Embedding(total, dim)
        nn.init.normal_(self.embedding.weight, std=std)
        numerics = len(schema.numeric(side))
        self.bottom = nn.Sequential(nn.Linear(numerics, 64), nn.ReLU(), nn.Linear(64, dim)) if numerics else None
        self.count = len(columns) + (self.bottom is not None) + (recent.count if recent else 0)

    def offset_of(self, column: Column) -> int:
        """Row of the table that holds the vector of id 0 of a column."""
        return sum(c.cardinality or 1 for c in self.columns[: self.columns.index(column)])

    def forward(self, categorical: Tensor, numeric: Tensor) -> Tensor:
        """Vectors float32[..., count, dim] of packed rows int32[..., C] and float32[..., F]."""
        recent = self.recent(categorical) if self.recent else None
        if self.recent:
            categorical = torch.cat([categorical[:, slots] for slots in self.slots], dim=-1)
        slots = self.embedding(categorical + self.offsets)
        vectors = list(slots.split(self.widths, dim=-2))
        start = 0
        for position, (width, pooled) in enumerate(zip(self.widths, self.pooled, strict=True)):
            if pooled:
                weight = _present(categorical[..., start : start + width]).unsqueeze(-1).to(slots.dtype)
                vectors[position] = (vectors[position] * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True)
            start += width
        if self.bottom is not None:
            vectors.append(self.bottom(numeric).unsqueeze(-2))
        if recent is not None:
            vectors.append(recent)
        joined = torch.cat(vectors, dim=-2) if len(vectors) > 1 else vectors[0]
        return self.hide(joined) if self.training else joined


def _present(ids: Tensor) -> Tensor:
    """Mask of the values of lists int32[..., width]; an empty list counts its slot 0, whose "unknown" is learnt too."""
    present = ids > 0
    first = torch.arange(ids.shape[-1], device=ids.device) == 0
    return present | (first & ~present.any(-1, keepdim=True))


class Batch(NamedTuple):
    """A training batch of n interactions; ``later`` int64[n, NEXT] are the items that each user clicked next."""

    users: Packed
    items: Packed
    user: Tensor
    item: Tensor
    target: Tensor
    later: Tensor


class Interactions:
    """Rows on the device, served as random batches with their features: gathers only, no per-row Python."""

    def __init__(
        self,
        rows: Rows,
        ends: np.ndarray,
        weights: np.ndarray | None,
        users: Table,
        items: Table,
        recent: RecentItems,
        schema: Schema,
        shown: Shown,
        cold: float,
        device: torch.device,
    ) -> None:
        """
        Args:
            rows: n interactions.
            ends: int64[n], see ``History.ends_before``.
            weights: float[n], how often a row is drawn relative to others; None draws each once per epoch.
            users: features of all users.
            items: features of all items.
            recent: module that fills the history column.
            schema: schema of the data.
            shown: history of each user: the ``exact`` one before the row, or, so that the model learns to predict far
                ahead, the one before a random ``earlier`` moment.
            cold: share of the rows that are shown as those of a new user, without id and history (for training).
            device: device of the batches.
        """
        self.schema, self.shown, self.cold = schema, shown, cold
        self.user = torch.from_numpy(rows.user).to(device)
        self.item = torch.from_numpy(rows.item).to(device)
        self.target = torch.from_numpy(rows.target).to(device)
        self.ends = torch.from_numpy(ends).to(device)
        self.cumulative = None if weights is None else torch.from_numpy(np.cumsum(weights)).to(device)
        self.users, self.items, self.recent = users, items, recent

    def __len__(self) -> int:
        return len(self.user)

    def order(self) -> Tensor:
        """Random positions int64[n] for one epoch: a shuffle, or draws by weight."""
        if self.cumulative is None:
            return torch.randperm(len(self), device=self.user.device)
        drawn = torch.rand(len(self), device=self.user.device, dtype=torch.float64) * self.cumulative[-1]
        return torch.searchsorted(self.cumulative, drawn).clamp(max=len(self) - 1)

    def batch(self, positions: Tensor) -> Batch:
        """Interactions at positions int64[n]."""
        user, item = self.user[positions].long(), self.item[positions].long()
        users, ends = self.users(user), self.ends[positions]
        later = self.recent.later(user, ends)
        start = self.recent.starts[user]
        if self.shown == "earlier":
            ends = start + (torch.rand(len(positions), device=positions.device) * (ends - start + 1)).long()
        if self.cold:
            new = torch.rand(len(positions), device=positions.device) < self.cold
            ends = torch.where(new, start, ends)
            users = hide_ids(users, self.schema, "user", new)
        return Batch(self.recent(users, user, ends), self.items(item), user, item, self.target[positions], later)
