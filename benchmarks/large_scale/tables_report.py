"""Report of ``benchmarks.large_scale``, as Markdown and as plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.report import markdown, picture
from redis_recsys.evaluation.plots import COLORS, INK, styled

SPEED_PLOT, SERVING_PLOT = Path("assets/tables-speed.png"), Path("assets/dlrm-serving.png")
BARE = "bare HMGET"
LABELS = {
    "cache": "cache, hits only",
    "redis": "Redis only",
    "rocksdb": "RocksDB only",
    "all": "all three, as configured by default",
}
SHORT = {"cache": "cache", "redis": "Redis", "rocksdb": "RocksDB", "all": "all three"}
KINDS = {"power law": "power-law keys", "uniform": "uniform keys"}
SERVERS = {"tiers": "cache, Redis, RocksDB", "memory": "all in memory"}
DEVICE_BATCHES = (1664, 26_624, 1_048_576)  # shown, out of all measured
PUBLISHED = (
    "For orientation, from another machine and another code: 1,542 requests/s with one sample and 2,285 with 64, one "
    "at a time, are published for one GPU."
)


def tables(results: dict[str, Any], others: dict[str, Any]) -> str:
    """Render the results as Markdown.

    Args:
        results: results of ``benchmarks.large_scale``.
        others: measurements from elsewhere, by name: ``device_cache``, ``training``, ``training_on_gpus``.
    """
    here, scale = results["machine"], results["scale"]
    return "\n".join(
        [
            f"Measured by `make bench-large` on {here['processor']}, {here['cores']} cores for everything together, "
            f"{here['memory_gib']} GiB, no GPU.\n",
            *_tiers(results["tiers"], scale, results["loaded"]),
            "",
            f"{picture('Rows per second', SPEED_PLOT)}\n",
            *_large(results["large"], scale),
            "",
            *_serving(results["serving"]),
            "",
            picture("Requests per second", SERVING_PLOT),
            *(["", *_device_cache(others["device_cache"])] if "device_cache" in others else []),
            *(["", *_training(others["training"])] if "training" in others else []),
            *(["", *_training_on_gpus(others["training_on_gpus"])] if "training_on_gpus" in others else []),
        ]
    )


def _tiers(found: dict[str, Any], scale: dict[str, Any], loaded: dict[str, Any]) -> list[str]:
    rows = []
    for tier, label in LABELS.items():
        for batch in map(str, scale["batches"]):
            cells = [found[tier][kind][batch] for kind in KINDS]
            rows.append([label, f"{int(batch):,}", *(figure for cell in cells for figure in _rates(cell["ours"]))])
    for batch in map(str, scale["batches"]):
        cells = [found["redis"][kind][batch] for kind in KINDS]
        rows.append([BARE, f"{int(batch):,}", *(figure for cell in cells for figure in _rates(cell["bare"]))])
    shares, hits = (
        {
            kind: ", ".join(f"{found[tier][kind][batch][what]:.0%}" for batch in map(str, scale["batches"]))
            for kind in KINDS
        }
        for tier, what in (("redis", "share"), ("all", "hit_rate"))
    )
    batches = ", ".join(f"{batch:,}" for batch in scale["batches"])
    return [
        f"**Lookups** of 26 keys per sample in one table of {scale['rows']:,} rows × 128 float32, by one thread; Redis "
        "is a cluster of three nodes without persistence, and RocksDB's files are in the system's memory. Rates count "
        "what is done in the background, latencies do not.\n",
        *markdown(
            ["rows from", "samples"] + [f"{name}, {kind}" for kind in KINDS for name in ("rows/s", "p50 ms", "p99 ms")],
            rows,
        ),
        "",
        f"The Redis tier has {shares['power law']} of the rate of bare `HMGET` for power-law keys and "
        f"{shares['uniform']} for uniform ones, with {batches} samples; both asked in turns for the same distinct "
        f"keys. The cache of all three tiers holds 20% of the rows and has {hits['power law']} of the keys, and "
        f"{hits['uniform']}. Loading: {loaded['redis_rows_per_s']:,.0f} rows/s into Redis, "
        f"{loaded['rocksdb_rows_per_s']:,.0f} rows/s into RocksDB.",
    ]


def _rates(rates: dict[str, float]) -> list[str]:
    return [f"{rates['rows_per_s']:,.0f}", f"{rates['p50_ms']:.2f}", f"{rates['p99_ms']:.2f}"]


def _large(found: dict[str, Any], scale: dict[str, Any]) -> list[str]:
    loading, serving = found["loading"], found["serving"]
    states = {"cold": "on the disk alone at the start", "warm": "in the system's memory as far as it has room"}
    rows = [
        [f"{name}, {KINDS[kind]}", *_rates(serving[state][kind]), f"{serving[state][kind]['hit_rate']:.0%}"]
        for state, name in states.items()
        for kind in KINDS
    ]
    return [
        f"**A table larger than the process**: {scale['large_rows']:,} rows × 128, {found['gigabytes']:.1f} GB in "
        f"RocksDB, without Redis; a cache of {scale['large_cache']:,} rows. Loaded at "
        f"{loading['rocksdb_rows_per_s']:,.0f} rows/s, files merged. Peak memory: {loading['peak_mb']:,.0f} MB of the "
        f"process that loads, "
        f"{serving['peak_mb']:,.0f} MB of the one that serves. Lookups of 64 samples:\n",
        *markdown(["RocksDB's files", "rows/s", "p50 ms", "p99 ms", "hits of the cache"], rows),
    ]


def _loads(found: dict[str, Any]) -> list[tuple[int, int, dict[str, Any]]]:
    """Return (samples, concurrent requests, result) of each load, the smallest one first."""
    sizes = sorted(tuple(map(int, name.split("x"))) for name in found if name != "rows")
    return [(samples, workers, found[f"{samples}x{workers}"]) for samples, workers in sizes]


def _serving(found: dict[str, Any]) -> list[str]:
    rows = []
    for samples, workers, load in _loads(found):
        for name, label in SERVERS.items():
            each = load[name]
            wrong = {**each["errors"], "short": each["short"]}
            rows.append(
                [
                    label,
                    f"{samples}",
                    f"{workers}",
                    f"{each['per_second']:,.0f}",
                    f"{each['samples_per_s']:,.0f}",
                    f"{each['p50_ms']:.1f}",
                    f"{each['p99_ms']:.1f}",
                    f"{sum(each['cpu_us'].values()):,.0f}",
                    f"{each['hit_rate']:.0%}" if each["hit_rate"] is not None else "",
                    ", ".join(f"{count} {kind}" for kind, count in wrong.items() if count) or "0",
                ]
            )
    return [
        f"**Triton, model `dlrm`** of the public shape (bottom 512, 256, 128, top 1024, 1024, 512, 256, 1), 26 slots "
        f"of the public sizes scaled down to {found['rows']:,} rows altogether, power-law keys in each slot. Beside "
        "the tiers, the same model with its table as one array in memory; both are asked in turns.\n",
        *markdown(
            ["rows from", "samples", "requests at a time", "requests/s", "samples/s", "p50 ms", "p99 ms",
             "CPU µs per request", "hits of the cache", "errors"],
            rows,
        ),
        "",
        PUBLISHED,
    ]  # fmt: skip


def _device_cache(found: dict[str, Any]) -> list[str]:
    """Render the results of ``benchmarks.gpu.device_cache``, without its fallback and some of its batches."""
    rows = [
        [
            each["what"],
            f"{each['batch']:,}",
            f"{each['hit_rate']:.0%}",
            f"{each['microseconds']:,.1f}",
            f"{each['rows_per_s']:,}",
            f"{each['gb_per_s']:,.1f}",
            f"{each['of_copy']:.0%}",
        ]
        for each in found["measured"]
        if each["batch"] in DEVICE_BATCHES and "operations" not in each["what"]
    ]
    return [
        f"**The cache on a GPU**, measured by `python -m benchmarks.gpu.device_cache` on {found['device']}: "
        f"{found['capacity']:,} rows × {found['dim']}; a plain copy moves {found['copy_gb_per_s']:,} GB/s.\n",
        *markdown(["", "keys", "hits", "µs", "rows/s", "GB/s", "of the copy's"], rows),
    ]


def _training(found: dict[str, Any]) -> list[str]:
    """Render the results of ``benchmarks.large_scale.dlrm_training``."""
    from benchmarks.large_scale.dlrm_training import table  # here, since it imports the training libraries

    here = found["machine"]
    return [
        f"**Training the DLRM**, measured by `python -m benchmarks.large_scale.dlrm_training` on {here['processor']}, "
        f"{here['cores']} cores: {found['rows']:,} synthetic rows, {found['keys']:,} keys × {found['dim']}.\n",
        table(found),
    ]


def _training_on_gpus(found: dict[str, Any]) -> list[str]:
    """Render the training loop of ``benchmarks.large_scale.dlrm_training --public``, on another machine."""
    shape = found["shape"]
    rows = [
        [
            f"{run['processes']}",
            f"{run['batch_per_process']:,}",
            f"{run['samples_per_s']:,}",
            f"{run['peak_gpu_gib']:.1f}",
        ]
        for run in found["throughput"]
    ]
    return [
        f"**On GPUs**: the public shape, {shape['keys']:,} keys × {shape['embedding_dim']} ({shape['table_gib']} GiB), "
        f"{found['precision']}, on {found['card']} ({found['link']}), torch {found['torch']}, TorchRec "
        f"{found['torchrec']}, NCCL; the training loop of `python -m benchmarks.large_scale.dlrm_training --public`.\n",
        *markdown(["GPUs", "rows per step and GPU", "rows/s", "peak GPU GiB"], rows),
    ]


@styled
def speed_plot(results: dict[str, Any]) -> Figure:
    """Plot rows per second of each tier, grouped by samples per lookup, with one panel per kind of keys."""
    found, batches = results["tiers"], results["scale"]["batches"]
    figure, panels = plt.subplots(1, len(KINDS), figsize=(9, 3.8), sharey=True)
    width = 0.8 / len(SHORT)
    for panel, (kind, title) in zip(panels, KINDS.items(), strict=True):
        for place, ((tier, label), color) in enumerate(zip(SHORT.items(), COLORS, strict=False)):
            values = [found[tier][kind][f"{batch}"]["ours"]["rows_per_s"] for batch in batches]
            middles = np.arange(len(batches)) + (place - (len(SHORT) - 1) / 2) * width
            panel.bar(middles, values, width=0.92 * width, color=color, label=label)
            if tier == "redis":
                bare = [found[tier][kind][f"{batch}"]["bare"]["rows_per_s"] for batch in batches]
                panel.plot(middles, bare, "_", color=INK, markersize=14, markeredgewidth=2.5, label=BARE)
        panel.set_yscale("log")
        panel.set_xticks(np.arange(len(batches)), [f"{batch:,}" for batch in batches])
        panel.set(title=title, xlabel="samples of a lookup, 26 keys each")
        panel.grid(axis="x", visible=False)
    panels[0].set_ylabel("rows per second")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


@styled
def serving_plot(results: dict[str, Any]) -> Figure:
    """Plot requests per second of Triton with the tiers and with all rows in memory."""
    loads = _loads(results["serving"])
    figure, axes = plt.subplots(figsize=(8, 0.8 * len(loads) + 1.2))
    places, height = np.arange(len(loads)), 0.38
    for offset, (name, label), color in zip((-0.5, 0.5), SERVERS.items(), (COLORS[0], "#9aa7b5"), strict=True):
        values = [load[name]["per_second"] for _, _, load in loads]
        axes.barh(places + offset * height, values, height=0.92 * height, color=color, label=label)
        for place, (_, _, load) in zip(places, loads, strict=True):
            text = f" {load[name]['per_second']:,.0f}/s · p99 {load[name]['p99_ms']:,.1f} ms"
            axes.text(load[name]["per_second"], place + offset * height, text, va="center", fontsize=9)
    names = [f"{samples} sample{'s' * (samples > 1)}, {workers} at a time" for samples, workers, _ in loads]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    most = max(load[name]["per_second"] for _, _, load in loads for name in SERVERS)
    axes.set(title="DLRM requests per second in Triton", xlim=(0, most * 1.35))
    axes.legend(loc="lower right")
    return figure
