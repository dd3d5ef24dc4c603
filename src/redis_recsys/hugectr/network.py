"""The public DLRM graph as HugeCTR's network file describes it (``network_file`` in ``ps.json``).

The graph: a bottom MLP over the dense features, one embedding layer for all slots, their interaction, a top MLP, and
a sigmoid. ``Dlrm`` says how wide each part is; everything else about the graph is fixed.

Source: Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and Recommendation Systems", and
HugeCTR's layers ``InnerProduct``, ``ReLU``, ``Interaction``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import written_aside_file

EMBEDDINGS = (
    "LocalizedSlotSparseEmbeddingHash",
    "LocalizedSlotSparseEmbeddingOneHot",
    "DistributedSlotSparseEmbeddingHash",
)
COMBINERS = {0: "sum", 1: "mean", "sum": "sum", "mean": "mean"}
ENDS = ("Sigmoid", "BinaryCrossEntropyLoss")


@dataclass(frozen=True)
class Dlrm:
    """Widths of a DLRM.

    Attributes:
        dense: number of dense features.
        slot_sizes: number of keys of each slot; 0 where a network file does not say.
        dim: of the embeddings, and the width of the bottom MLP's last layer.
        bottom, top: widths of the layers; ReLU follows each but the last of ``top``, which is 1 wide.
        combiner: what becomes of several keys of one slot: ``sum`` or ``mean``.
    """

    dense: int
    slot_sizes: tuple[int, ...]
    dim: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    combiner: str = "sum"

    def __post_init__(self) -> None:
        widths = (self.dense, self.dim, *self.bottom, *self.top)
        if not self.slot_sizes or not self.bottom or not self.top or min(widths) < 1:
            raise DataError(f"a DLRM needs slots and layers, all of them at least 1 wide: {self}")
        if self.bottom[-1] != self.dim:
            raise DataError(f"the bottom MLP ends {self.bottom[-1]} wide; it must be as wide as embeddings: {self.dim}")
        if self.top[-1] != 1:
            raise DataError(f"the top MLP ends {self.top[-1]} wide; it must end with 1, the click's log-odds")

    @property
    def slots(self) -> int:
        return len(self.slot_sizes)

    @property
    def interaction(self) -> int:
        """Width of the interaction: bottom output, dot products of all pairs, and one column that is always 0."""
        vectors = self.slots + 1
        return self.dim + vectors * (vectors - 1) // 2 + 1

    def layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every fully connected layer, in the order in which their weights are stored."""
        return [*pairwise((self.dense, *self.bottom)), *pairwise((self.interaction, *self.top))]

    def offsets(self) -> list[int]:
        """What is added to a slot's own ids to make keys of the one table: the sizes of the slots before it."""
        return [sum(self.slot_sizes[:slot]) for slot in range(self.slots)]


def write(path: Path, dlrm: Dlrm) -> None:
    """Write the network file.

    Raises:
        DataError: the file cannot be written.
    """
    sizes = list(dlrm.slot_sizes)
    layers: list[dict[str, Any]] = [
        {
            "name": "data",
            "type": "Data",
            "label": {"top": "label", "label_dim": 1},
            "dense": {"top": "dense", "dense_dim": dlrm.dense},
            "sparse": [
                {
                    "top": "data1",
                    "type": "LocalizedSlot",
                    "max_feature_num_per_sample": dlrm.slots,
                    "max_nnz": 1,
                    "slot_num": dlrm.slots,
                }
            ],
        },
        {
            "name": "sparse_embedding1",
            "type": EMBEDDINGS[0],
            "bottom": "data1",
            "top": "sparse_embedding1",
            "sparse_embedding_hparam": {
                "slot_size_array": sizes,
                "embedding_vec_size": dlrm.dim,
                "combiner": dlrm.combiner,
            },
        },
    ]
    below = "dense"
    for number, width in enumerate((*dlrm.bottom, *dlrm.top), 1):
        if number == len(dlrm.bottom) + 1:
            bottoms = [below, "sparse_embedding1"]
            layers.append({"name": "interaction1", "type": "Interaction", "bottom": bottoms, "top": "interaction1"})
            below = "interaction1"
        name = f"fc{number}"
        layers.append(
            {"name": name, "type": "InnerProduct", "bottom": below, "top": name, "fc_param": {"num_output": width}}
        )
        below = name
        if number < len(dlrm.bottom) + len(dlrm.top):
            below = f"relu{number}"
            layers.append({"name": below, "type": "ReLU", "bottom": name, "top": below})
    layers.append({"name": "sigmoid", "type": "Sigmoid", "bottom": below, "top": "sigmoid"})
    with written_aside_file(path) as aside:
        aside.write_text(json.dumps({"layers": layers}, indent=2) + "\n")


def read(path: Path) -> Dlrm:
    """Read a network file of the DLRM graph, of this project or saved by HugeCTR.

    Raises:
        DataError: the file is missing or no JSON, or its graph is another one; the layer is named.
    """
    try:
        layers = json.loads(path.read_text())["layers"]
    except FileNotFoundError:
        raise DataError(f"no network file at {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no network file: it has no list 'layers' ({error!r})") from None
    try:
        return _Graph(layers).dlrm()
    except _OtherGraphError as error:
        raise DataError(f"{path}: {error}; only the DLRM graph can be read") from None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path} is no DLRM graph: a layer lacks or has a wrong {error}") from None


class _OtherGraphError(Exception):
    """The graph is not the DLRM graph."""


class _Graph:
    """Walks from the dense features up to the sigmoid."""

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        self._above: dict[str, dict[str, Any]] = {}
        self._data = layers[0]
        if self._data["type"] != "Data":
            raise _OtherGraphError(f"the first layer is {self._data['type']!r}, not 'Data'")
        embeddings = [layer for layer in layers if layer["type"] in EMBEDDINGS]
        if len(embeddings) != 1:
            raise _OtherGraphError(f"there are {len(embeddings)} embedding layers, not one")
        self._embedding = embeddings[0]
        for layer in layers[1:]:
            bottoms = layer["bottom"] if isinstance(layer["bottom"], list) else [layer["bottom"]]
            for bottom in bottoms:
                if bottom in self._above:
                    raise _OtherGraphError(
                        f"both {self._above[bottom]['name']!r} and {layer.get('name')!r} read {bottom!r}"
                    )
                self._above[bottom] = layer

    def dlrm(self) -> Dlrm:
        hparam, sparse = self._embedding["sparse_embedding_hparam"], self._data["sparse"]
        if len(sparse) != 1:
            raise _OtherGraphError(f"the data has {len(sparse)} sparse inputs, not one")
        slots = int(sparse[0]["slot_num"])
        sizes = tuple(int(size) for size in hparam.get("slot_size_array", [0] * slots))
        if len(sizes) != slots:
            raise _OtherGraphError(f"slot_size_array names {len(sizes)} slots, the data has {slots}")
        combiner = hparam.get("combiner", "sum")
        if combiner not in COMBINERS:
            raise _OtherGraphError(f"combiner {combiner!r} is neither sum nor mean")
        bottom, end = self._mlp(self._data["dense"]["top"], last_relu=True)
        interaction = self._above.get(end)
        if interaction is None or interaction["type"] != "Interaction":
            raise _OtherGraphError(f"no Interaction reads {end!r}")
        if list(interaction["bottom"]) != [end, self._embedding["top"]]:
            raise _OtherGraphError(
                f"the Interaction reads {interaction['bottom']}, not the bottom MLP and then the embeddings"
            )
        top, end = self._mlp(interaction["top"], last_relu=False)
        if self._above.get(end, {}).get("type") not in ENDS:
            raise _OtherGraphError(f"{end!r} goes neither into a Sigmoid nor into a BinaryCrossEntropyLoss")
        dense = int(self._data["dense"]["dense_dim"])
        return Dlrm(dense, sizes, int(hparam["embedding_vec_size"]), bottom, top, COMBINERS[combiner])

    def _mlp(self, below: str, last_relu: bool) -> tuple[tuple[int, ...], str]:
        """Widths of the fully connected layers above ``below``, and the name of the last one's output."""
        widths: list[int] = []
        relu = True
        while (layer := self._above.get(below)) is not None and layer["type"] == "InnerProduct":
            if not relu:
                raise _OtherGraphError(f"no ReLU between {below!r} and {layer['name']!r}")
            widths.append(int(layer["fc_param"]["num_output"]))
            below = layer["top"]
            following = self._above.get(below, {})
            relu = following.get("type") == "ReLU"
            below = following["top"] if relu else below
        if widths and relu != last_relu:
            raise _OtherGraphError(f"the last layer below {below!r} has {'a' if relu else 'no'} ReLU")
        return tuple(widths), below
