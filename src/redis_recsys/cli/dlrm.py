"""``recsys dlrm``: a DLRM with tables larger than one device, from configuration to answers."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import Settings
from ..errors import DataError
from ..utils import output_kinds
from ..utils.files import claimed
from .app import Force, Json, app, out, until_ctrl_c
from .options import TRITON_CLIENT, TRITON_SERVER, options
from .tables import hits_table, phases_table, probabilities_table

if TYPE_CHECKING:
    import numpy as np

    from ..demos.large_scale_demo import DemoReport
    from ..parameter_server.remote import Remote

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

# Settings that say where the tables' Redis is, and how it is asked.
TABLES = ("lookup.cluster", "lookup.timeout", "lookup.pause")
TABLES_REDIS = ("redis.host", "redis.port", "redis.username", "redis.tls", "redis.tls_ca", "redis.max_memory")


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
@options(*TABLES, prefixed=TABLES_REDIS)
def load(
    settings: Settings,
    ps: Ps = PS,
    again: Annotated[bool, typer.Option("--again", help="replace what is there, online updates included")] = False,
    as_json: Json = False,
) -> None:
    """Load the trained tables into RocksDB and the Redis Cluster; what is there already is left alone."""
    from ..dlrm.dlrm_serving import load_tables, tables_redis

    _show_warnings()
    with tables_redis(ps, settings) as reached:
        rows = load_tables(ps, reached, again)
    if as_json:
        print(json.dumps(rows))
        return
    for table, count in rows.items():
        out.print(f"{table}: {count:,} rows loaded" if count else f"{table}: is there already", highlight=False)


@dlrm.command()
@options("triton.max_batch", "triton.queue_delay", *TRITON_SERVER, "lookup", prefixed=TABLES_REDIS)
def serve(
    settings: Settings,
    ps: Ps = PS,
    wait: Annotated[bool, typer.Option("--wait", help="until there is a ps.json, instead of an error")] = False,
) -> None:
    """Serve the model with Triton until Ctrl-C; Redis and RocksDB are started and filled before, where they are not."""
    from ..dlrm.dlrm_serving import serving

    _show_warnings()
    while wait and not ps.exists():
        time.sleep(WAIT_SECONDS)
    with until_ctrl_c(serving(ps, settings)) as triton:
        out.print(
            f"Triton serves 'dlrm' at {triton.host}: gRPC {triton.grpc_port}, HTTP {triton.http_port}, metrics "
            f"{triton.metrics_port}; log in {triton.log}; Ctrl-C stops it",
            highlight=False,
        )
        triton.watch(threading.Event())


@dlrm.command()
@options(*TRITON_CLIENT)
def infer(
    settings: Settings,
    sample: Annotated[
        Path, typer.Argument(help="folder of the trained model, or its sample.npz with dense and keys")
    ] = FOLDER,
    rows: Annotated[int, typer.Option(min=1, help="first rows of it")] = 10,
    as_json: Json = False,
) -> None:
    """Ask Triton for click probabilities of sample rows, beside those of the trained model."""
    import numpy as np

    from ..dlrm.dlrm_client import DlrmClient

    columns = _sample(sample)
    with DlrmClient(settings.triton) as client:
        found = client.predict(columns["dense"][:rows], columns["keys"][:rows])
    trained = columns.get("probability", np.full(rows, np.nan))[:rows]
    if as_json:
        print(json.dumps({"probability": found.tolist(), "trained": trained.tolist()}))
        return
    out.print(probabilities_table(found, trained))


@dlrm.command()
@options(*TABLES, prefixed=TABLES_REDIS)
def update(
    settings: Settings,
    folder: Annotated[Path, typer.Argument(help="with key and emb_vector: the rows that change")],
    table: TableOption = TABLE,
    ps: PsOption = PS,
) -> None:
    """Publish new rows: they are in Redis at once, and in every server's cache and RocksDB within a second."""
    with _remote(ps, settings) as remote:
        rows = remote.publish_folder(table, folder)
    out.print(f"{rows:,} rows of {table} published", highlight=False)


@dlrm.command()
@options(*TABLES, prefixed=TABLES_REDIS)
def dump(
    settings: Settings,
    folder: Annotated[Path, typer.Argument(help="to write: key and emb_vector")],
    table: TableOption = TABLE,
    ps: PsOption = PS,
    force: Force = False,
) -> None:
    """Write a table as Redis has it, of HPS too, to a folder that HugeCTR reads."""
    with claimed(folder, output_kinds.TABLE, force), _remote(ps, settings) as remote:
        rows = remote.dump(table, folder)
    out.print(f"{rows:,} rows of {table} written to {folder}", highlight=False)


@dlrm.command()
@options("triton.host", "triton.metrics_port", "triton.repository")
def hits(
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Count rows of the running server by tier: cache, Redis, RocksDB, or nowhere."""
    from ..dlrm.statistics import statistics
    from ..triton.grpc_connection import ports

    found = statistics(*ports(settings.triton))
    if as_json:
        print(json.dumps({table: asdict(counts) for table, counts in found.items()}))
        return
    out.print(hits_table(found))


@dlrm.command()
@options("data")
def demo(settings: Settings, as_json: Json = False) -> None:
    """The whole way on made-up clicks, in a few minutes.

    Train on two processes, export, start a Redis Cluster of three nodes and fill it, serve with Triton, compare with
    the trained model, watch where rows come from, change some, kill a node. Stops what it started.
    """
    from ..demos.large_scale_demo import demo as run
    from ..utils.environments import require

    require(settings.triton.environment, "recsys setup serving")
    shown = run(settings)
    if as_json:
        print(json.dumps(asdict(shown)))
    else:
        _show(shown)


def _show(shown: DemoReport) -> None:
    test = shown.report["test"]
    out.print(
        f"test AUC {test['auc']:.4f}, the best possible {test['oracle_auc']:.4f}; Triton and the trained model differ "
        f"by at most {shown.difference:.1e} on {shown.compared} rows",
        highlight=False,
    )
    out.print(phases_table(shown.phases))
    out.print(
        f"new rows were published: the first sample's probability went from {shown.before:.4f} to {shown.after:.4f} "
        f"after {shown.update_ms:.0f} ms; then the old rows were put back",
        highlight=False,
    )


def _show_warnings() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # what ps.json says in vain, restarts


@contextmanager
def _remote(ps: Path, settings: Settings) -> Iterator[Remote]:
    """The tables of a ps.json in Redis, which is started if it is the project's own."""
    from ..dlrm.dlrm_serving import tables_redis
    from ..parameter_server.remote import Remote

    _show_warnings()
    with tables_redis(ps, settings) as reached, Remote.open(ps, reached) as remote:
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
