"""Fixtures of many tests: a real Redis, a real Triton, small trained bundles, the command line."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.cli.main import main
from redis_recsys.config import OnlineSettings, RedisSettings, Settings, TritonSettings
from redis_recsys.embedded.redis_server import EmbeddedRedis
from redis_recsys.embedded.triton_server import EmbeddedTriton
from redis_recsys.online.deploy import deploy
from tests.support.commands import Outcome
from tests.support.doubles import GATE
from tests.support.paths import ROOT
from tests.support.pipelines import PLAIN, Deployed
from tests.support.planted import VARIANTS, Trained, planted_dataset, trained_by_merlin, trained_on
from tests.support.shared import shared
from tests.support.tls import tls_endpoint
from tests.support.tritons import WHOLE, settings_in, triton_of

# Files that keep one process busy for a minute and more: first, so that none is left to one process at the end.
LONG = (
    "notebooks/test_multi_stage.py",
    "notebooks/test_offline_batch_with_merlin.py",
    "offline/test_every_night.py",
    "trainers/merlin/test_train.py",
    "cases/test_cases.py",
    "trainers/merlin/test_public_notebook.py",
    "utils/test_interrupts.py",
    "online/test_pipeline.py",
    "notebooks/test_large_scale.py",
    "notebooks/test_offline_batch.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first."""
    first = {ROOT / "tests" / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: first.get(item.path, len(first)))


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see none of the settings of the machine they run on."""
    for name in [name for name in os.environ if name.startswith("RECSYS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A real Redis for the whole run."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), persist=False) as server:
        yield server


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory, server: EmbeddedRedis) -> Iterator[tuple[int, Path]]:
    """Port of a TLS endpoint in front of the shared Redis, and its certificate."""
    with tls_endpoint(tmp_path_factory.mktemp("tls"), server) as endpoint:
        yield endpoint


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """The shared Redis, empty."""
    with redis.Redis(server.host, server.port, password=server.password) as client:
        client.flushall()
        yield client


@pytest.fixture
def use_server(server: EmbeddedRedis, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> redis.Redis:
    """The shared Redis, empty, set as the configured one; requests wait for it as long as a busy machine may need."""
    monkeypatch.setenv("RECSYS_REDIS_HOST", server.host)
    monkeypatch.setenv("RECSYS_REDIS_PORT", str(server.port))
    monkeypatch.setenv("RECSYS_REDIS_PASSWORD", server.password)
    monkeypatch.setenv("RECSYS_ONLINE_TIMEOUT", "1")
    return client


@pytest.fixture
def deployed(server: EmbeddedRedis, client: redis.Redis, tmp_path: Path) -> Deployed:
    """Deploys a bundle and returns settings to serve it with."""

    def make(bundle: Bundle, triton: dict[str, Any] | None = None, **online: Any) -> Settings:
        where = RedisSettings.model_validate({"host": server.host, "port": server.port, "password": server.password})
        settings = Settings(
            data=tmp_path, redis=where, online=OnlineSettings(**PLAIN | online), triton=TritonSettings(**triton or {})
        )
        settings.deploy.models, settings.deploy.feast = tmp_path / "deployed", False
        deploy(bundle, client, settings)
        return settings

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "own redis"


@pytest.fixture
def client_of() -> Callable[[EmbeddedRedis], redis.Redis]:
    """Makes a client of any server that gives up at once when the server is gone."""
    return lambda server: redis.Redis(server.host, server.port, password=server.password, retry=Retry(NoBackoff(), 1))


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Trains each variant once in a run. The bundles are not to be altered: copy them first."""

    def train(name: str, folder: Path) -> None:
        if name == "merlin":
            trained_by_merlin(planted_dataset(folder, **VARIANTS["everything"]), folder)
        else:
            trained_on(planted_dataset(folder, **VARIANTS[name]), folder / "bundle").keep(folder)

    @functools.cache
    def bundle(name: str) -> Trained:
        return Trained.kept(shared(tmp_path_factory, name, functools.partial(train, name)))

    return bundle


@pytest.fixture(params=list(VARIANTS))
def torch_variant(request: pytest.FixtureRequest, bundle_of: Callable[[str], Trained]) -> Trained:
    """Bundles of schemas with and without numerics, lists, history, target and text ids."""
    return bundle_of(request.param)


@pytest.fixture(params=[*VARIANTS, "merlin"])
def variant(request: pytest.FixtureRequest, bundle_of: Callable[[str], Trained]) -> Trained:
    """Bundles of every schema, and one that Merlin trained."""
    return bundle_of(request.param)


@pytest.fixture(scope="session")
def by_merlin(bundle_of: Callable[[str], Trained]) -> Trained:
    """A bundle of every kind of column, trained by Merlin, and Merlin's export."""
    return bundle_of("merlin")


@pytest.fixture(scope="session")
def trained(bundle_of: Callable[[str], Trained]) -> Trained:
    """A bundle of 200 users and 40 items with every kind of column."""
    return bundle_of("everything")


@pytest.fixture
def recsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs the command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["recsys", *map(str, args)])
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedTriton, TritonSettings]]:
    """One real Triton for all tests that do not harm it, and the settings with which a client finds it.

    It serves one model with two instances. The gate is beside its folder.
    """
    folder = tmp_path_factory.mktemp("triton")
    (folder / "gate").mkdir()
    settings = settings_in(folder / "server", instances=2)
    with triton_of(settings, WHOLE, **{GATE: str(folder / "gate")}) as server:
        yield server, settings
