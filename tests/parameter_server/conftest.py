"""Real Redis Clusters for the tests of the parameter server. ``faults`` breaks them and moves their slots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.cluster import RedisCluster

from redis_recsys.embedded.redis_cluster import EmbeddedCluster
from tests.support import faults


@pytest.fixture(scope="session")
def cluster_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    """Three nodes for the whole run, without replicas, nothing on disk. Tests take ``cluster``."""
    with EmbeddedCluster(tmp_path_factory.mktemp("cluster"), persist=False) as cluster:
        yield cluster


@pytest.fixture
def cluster(cluster_server: EmbeddedCluster) -> EmbeddedCluster:
    """The shared cluster of three nodes, complete and empty.

    A test may kill nodes: those left dead are restarted for the next one. Slots that it moves stay moved. A killed node
    comes back empty; if data has to last, use ``replicated_cluster``.
    """
    faults.repair(cluster_server)
    with faults.client_of(cluster_server) as client:
        client.flushall()
    return cluster_server


@pytest.fixture
def cluster_client(cluster: EmbeddedCluster) -> Iterator[RedisCluster]:
    """A client of the shared cluster, complete and empty, that reads and writes beside the code under test."""
    with faults.client_of(cluster) as client:
        yield client


@pytest.fixture
def replicated_cluster(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    """A cluster for this test alone: three primaries (0 to 2), each with a replica (3 to 5, in the same order).

    Every write is on the disk before it is answered. Starting takes two seconds, a fail-over about three.
    """
    with EmbeddedCluster(tmp_path / "cluster", replicas=1, fsync="always") as cluster:
        yield cluster
