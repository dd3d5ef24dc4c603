"""Deployment of a bundle: everything that serving reads becomes a new generation, made live by one command.

Nothing that serves is touched before the switch: a failure at any point leaves the live deployment unchanged and
removes what was written. Users are read in blocks, so memory does not grow with their number.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import redis

from ..bundle.bundle import Bundle
from ..bundle.rules import Rules
from ..config import Settings
from ..dataset.entities import Entities
from ..errors import BundleError, StoreError
from ..store import deployments, features, history, popular_items, vectors
from ..store.deployments import DeploymentRecord, DeploymentWriter
from ..store.forgotten import BundleUsers
from ..store.replay import replay
from ..store.users import remove_all
from ..utils.files import claimed, written_aside
from ..utils.output_kinds import BUNDLE
from ..utils.progress import progress
from .recall import tune

if TYPE_CHECKING:
    from .feature_store import FeastGeneration

BLOCK = 4096  # users written together
QUERIES = 500  # users whose neighbours are looked up to measure recall
NEIGHBOURS = 100  # number for which recall is measured, unless requests ask for more
PRELOAD_SECONDS = 2.0  # time for running servers to load a deployment before it goes live
SETTLE_SECONDS = 0.1  # time for consumers of events to notice a deployment while no server runs yet


@dataclass
class DeployReport:
    """Report of one deployment.

    Attributes:
        generation: name of the generation, which is live now.
        fingerprint: fingerprint of the bundle.
        folder: name of the copy among the deployed bundles; it begins with the name of this Redis.
        users, items: number of those whose features were written.
        ef: neighbours that vector queries explore.
        recall: recall at that ef, against exact search.
        neighbours: number of neighbours for which recall is measured.
        replayed: number of users whose live events were applied to the new features.
        seconds: time of each step.
    """

    generation: str
    fingerprint: str
    folder: str
    users: int
    items: int
    ef: int = 0
    recall: float = 0.0
    neighbours: int = 0
    replayed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the time of the block."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def deploy(bundle: Bundle, client: redis.Redis, settings: Settings) -> DeployReport:
    """Write a bundle as a new generation and make it live; the previous one expires after the grace time.

    Args:
        bundle: bundle to deploy; every file is compared with its checksum.
        client: a connected Redis.
        settings: sections ``deploy``, ``batch`` (number of popular items), ``online`` (neighbours, business rules) and
            ``data``.

    Raises:
        BundleError: the bundle is damaged.
        ConfigError: the business rules do not fit the bundle.
        DataError: the bundle cannot be copied to the folder of deployed bundles.
        StoreError: Redis or Feast fails, or another deployment is being written.
    """
    with DeploymentWriter.begin(client, bundle.fingerprint, settings.deploy.grace) as writer, _tidy(writer, settings):
        counts = bundle.manifest.users, bundle.manifest.items
        report = DeployReport(writer.generation, bundle.fingerprint, writer.folder, *counts)
        with report.step("copy"):
            bundle = _copied(bundle, settings.deploy.models / writer.folder)
        Rules.of(bundle, settings.online).warn()
        people = BundleUsers(client, bundle.made, lambda user: remove_all(client, user))
        _write(bundle, client, settings, writer, report, people)
        with report.step("switch"):
            writer.switch()
        people.live()
    return report


def _write(
    bundle: Bundle,
    client: redis.Redis,
    settings: Settings,
    writer: DeploymentWriter,
    report: DeployReport,
    people: BundleUsers,
) -> None:
    """Write everything; the switch is the caller's."""
    generation, kinds = writer.generation, bundle.id_kinds
    feast: FeastGeneration | None = None
    if settings.deploy.feast:
        with report.step("feast"):
            from .feature_store import FeastGeneration

            feast = FeastGeneration(client, settings.data, generation, writer.project, bundle.schema, kinds)
            feast.materialize(bundle, people)
    with report.step("users"):
        average, queries, report.users = _write_users(bundle, client, settings, writer, people)
    with report.step("items"):
        items = bundle.items
        features.write_many(client, generation, "item", items.raw_ids.tolist(), _packed(items))
        best = slice(max(settings.batch.popular, settings.online.topk))
        popularity = bundle.popularity
        popular_items.write(client, generation, items.raw_ids[popularity.items[best] - 1], popularity.scores[best])
    with report.step("vectors"):
        attributes = vectors.attributes_of(items, bundle.schema)
        with progress("loading vectors", len(bundle.item_embeddings)) as advance:
            vectors.load(client, generation, bundle.item_embeddings, attributes, advance)
    with report.step("recall"):
        if not len(queries):
            queries = bundle.item_embeddings[:QUERIES]
        report.neighbours = max(NEIGHBOURS, settings.online.retrieved)
        report.ef, report.recall = tune(
            client, generation, bundle.item_embeddings, queries, report.neighbours, settings.deploy.recall
        )
    with report.step("live events"):
        _replay(bundle, client, generation)
    with report.step("preload"):
        writer.announce(
            DeploymentRecord(
                generation,
                bundle.fingerprint,
                report.ef,
                report.recall,
                kinds["user"],
                kinds["item"],
                feast is not None,
                average,
            )
        )
        time.sleep(SETTLE_SECONDS if deployments.live(client) is None else PRELOAD_SECONDS)
    with report.step("live events"):
        # again, with Feast: consumers of events write to this generation only since the announcement
        report.replayed = _replay(bundle, client, generation, feast)


def _copied(bundle: Bundle, target: Path) -> Bundle:
    """Copy of a bundle among the deployed ones: links to its files where the file system allows, else copies.

    An existing one stays unless it is damaged.
    """
    with claimed(target, BUNDLE, wait=True):  # the same bundle may be deployed to another Redis right now
        with suppress(BundleError):
            deployed = Bundle(target)
            if deployed.fingerprint == bundle.fingerprint:
                return deployed
        Bundle(bundle.path)
        with written_aside(target, BUNDLE) as aside:
            for name in bundle.files:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    (aside / name).hardlink_to((bundle.path / name).absolute())
                except OSError:  # another file system, or one without links
                    shutil.copyfile(bundle.path / name, aside / name)
    return Bundle(target, verify=False)


def _packed(entities: Entities) -> list[bytes]:
    return features.pack(entities.categorical, entities.numeric)


def _write_users(
    bundle: Bundle, client: redis.Redis, settings: Settings, writer: DeploymentWriter, people: BundleUsers
) -> tuple[np.ndarray, np.ndarray, int]:
    """Write features and histories of all users; returns their mean embedding float32[D], some embeddings
    float32[n, D], and the number of users written.
    """
    tower = bundle.user_tower()
    total = np.zeros(bundle.manifest.embedding_dim)
    count = bundle.manifest.users
    chosen = np.random.default_rng(0).choice(count, min(QUERIES, count), replace=False)
    queries, start, written = [], 0, 0
    with progress("writing users", count) as advance:
        for users, seen in bundle.users(BLOCK):
            embeddings = tower.embed(users.categorical, users.numeric)
            total += embeddings.sum(axis=0)
            queries.append(embeddings[chosen[(chosen >= start) & (chosen < start + len(users))] - start])
            start += len(users)
            with people.block(users.raw_ids) as kept:
                remaining = users.rows(kept)
                raw_ids = remaining.raw_ids.tolist()
                features.write_many(client, writer.generation, "user", raw_ids, _packed(remaining))
                lists = [seen[number] for number in (np.flatnonzero(kept) + 1).tolist()]
                history.write_many(client, writer.generation, raw_ids, lists, settings.deploy.history)
            written += len(remaining)
            writer.check()
            advance(len(users))
    mean = (total / (np.linalg.norm(total) or 1)).astype(np.float32)
    return mean, np.concatenate([np.empty((0, len(total)), np.float32), *queries]), written


def _replay(bundle: Bundle, client: redis.Redis, generation: str, feast: FeastGeneration | None = None) -> int:
    """Apply live events to the new features; returns the number of users who had any."""
    count = 0
    with progress("applying live events") as advance:
        for users in replay(client, generation, bundle.schema, bundle.items.number_of, bundle.id_kinds):
            if feast is not None:
                feast.follow("user", users)
            count += len(users)
            advance(len(users))
    return count


@contextmanager
def _tidy(writer: DeploymentWriter, settings: Settings) -> Iterator[None]:
    """Remove leftovers of earlier deployments and, if this one fails, what it has written."""
    _remove_left_over(writer, settings)
    try:
        yield
    except BaseException:
        with suppress(StoreError):  # otherwise the next deployment does it
            writer.abandon()
            _remove_left_over(writer, settings)
        raise


def _remove_left_over(writer: DeploymentWriter, settings: Settings) -> None:
    """Remove the files of expired or interrupted deployments; files that another Redis may use stay."""
    gone, used = writer.left_over()
    writer.sweep(gone, used)
    for generation, folder in gone.items():
        project = writer.files(generation, folder)
        if project is not None:
            shutil.rmtree(settings.data / "feast" / project, ignore_errors=True)
            if folder not in used:
                shutil.rmtree(settings.deploy.models / folder, ignore_errors=True)
        writer.forget(generation)
