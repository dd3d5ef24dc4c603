"""The online pipeline from its slowest form to its fastest: the same stages, models and data in different settings.

The revisions replay how the public reference pipeline for Merlin and Redis was made faster, step by step; then come
the settings that this project serves with. All of them answer from one Redis and one deployment, on the real Triton,
for users who never repeat.

    python -m benchmarks.online            # eight minutes, writes the table and the plot of docs/benchmarks.md
    python -m benchmarks.online --quick    # about four minutes, on little data, does not write them
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import typer
from matplotlib.figure import Figure
from pydantic import SecretStr

from benchmarks.measure import FOLDER, in_child, machine
from benchmarks.offline.batch import make_bundle
from benchmarks.online.load import Load, order, run
from benchmarks.report import into_page, markdown, picture
from redis_recsys.bundle.bundle import Bundle
from redis_recsys.config import DeploySettings, OnlineSettings, RedisSettings, Settings, TritonSettings
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.embedded.triton_server import EmbeddedTriton
from redis_recsys.errors import ServingError
from redis_recsys.evaluation.plots import COLORS, styled
from redis_recsys.online.deploy import deploy
from redis_recsys.online.partition import stages_of
from redis_recsys.online.serving import serving
from redis_recsys.store.connection import connect
from redis_recsys.triton.perf_analyzer import perf_analyzer

RESULTS = Path("benchmarks/online/results/online.json")
PLOT = Path("assets/online-speed.png")
WITH_FEAST = Path(".venv-serving-feast")
REPEATED = 1000  # users who repeat, where cache hits are measured
KEPT = re.compile("recsys_(?!.*_bucket)|nv_inference_")  # metrics in the results
SECONDS = re.compile(r'recsys_stage_seconds_sum\{stage="(\w+)"\}')
WINDOWS = 3  # minimum number of requests that perf_analyzer measures
HEADINGS = ("revision", "per second", "p50 ms", "p99 ms", "p99 ms at half the load", "CPU µs per request", "errors",
            "per second by perf_analyzer", "published per second")  # fmt: skip
PROGRAMS = {"tritonserver": "Triton", "triton_python_backend_stub": "Python models", "redis-server": "Redis"}


@dataclass(frozen=True)
class Revision:
    """One configuration of the server.

    Attributes:
        name: name in results.
        label: name in tables and plots.
        published: recommendations per second that the public reference reports for this step.
        half: whether to measure latency at half the load as well.
        cached: whether to measure repeated users as well.
    """

    name: str
    label: str
    partition: Literal["staged", "consolidated", "fused"]
    users: Literal["packed", "feast"]
    items: Literal["memory", "packed", "attributes", "feast"]
    retrieval: Literal["local", "redis"] = "redis"
    instances: int = 2
    published: int | None = None
    half: bool = False
    cached: bool = False


STEPS = (
    Revision("1", "1: every stage a model, Feast SDK", "staged", "feast", "feast", published=33),
    Revision("2", "2: candidates and their features in one model", "consolidated", "feast", "feast", published=61),
    Revision("3", "3: Feast SDK replaced by direct reads", "consolidated", "packed", "packed", published=122),
    Revision("4", "4: item features out of the vector query", "consolidated", "packed", "attributes", published=320),
    Revision("5", "5: the same with the response cache", "consolidated", "packed", "attributes", cached=True),
)
WHERE: dict[Literal["local", "redis"], str] = {"redis": "vector search in Redis", "local": "exact search in memory"}
OURS = tuple(
    Revision(
        f"{retrieval}-{instances}",
        f"ours: one model, {where}, {instances} instance{'s' * (instances > 1)}",
        "fused",
        "packed",
        "memory",
        retrieval,
        instances,
        half=True,
    )
    for retrieval, where in WHERE.items()
    for instances in (1, 2)
)


@dataclass(frozen=True)
class Scale:
    """Extent of the measurement: number of users and items, and seconds of each load."""

    users: int = 100_000
    items: int = 10_000
    seconds: float = 8.0
    warm_up: float = 2.0


QUICK = Scale(5_000, 1_000, 1.0, 0.5)


def measure(scale: Scale) -> dict[str, Any]:
    """Measure all revisions, one after the other, on a temporary Redis."""
    bundle = Bundle(make_bundle(FOLDER / f"batch-{scale.users}-{scale.items}", scale.users, scale.items))
    home = Path(tempfile.mkdtemp(prefix="online-", dir=FOLDER)).absolute()
    try:
        with EmbeddedRedis(home / "redis", persist=False) as server:
            redis = RedisSettings(host=server.host, port=server.port, password=SecretStr(server.password))
            settings = Settings(data=home, redis=redis, deploy=DeploySettings(models=home / "deployed"))
            print("deploying ...", flush=True)
            with connect(redis) as client:
                deployed = deploy(bundle, client, settings)
            results = {}
            for revision in (*STEPS, *OURS):
                print(f"measuring {revision.label} ...", flush=True)
                with serving(_settings_of(revision, settings), events=False) as triton:
                    results[revision.name] = _measured(revision, triton, server, scale)
                print(_line(results[revision.name]), flush=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return {
        "machine": machine(),
        "scale": vars(scale),
        "deployment": {"ef": deployed.ef, "recall": deployed.recall, "seconds": deployed.seconds},
        "revisions": results,
    }


def _settings_of(revision: Revision, settings: Settings) -> Settings:
    online = OnlineSettings(
        retrieval=revision.retrieval,
        users=revision.users,
        items=revision.items,
        nearest=100,
        similar=0,
        popular=0,
        timeout=5.0,  # slow answers are measured, not replaced by popular items
    )
    triton = TritonSettings(
        environment=WITH_FEAST if revision.items == "feast" else TritonSettings().environment,
        repository=settings.data / f"triton-{revision.name}",
        partition=revision.partition,
        instances=revision.instances,
        cache=revision.cached,
        explain=False,
        grpc_port=0,
        http_port=0,
        metrics_port=0,
    )
    return settings.model_copy(update={"online": online, "triton": triton})


def _measured(revision: Revision, triton: EmbeddedTriton, server: EmbeddedRedis, scale: Scale) -> dict[str, Any]:
    """Measure the loads on one server, one after the other."""
    address = f"{triton.host}:{triton.grpc_port}"

    def load(**options: Any) -> dict[str, Any]:
        result = in_child(
            run,
            Load(
                address,
                scale.users,
                OnlineSettings().topk,
                scale.seconds,
                scale.warm_up,
                groups=(triton.pid, os.getpgid(server.pid)),
                metrics=(triton.host, triton.metrics_port),
                **options,
            ),
        )
        result["metrics"] = {name: grown for name, grown in result["metrics"].items() if KEPT.match(name)}
        return result

    distinct = load()
    result = {"load": distinct, "perf_analyzer": _perf_analyzer(address, scale, distinct["per_second"])}
    if revision.half:
        result["half"] = load(rate=distinct["per_second"] / 2)
    if revision.cached:
        result["repeated"] = load(repeat=REPEATED)
    return result


def _perf_analyzer(address: str, scale: Scale, per_second: float) -> dict[str, Any]:
    """Measure the same closed load with Triton's own tool, with users from the other end of the order.

    Returns:
        per_second, p50_ms and p99_ms, or ``note``, the reason why they are missing.
    """
    users = order(scale.users)[: -round(2 * per_second * scale.seconds) - 1 : -1]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "users.json").write_text(json.dumps({"data": [{"user_id": [user]} for user in users]}))
        options = {
            "concurrency-range": 16,
            "input-data": "users.json",
            "percentile": 99,
            "measurement-interval": round(scale.seconds / WINDOWS * 1e3),
            "max-trials": WINDOWS,
            "stability-percentage": 999,
        }
        try:
            program, variables = stack.enter_context(perf_analyzer(TritonSettings().environment))
            command = [program, "-m", "recommender", "-i", "grpc", "-u", address]
            command += ["-f", "out.csv", *(f"--{name}={value}" for name, value in options.items())]
            done = subprocess.run(
                command,
                cwd=folder,
                env=variables,
                capture_output=True,
                text=True,
                timeout=4 * scale.seconds + 30,
            )
            with (folder / "out.csv").open() as file:
                row = next(csv.DictReader(file))
        except (OSError, ServingError, subprocess.TimeoutExpired, StopIteration) as error:
            return {"note": f"perf_analyzer does not run here: {error}"}
        if done.returncode:
            return {"note": f"perf_analyzer fails: {(done.stderr or done.stdout).strip()[-300:]}"}
    latencies = {f"{name}_ms": float(row[f"{name} latency"]) / 1e3 for name in ("p50", "p99")}
    return {"per_second": float(row["Inferences/Second"]), **latencies}


def _line(result: dict[str, Any]) -> str:
    """Print the result of a revision, while the others run."""
    loads = {name: load for name, load in result.items() if "per_second" in load}
    return "; ".join(
        f"{name}: {load['per_second']:,.0f}/s, p99 {load['p99_ms']:.1f} ms" for name, load in loads.items()
    )


def tables(results: dict[str, Any]) -> str:
    """Render the results as Markdown."""
    here, scale, found = results["machine"], results["scale"], results["revisions"]
    fastest = max(OURS, key=lambda each: found[each.name]["load"]["per_second"])
    best = found[fastest.name]["load"]["per_second"]
    first, fourth = (found[name]["load"]["per_second"] for name in ("1", "4"))
    hits = found["5"]["repeated"]
    notes = {each["perf_analyzer"]["note"] for each in found.values() if "note" in each["perf_analyzer"]}
    return "\n".join(
        [
            f"Measured by `make bench-online` on {here['processor']}, {here['cores']} cores for Redis, Triton and the "
            f"load together, no GPU: {scale['users']:,} users, {scale['items']:,} items, 100 candidates → 20, 16 "
            "requests at a time by gRPC, each for another user. Vector search in Redis at a recall of "
            f"{results['deployment']['recall']:.3f}.\n",
            *markdown(HEADINGS, [_row(each, found[each.name]) for each in (*STEPS, *OURS)]),
            "",
            f"Ours makes up to {best / first:.0f} times as many recommendations as revision 1 and "
            f"{best / fourth:.1f} times as many as revision 4. With the response cache and {REPEATED:,} users who come "
            f"again and again (cache hits only), revision 5 gives {hits['per_second']:,.0f} answers/s, p99 "
            f"{hits['p99_ms']:.1f} ms; published: 543.\n",
            *(f"{note}\n" for note in sorted(notes)),
            f"{picture('Recommendations per second', PLOT)}\n",
            *_profile(fastest, found[fastest.name]["load"]),
        ]
    )


def _row(revision: Revision, result: dict[str, Any]) -> list[str]:
    load, half, tool = result["load"], result.get("half"), result["perf_analyzer"]
    wrong = {**load["errors"], "degraded": load["degraded"], "short": load["short"]}
    return [
        revision.label,
        f"{load['per_second']:,.0f}",
        f"{load['p50_ms']:.1f}",
        f"{load['p99_ms']:.1f}",
        f"{half['p99_ms']:.1f}" if half else "",
        f"{sum(load['cpu_us'].values()):,.0f}",
        ", ".join(f"{count} {kind}" for kind, count in wrong.items() if count) or "0",
        f"{tool['per_second']:,.0f}" if "per_second" in tool else "",
        f"{revision.published}" if revision.published else "",
    ]


def _profile(revision: Revision, load: dict[str, Any]) -> list[str]:
    """Render the time of a request by stage, and by process."""
    metrics, users = load["metrics"], load["metrics"]["recsys_requests_total"]
    stages = {found[1]: value for name, value in metrics.items() if (found := SECONDS.match(name))}
    batches = max(value for name, value in metrics.items() if name.startswith("recsys_stage_seconds_count"))
    place = {name: place for place, name in enumerate(stages_of(OnlineSettings()))}
    named = {PROGRAMS.get(name, name): value for name, value in load["cpu_us"].items()}
    own = sum(stages.values()) / users * 1e6
    spent, waited = (_sum(metrics, f"nv_inference_{part}_duration_us") / users / 1e3 for part in ("request", "queue"))
    return [
        f"Where the time goes, in microseconds per user ({revision.label}). "
        f"Triton computes {users / batches:.1f} users together on average; of the {spent:.1f} ms that a request spends "
        f"in it, it waits {waited:.1f} ms for the batch before. Stages are measured by the clock, while all processes "
        "share the cores:\n",
        *markdown(
            ["stage", "µs"],
            [[name, f"{stages[name] / users * 1e6:.0f}"] for name in sorted(stages, key=place.__getitem__)]
            + [["all stages", f"{own:.0f}"]],
        ),
        "",
        *markdown(
            ["process", "CPU µs"],
            [[name, f"{value:.0f}"] for name, value in named.items() if value >= 1]
            + [["all processes", f"{sum(named.values()):.0f}"]],
        ),
    ]


def _sum(metrics: dict[str, float], name: str) -> float:
    """Sum a counter over all models."""
    return sum(value for key, value in metrics.items() if key.partition("{")[0] == name)


@styled
def speed_plot(found: dict[str, Any]) -> Figure:
    """Plot recommendations per second of every revision, with the 99th percentile of the latency."""
    shown = (*STEPS, *OURS)
    loads = [found[each.name]["load"] for each in shown]
    values = [load["per_second"] for load in loads]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(shown) + 1))
    places = np.arange(len(shown))
    axes.barh(places, values, height=0.68, color=[COLORS[0] if each in OURS else "#9aa7b5" for each in shown])
    for place, load in enumerate(loads):
        text = f" {load['per_second']:,.0f}/s · p99 {load['p99_ms']:,.0f} ms"
        axes.text(load["per_second"], place, text, va="center", fontsize=9)
    axes.set_yticks(places, [each.label for each in shown])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title="Recommendations per second, each for another user", xlim=(0, max(values) * 1.35))
    return figure


def main(
    quick: Annotated[bool, typer.Option(help="Little data and short loads, for trying out.")] = False,
) -> None:
    """Measure, print the table, and write it and the plot for docs/benchmarks.md."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = measure(QUICK if quick else Scale())
    text = tables(results)
    print(text)
    if quick:
        speed_plot(results["revisions"], path=FOLDER / PLOT.name)
        return
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    into_page("online", text)
    speed_plot(results["revisions"], path=PLOT)


if __name__ == "__main__":
    typer.run(main)
