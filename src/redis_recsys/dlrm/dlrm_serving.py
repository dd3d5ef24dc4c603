"""Serving of a DLRM from end to end: the Redis of its tables, the tables in it, and Triton in front."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..config import Settings, as_variables
from ..embedded.redis_cluster import EmbeddedCluster
from ..embedded.triton_server import EmbeddedTriton
from ..parameter_server.loading import load
from ..parameter_server.ps_json import read
from ..parameter_server.server import ParameterServer
from ..triton.repository import write_models
from .configure import MODEL, triton_config

MODULE = "redis_recsys.dlrm.dlrm_model:TritonPythonModel"
SECTIONS = ("redis", "lookup")  # settings that the model reads


@contextmanager
def tables_redis(path: Path, settings: Settings) -> Iterator[Settings]:
    """Yield settings that name the Redis of a ``ps.json``'s tables, which runs during the block.

    If neither ``RECSYS_REDIS_HOST`` nor ``volatile_db.address`` is set, the project's own cluster of three nodes is
    started, or shared if it runs.

    Raises:
        ConfigError: the file is wrong.
        StoreError: the cluster does not start.
    """
    volatile = read(path).volatile_db
    if settings.redis.host is not None or volatile.address or volatile.type == "disabled":
        yield settings
        return
    with EmbeddedCluster(settings.lookup.cluster, max_memory=settings.redis.max_memory) as cluster:
        yield reached(settings, cluster)


def reached(settings: Settings, cluster: EmbeddedCluster) -> Settings:
    """Settings with the project's own cluster as Redis."""
    return settings.with_redis(*cluster.addresses[0], password=cluster.password)


def load_tables(path: Path, settings: Settings, again: bool = False) -> dict[str, int]:
    """Load the trained tables into the tiers that lack them; see ``parameter_server.loading.load``.

    Args:
        path: path of ``ps.json``.
        settings: settings that name the tables' Redis.
        again: whether to reload tables loaded before.
    """
    with ParameterServer.open(path, settings.changed("lookup", device="cpu")) as server:
        return load(server, again)


@contextmanager
def serving(path: Path, settings: Settings, again: bool = False) -> Iterator[EmbeddedTriton]:
    """Load the tables of a ``ps.json`` and run a Triton that serves its model, during the block.

    Args:
        path: path of ``ps.json``.
        settings: all settings.
        again: whether to reload tables loaded before.

    Raises:
        ConfigError: the file is wrong.
        DataError: a file of the model is missing or damaged.
        StoreError: a tier cannot be opened or filled.
        ServingError: Triton does not start.
    """
    with ExitStack() as stack:
        settings = stack.enter_context(tables_redis(path, settings))
        load_tables(path, settings, again)
        environment = as_variables(settings, SECTIONS)
        yield stack.enter_context(
            EmbeddedTriton(settings.triton, lambda folder: write_repository(folder, path, settings), environment)
        )


def write_repository(folder: Path, path: Path, settings: Settings) -> None:
    """Write the model repository, whole or not at all.

    Raises:
        DataError: the folder cannot be written.
    """
    triton = settings.triton
    config = triton_config("python", {"ps": str(path.absolute())}, triton.max_batch, triton.queue_delay)
    write_models(folder, {MODEL: config}, {MODEL: MODULE})
