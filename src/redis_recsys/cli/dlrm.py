"""``recsys dlrm``: a DLRM with tables larger than one device, from configuration to answers."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..config import LookupSettings, Settings, TritonSettings, load_settings
from ..errors import DataError
from ..utils import output_kinds
from ..utils.files import claimed
from .app import Force, Json, app, out, setting

if TYPE_CHECKING:
    import numpy as np

    from ..demos.large_scale_demo import Shown
    from ..parameter_server.remote import Remote
    from ..parameter_server.server import Counts

dlrm = typer.Typer(
    help="""DLRM with embedding tables larger than one device, HugeCTR-compatible.

    recsys data criteo-synthetic -> recsys dlrm train -> recsys dlrm configure -> recsys dlrm serve -> recsys dlrm infer
    """,
    no_args_is_help=True,
)
app.add_typer(dlrm, name="dlrm")

FOLDER = Path("data/dlrm")
PS = FOLDER / "ps.json"
SAMPLE = "sample.npz"
TABLE = "dlrm.sparse_embedding0"
WAIT_SECONDS = 1.0  # between looks for a ps.json

PS_HELP = "the parameter server's configuration"
Ps = Annotated[Path, typer.Argument(help=PS_HELP)]
PsOption = Annotated[Path, typer.Option("--ps", help=PS_HELP)]
TableOption = Annotated[str, typer.Option("--table", help="model.table")]


@dlrm.command()
def configure(
    folder: Annotated[Path, typer.Argument(help="of the trained model: dlrm.json, dense and sparse files")] = FOLDER,
    cache: Annotated[float, typer.Option(min=0, max=1, help="rows of the cache, as a share of the table's")] = 0.2,
    address: Annotated[str, typer.Option(help="host:port,host:port of the Redis Cluster; empty: start one")] = "",
    rocksdb: Annotated[
        str, typer.Option(help="folder of RocksDB, seen from the model's folder; empty: none")
    ] = "../rocksdb",
    hugectr: Annotated[
        Path | None, typer.Option(help="also write ps.json and config.pbtxt for NVIDIA's container into this folder")
    ] = None,
    mounted: Annotated[
        str, typer.Option(help="with --hugectr: the model's folder as seen in the container")
    ] = "/model-data/dlrm/1/",
) -> None:
    """Write ps.json, the parameter server's configuration, beside a trained model."""
    from ..dlrm.configure import Place, configure_hugectr
    from ..dlrm.configure import configure as write
    from ..hugectr import network
    from ..utils.output_kinds import NETWORK

    path = write(folder, Place(address=address, rocksdb=rocksdb or None), cache)
    out.print(f"wrote {path}", highlight=False)
    if hugectr is not None:
        place = Place(f"{mounted.rstrip('/')}/", address, rocksdb="/tmp/rocksdb" if rocksdb else None)
        configure_hugectr(network.read(folder / NETWORK), hugectr, place)
        out.print(f"wrote {hugectr / 'ps.json'} and {hugectr / 'config.pbtxt'}", highlight=False)


@dlrm.command()
def load(
    ps: Ps = PS,
    again: Annotated[bool, typer.Option("--again", help="replace what is there, online updates included")] = False,
    as_json: Json = False,
) -> None:
    """Load the trained tables into RocksDB and the Redis Cluster; what is there already is left alone."""
    from ..dlrm.dlrm_serving import load_tables, tables_redis

    settings = _settings()
    with tables_redis(ps, settings) as reached:
        rows = load_tables(ps, reached, again)
    if as_json:
        print(json.dumps(rows))
        return
    for table, count in rows.items():
        out.print(f"{table}: {count:,} rows loaded" if count else f"{table}: is there already", highlight=False)


@dlrm.command()
def serve(
    ps: Ps = PS,
    max_batch: Annotated[int | None, setting(TritonSettings, "max_batch")] = None,
    queue_delay: Annotated[int | None, setting(TritonSettings, "queue_delay")] = None,
    address: Annotated[str | None, setting(TritonSettings, "address")] = None,
    grpc_port: Annotated[int | None, setting(TritonSettings, "grpc_port")] = None,
    http_port: Annotated[int | None, setting(TritonSettings, "http_port")] = None,
    metrics_port: Annotated[int | None, setting(TritonSettings, "metrics_port")] = None,
    device: Annotated[str | None, setting(LookupSettings, "device")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="until there is a ps.json, instead of an error")] = False,
) -> None:
    """Serve the model with Triton until Ctrl-C; Redis and RocksDB are started and filled before, where they are not."""
    from ..dlrm.dlrm_serving import serving

    flags = dict(locals())
    settings = _settings(
        triton={name: value for name, value in flags.items() if name in TritonSettings.model_fields},
        lookup={"device": device},
    )
    with suppress(KeyboardInterrupt):
        while wait and not ps.exists():
            time.sleep(WAIT_SECONDS)
        with serving(ps, settings) as triton:
            out.print(
                f"Triton serves 'dlrm' at {triton.host}: gRPC {triton.grpc_port}, HTTP {triton.http_port}, metrics "
                f"{triton.metrics_port}; log in {triton.log}; Ctrl-C stops it",
                highlight=False,
            )
            triton.watch(threading.Event())


@dlrm.command()
def infer(
    sample: Annotated[
        Path, typer.Argument(help="folder of the trained model, or its sample.npz with dense and keys")
    ] = FOLDER,
    rows: Annotated[int, typer.Option(min=1, help="first rows of it")] = 10,
    host: Annotated[str | None, setting(TritonSettings, "host")] = None,
    grpc_port: Annotated[int | None, setting(TritonSettings, "grpc_port")] = None,
    as_json: Json = False,
) -> None:
    """Ask Triton for click probabilities of sample rows, beside those of the trained model."""
    import numpy as np

    from ..dlrm.dlrm_client import DlrmClient

    columns = _sample(sample)
    with DlrmClient(load_settings(triton={"host": host, "grpc_port": grpc_port}).triton) as client:
        found = client.predict(columns["dense"][:rows], columns["keys"][:rows])
    trained = columns.get("probability", np.full(rows, np.nan))[:rows]
    if as_json:
        print(json.dumps({"probability": found.tolist(), "trained": trained.tolist()}))
        return
    table = Table()
    for name in ("row", "probability", "trained model", "difference"):
        table.add_column(name)
    for number, (ours, theirs) in enumerate(zip(found, trained, strict=True)):
        table.add_row(*(Text(cell) for cell in (f"{number}", f"{ours:.6f}", f"{theirs:.6f}", f"{ours - theirs:+.1e}")))
    out.print(table)


@dlrm.command()
def update(
    folder: Annotated[Path, typer.Argument(help="with key and emb_vector: the rows that change")],
    table: TableOption = TABLE,
    ps: PsOption = PS,
) -> None:
    """Publish new rows: they are in Redis at once, and in every server's cache and RocksDB within a second."""
    with _remote(ps) as remote:
        rows = remote.publish_folder(table, folder)
    out.print(f"{rows:,} rows of {table} published", highlight=False)


@dlrm.command()
def dump(
    folder: Annotated[Path, typer.Argument(help="to write: key and emb_vector")],
    table: TableOption = TABLE,
    ps: PsOption = PS,
    force: Force = False,
) -> None:
    """Write a table as Redis has it, of HPS too, to a folder that HugeCTR reads."""
    with claimed(folder, output_kinds.TABLE, force), _remote(ps) as remote:
        rows = remote.dump(table, folder)
    out.print(f"{rows:,} rows of {table} written to {folder}", highlight=False)


@dlrm.command()
def hits(
    host: Annotated[str | None, setting(TritonSettings, "host")] = None,
    metrics_port: Annotated[int | None, setting(TritonSettings, "metrics_port")] = None,
    as_json: Json = False,
) -> None:
    """Where the running server found its rows: cache, Redis, RocksDB, or nowhere."""
    from ..dlrm.statistics import statistics
    from ..triton.grpc_connection import ports

    settings = load_settings(triton={"host": host, "metrics_port": metrics_port}).triton
    found = statistics(*ports(settings))
    if as_json:
        print(json.dumps({table: asdict(counts) for table, counts in found.items()}))
        return
    out.print(hits_table(found))


@dlrm.command()
def demo(as_json: Json = False) -> None:
    """The whole way on made-up clicks, in a few minutes.

    Train on two processes, export, start a Redis Cluster of three nodes and fill it, serve with Triton, compare with
    the trained model, watch where rows come from, change some, kill a node. Stops what it started.
    """
    from ..demos.large_scale_demo import demo as run

    shown = run(load_settings())
    if as_json:
        print(json.dumps(asdict(shown)))
    else:
        _show(shown)


def _show(shown: Shown) -> None:
    from ..demos.large_scale_demo import BATCH

    test = shown.report["test"]
    out.print(
        f"test AUC {test['auc']:.4f}, the best possible {test['oracle_auc']:.4f}; Triton and the trained model differ "
        f"by at most {shown.difference:.1e} on {shown.compared} rows",
        highlight=False,
    )
    requests = shown.phases[0].requests
    table = Table(title=f"where rows came from, {requests} requests of {BATCH} samples each", title_justify="left")
    for name in ("", "cache", "Redis", "RocksDB", "none", "p50 ms", "p99 ms"):
        table.add_column(name)
    for phase in shown.phases:
        cells = [f"{share:.1%}" for share in phase.shares().values()]
        cells += [f"{phase.p50_ms:.1f}", f"{phase.p99_ms:.1f}"]
        table.add_row(*map(Text, (phase.name, *cells)))
    out.print(table)
    out.print(
        f"new rows were published: the first sample's probability went from {shown.before:.4f} to {shown.after:.4f} "
        f"after {shown.update_ms:.0f} ms; then the old rows were put back",
        highlight=False,
    )


def hits_table(found: dict[str, Counts]) -> Group:
    """What the tiers gave, one table below the other, since their names alone fill a line."""
    meanings = {
        "cache": "in the cache", "redis": "in Redis", "rocksdb": "in RocksDB", "default": "nowhere: default vector",
        "deferred": "default vector, fetched in the background", "unreachable": "Redis node away",
    }  # fmt: skip
    tables = []
    for name, counts in found.items():
        table = Table(title=Text(f"{name}: {counts.lookups:,} lookups of {counts.keys:,} keys"), title_justify="left")
        for heading in ("keys", "", "share"):
            table.add_column(heading, justify="left" if not heading else "right")
        for field, meaning in meanings.items():
            value = getattr(counts, field)
            table.add_row(*map(Text, (f"{value:,}", meaning, f"{value / max(1, counts.keys):.1%}")))
        tables.append(table)
    return Group(*tables)


def _settings(**flags: dict[str, object]) -> Settings:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # what ps.json says in vain, restarts
    return load_settings(**flags)


@contextmanager
def _remote(ps: Path) -> Iterator[Remote]:
    """The tables of a ps.json in Redis, which is started if it is the project's own."""
    from ..dlrm.dlrm_serving import tables_redis
    from ..parameter_server.remote import Remote

    with tables_redis(ps, _settings()) as settings, Remote.open(ps, settings) as remote:
        yield remote


def _sample(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    path = path / SAMPLE if path.is_dir() else path
    try:
        with np.load(path, allow_pickle=False) as columns:
            found = dict(columns)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; training leaves a sample.npz beside the model") from None
    if not {"dense", "keys"} <= found.keys():
        raise DataError(f"{path} lacks {', '.join(sorted({'dense', 'keys'} - found.keys()))}")
    return found
