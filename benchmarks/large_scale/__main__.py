"""Embedding tables in tiers: speed of each tier, a table larger than memory, and a DLRM served from them.

Everything runs on this machine: a real Redis Cluster of three nodes, RocksDB, Triton, and their clients.

    python -m benchmarks.large_scale            # eight minutes and 25 GB of disk, writes the tables and plots of docs
    python -m benchmarks.large_scale --quick    # two minutes, on little data, does not write them
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.large_scale import dlrm_load, large_table, tiers
from benchmarks.large_scale.tables_report import SERVING_PLOT, SPEED_PLOT, serving_plot, speed_plot, tables
from benchmarks.measure import FOLDER, in_child, machine
from benchmarks.report import into_page
from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from redis_recsys.parameter_server.nodes import Access

RESULTS = Path("benchmarks/large_scale/results/tables.json")
OTHERS = {  # measured elsewhere, shown if available
    "device_cache": Path("benchmarks/gpu/results/device-cache.json"),
    "training": Path("benchmarks/large_scale/results/dlrm-training.json"),
    "training_on_gpus": Path("benchmarks/gpu/results/dlrm-training.json"),
}
TIMEOUT = 5.0  # seconds a lookup waits for Redis: slow answers are measured, not left out


@dataclass(frozen=True)
class Scale:
    """Extent of the measurement.

    Attributes:
        rows: rows of the table in all tiers, and approximate rows of the DLRM.
        seconds: seconds of lookups per tier, kind of keys and number of samples.
        large_rows, large_cache: rows of the table larger than memory, and of its cache.
        large_seconds: seconds of lookups in it per kind of keys.
        load_seconds: seconds of each load on each server.
    """

    rows: int = 1_000_000
    batches: tuple[int, ...] = (1, 64, 1024)
    seconds: float = 2.0
    large_rows: int = 20_000_000
    large_cache: int = 1_000_000
    large_seconds: float = 8.0
    load_seconds: float = 8.0


QUICK = Scale(50_000, seconds=0.3, large_rows=400_000, large_cache=20_000, large_seconds=1.0, load_seconds=1.0)


def measure(scale: Scale) -> dict[str, Any]:
    """Measure all figures, on temporary servers and files."""
    home = Path(tempfile.mkdtemp(prefix="tables-", dir=FOLDER)).absolute()
    try:
        with EmbeddedCluster(home / "cluster", persist=False) as cluster:
            stored = tiers.Stored(
                scale.rows,
                Access(tuple(cluster.addresses), password=cluster.password, timeout=TIMEOUT),
                home / "rocksdb",
            )
            print(f"loading {scale.rows:,} rows ...", flush=True)
            found: dict[str, Any] = {"loaded": in_child(tiers.fill, stored), "tiers": {}}
            for tier in tiers.TIERS:
                print(f"looking rows up, {tier} ...", flush=True)
                found["tiers"][tier] = in_child(tiers.measure, stored, tier, scale.batches, scale.seconds)
        print("serving a DLRM ...", flush=True)
        with EmbeddedCluster(home / "dlrm-cluster", persist=False) as cluster:
            found["serving"] = dlrm_load.measure(home, cluster, scale.rows, scale.load_seconds)
        print(f"loading {scale.large_rows:,} rows ...", flush=True)
        large = home / "large"
        found["large"] = {
            "loading": in_child(large_table.load, large, scale.large_rows),
            "gigabytes": sum(file.stat().st_size for file in large.glob("*.sst")) / 1e9,
        }
        print("looking rows up there ...", flush=True)
        sizes = scale.large_rows, scale.large_cache
        found["large"]["serving"] = in_child(large_table.serve, large, *sizes, scale.large_seconds)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return {"machine": machine(), "scale": asdict(scale), **found}


def others() -> dict[str, Any]:
    """Load the available measurements from other machines."""
    return {name: json.loads(path.read_text()) for name, path in OTHERS.items() if path.exists()}


def main(
    quick: Annotated[bool, typer.Option(help="Little data and short loads, for trying out.")] = False,
) -> None:
    """Measure, print the tables, and write them and the plots for docs/benchmarks.md."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = measure(QUICK if quick else Scale())
    text = tables(results, others())
    print(text)
    if not quick:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        into_page("tables", text)
    for plot, path in ((speed_plot, SPEED_PLOT), (serving_plot, SERVING_PLOT)):
        plot(results, path=FOLDER / path.name if quick else path)


if __name__ == "__main__":
    typer.run(main)
