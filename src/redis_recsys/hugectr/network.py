"""The public DLRM graph as HugeCTR's network file describes it (``network_file`` in ``ps.json``).

The graph: a bottom MLP over the dense features, one embedding layer for all slots, their interaction, a top MLP, and
a sigmoid. ``DlrmShape`` says how wide each part is; everything else about the graph is fixed.

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
from ..utils.files import written_aside_file

EMBEDDINGS = (
    "LocalizedSlotSparseEmbeddingHash",
    "LocalizedSlotSparseEmbeddingOneHot",
    "DistributedSlotSparseEmbeddingHash",
)
COMBINERS = {0: "sum", 1: "mean", "sum": "sum", "mean": "mean"}
ENDS = ("Sigmoid", "BinaryCrossEntropyLoss")


@dataclass(frozen=True)
class DlrmShape:
    """Widths of a DLRM.

    Attributes:
        dense: number of dense features.
        slot_sizes: number of keys of each slot; 0 where a network file does not say.
        dim: width of the embeddings and of the bottom MLP's last layer.
        bottom, top: widths of the layers; ReLU follows each but the last of ``top``, which is 1 wide.
        combiner: reduction of several keys of one slot: ``sum`` or ``mean``.
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
        """(inputs, outputs) of every fully connected layer, in the order of their stored weights."""
        return [*pairwise((self.dense, *self.bottom)), *pairwise((self.interaction, *self.top))]

    def offsets(self) -> list[int]:
        """Offsets that turn each slot's own ids into keys of the one table: the sizes of the slots before it."""
        return [sum(self.slot_sizes[:slot]) for slot in range(self.slots)]


def write(path: Path, dlrm: DlrmShape) -> None:
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


def read(path: Path) -> DlrmShape:
    """Read a network file of the DLRM graph, of this project or saved by HugeCTR.

    Raises:
        DataError: the file is missing or not JSON, or its graph is another one; the message names the layer by place
            and type.
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
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{path} is no network file: its layers are not a list of objects ({error!r})") from None


class _OtherGraphError(Exception):
    """The graph is not the DLRM graph."""


class _Graph:
    """Layers of a network file, walked from the dense features up to the sigmoid.

    Errors name layers by their place in the file and their type: HugeCTR writes no names.
    """

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        self._layers = layers
        self._above: dict[str, dict[str, Any]] = {}
        self._data = layers[0]
        if self._get(self._data, "type") != "Data":
            raise _OtherGraphError(f"{self._said(self._data)} is first, not 'Data'")
        embeddings = [layer for layer in layers if self._get(layer, "type") in EMBEDDINGS]
        if len(embeddings) != 1:
            raise _OtherGraphError(f"there are {len(embeddings)} embedding layers, not one")
        self._embedding = embeddings[0]
        for layer in layers[1:]:
            bottoms = self._get(layer, "bottom")
            for bottom in bottoms if isinstance(bottoms, list) else [bottoms]:
                if bottom in self._above:
                    both = f"{self._said(self._above[bottom])} and {self._said(layer)}"
                    raise _OtherGraphError(f"both {both} read {bottom!r}")
                self._above[bottom] = layer

    def dlrm(self) -> DlrmShape:
        """Shape of the DLRM.

        Raises:
            _OtherGraphError: a layer is not in its place in the DLRM graph, or lacks something.
        """
        sparse = self._get(self._data, "sparse")
        if len(sparse) != 1:
            raise _OtherGraphError(f"{self._said(self._data)} has {len(sparse)} sparse inputs, not one")
        slots = self._number(self._data, "sparse", 0, "slot_num")
        hparam = self._get(self._embedding, "sparse_embedding_hparam")
        sizes = tuple(int(size) for size in hparam.get("slot_size_array", [0] * slots))
        if len(sizes) != slots:
            raise _OtherGraphError(
                f"{self._said(self._embedding)} has a slot_size_array of {len(sizes)} slots, the data has {slots}"
            )
        combiner = hparam.get("combiner", "sum")
        if combiner not in COMBINERS:
            raise _OtherGraphError(f"{self._said(self._embedding)} has combiner {combiner!r}, neither sum nor mean")
        bottom, end = self._mlp(self._get(self._data, "dense", "top"), last_relu=True)
        interaction = self._reader(end, ("Interaction",))
        inputs = list(self._get(interaction, "bottom"))
        if inputs != [end, self._get(self._embedding, "top")]:
            raise _OtherGraphError(
                f"{self._said(interaction)} reads {inputs}, not the bottom MLP and then the embeddings"
            )
        top, end = self._mlp(self._get(interaction, "top"), last_relu=False)
        self._reader(end, ENDS)
        dense = self._number(self._data, "dense", "dense_dim")
        dim = self._number(self._embedding, "sparse_embedding_hparam", "embedding_vec_size")
        return DlrmShape(dense, sizes, dim, bottom, top, COMBINERS[combiner])

    def _mlp(self, below: str, last_relu: bool) -> tuple[tuple[int, ...], str]:
        """Widths of the fully connected layers above ``below``, and the name of the last one's output."""
        widths: list[int] = []
        relu, last = True, self._data
        while (layer := self._above.get(below)) is not None and layer["type"] == "InnerProduct":
            if not relu:
                raise _OtherGraphError(f"no ReLU between {self._said(last)} and {self._said(layer)}")
            widths.append(self._number(layer, "fc_param", "num_output"))
            last, below = layer, self._get(layer, "top")
            following = self._above.get(below, {})
            relu = following.get("type") == "ReLU"
            below = self._get(following, "top") if relu else below
        if widths and relu != last_relu:
            above = self._above.get(below)
            followed = f"{self._said(above)} follows" if above is not None and not relu else "of this MLP the last one"
            raise _OtherGraphError(f"{self._said(last)} has {'a' if relu else 'no'} ReLU: {followed}")
        return tuple(widths), below

    def _reader(self, tensor: str, types: tuple[str, ...]) -> dict[str, Any]:
        """The layer that reads a tensor, which must have one of some types."""
        layer = self._above.get(tensor)
        if layer is None or layer["type"] not in types:
            reader = f"{self._said(layer)} reads" if layer is not None else "nothing reads"
            raise _OtherGraphError(f"{reader} {tensor!r}, which goes into {' or '.join(types)} in a DLRM")
        return layer

    def _get(self, layer: dict[str, Any], *path: str | int) -> Any:
        """A part of a layer."""
        try:
            value: Any = layer
            for step in path:
                value = value[step]
            return value
        except (KeyError, IndexError, TypeError):
            raise _OtherGraphError(f"{self._said(layer)} lacks {'.'.join(map(str, path))}") from None

    def _number(self, layer: dict[str, Any], *path: str | int) -> int:
        """A whole number in a layer."""
        value = self._get(layer, *path)
        if not isinstance(value, int):
            raise _OtherGraphError(f"{self._said(layer)} has {'.'.join(map(str, path))} {value!r}, no whole number")
        return value

    def _said(self, layer: dict[str, Any]) -> str:
        """A layer's place, from 1, its type, and its name if it has one."""
        place = next(place for place, candidate in enumerate(self._layers, 1) if candidate is layer)
        name = f" {layer['name']!r}" if "name" in layer else ""
        return f"layer {place} of {len(self._layers)} ({layer.get('type', 'of no type')}{name})"
