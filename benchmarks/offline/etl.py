"""Speed and memory of encoding synthetic interactions as a dataset.

    python -m benchmarks.offline.etl --rows 10000000 --json out.json

The raw data is made once and kept. Each run of ``encode`` has a separate process, so that its peak memory is known;
the seconds are those of ``encode`` alone, without the start of Python and the import of Polars.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measure import FOLDER, in_child, machine
from redis_recsys.data.synthetic import generate


def measure(rows: int = 10_000_000, runs: int = 3, by: str = "time") -> dict[str, Any]:
    """Measure median seconds and highest peak memory of ``runs`` encodings of ``rows`` synthetic rows.

    Returns:
        rows, split, seconds, rows_per_s and peak_mb.
    """
    raw = FOLDER / f"synthetic-{rows}"
    if not raw.exists():
        generate(raw, rows)
    results = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            results.append(in_child(_encode, raw, Path(folder) / "dataset", by))
    seconds = sorted(result["seconds"] for result in results)[runs // 2]
    peak = max(result["peak_mb"] for result in results)
    return {
        "rows": rows,
        "split": by,
        "seconds": round(seconds, 2),
        "rows_per_s": round(rows / seconds),
        "peak_mb": round(peak),
    }


def _encode(raw: Path, target: Path, by: str) -> dict[str, Any]:
    from redis_recsys.dataset.encode import encode
    from redis_recsys.dataset.split import Split

    started = time.perf_counter()
    encode(raw, target, Split.model_validate({"by": by}))
    return {"seconds": time.perf_counter() - started}


def main(
    rows: Annotated[int, typer.Option(min=1, help="Interactions to encode.")] = 10_000_000,
    runs: Annotated[int, typer.Option(min=1, help="Number of runs; the median counts.")] = 3,
    by: Annotated[str, typer.Option(help="Split: time, random or user.")] = "time",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this JSON file.")] = None,
) -> None:
    """Measure the ETL."""
    figures = measure(rows, runs, by)
    here = machine()
    table = Table(title=f"ETL, {here['processor']}, {here['cores']} cores")
    for name in figures:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:,}" if isinstance(value, (int, float)) else value for value in figures.values()))
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(figures | {"machine": here}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
