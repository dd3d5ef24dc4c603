"""Serving from end to end: Redis, the models of the live deployment in our own Triton, and live events."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import redis

from ..bundle.bundle import Bundle
from ..bundle.rules import Rules
from ..config import Settings, as_variables
from ..embedded.triton_server import EmbeddedTriton
from ..errors import BundleError, DataError
from ..store import deployments
from ..store.connection import connect
from .consumer import Consumer
from .model_repository import write
from .partition import EXPLAINING, OUTWARD, STATUS, models

log = logging.getLogger(__name__)

READY_SECONDS = 30.0  # limit for the consumer of events to get ready; then Triton starts without it
WAIT_SECONDS = 0.5  # pause between checks for a first deployment
SECTIONS = ("redis", "deploy", "online", "triton")  # settings that the models read


@contextmanager
def serving(settings: Settings, events: bool = True, wait: bool = False) -> Iterator[EmbeddedTriton]:
    """Run a Triton that serves the live deployment, and a consumer of live events, during the block.

    Without a configured Redis the embedded one runs, too. Later deployments are served without a restart, as
    long as their ids keep today's type.

    Args:
        settings: all settings.
        events: whether to apply live events.
        wait: whether to wait until something is deployed.

    Raises:
        ConfigError: the business rules do not fit the deployment.
        StoreError: Redis fails, or nothing is deployed and ``wait`` is false.
        ServingError: Triton does not start.
    """
    with ExitStack() as stack:
        client = stack.enter_context(connect(settings.redis))
        while wait and deployments.live(client) is None:
            time.sleep(WAIT_SECONDS)
        live = deployments.live_or_refuse(client)
        record = deployments.read(client, live)
        if not (settings.deploy.models / record.folder).is_dir():
            log.warning(
                "deployment %s is not in %s, where RECSYS_DEPLOY_MODELS points: popular items are shown until it is",
                live,
                (settings.deploy.models / record.folder).absolute(),
            )
        _check_rules(settings, record.folder)
        parts = models(settings, record.user_ids, record.item_ids)
        outward = {*OUTWARD, *(field.name for field in STATUS), *(EXPLAINING if settings.triton.explain else ())}
        environment = as_variables(reached(settings, client), SECTIONS)
        if events:  # before the first request, so that the first event does not wait for imports
            stack.enter_context(Consumer(client, settings)).ready.wait(READY_SECONDS)
        triton = stack.enter_context(
            EmbeddedTriton(settings.triton, lambda folder: write(folder, parts, settings.triton, outward), environment)
        )
        yield triton


def _check_rules(settings: Settings, folder: str) -> None:
    """Warn of values in the business rules that no item of a deployed bundle has.

    Raises:
        ConfigError: the rules do not fit the bundle.
    """
    with suppress(BundleError, DataError):  # the models wait for a bundle that is missing or damaged
        Rules.of(Bundle(settings.deploy.models / folder, verify=False), settings.online).warn()


def reached(settings: Settings, client: redis.Redis) -> Settings:
    """Settings with the Redis that ``client`` is connected to."""
    where = client.get_connection_kwargs()
    tls = settings.redis.tls and settings.redis.host is not None
    return settings.with_redis(where["host"], where["port"], where.get("username"), where.get("password"), tls)
