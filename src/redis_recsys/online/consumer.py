"""Consumer of live events: takes them from the stream in Redis and applies each to the data that requests read.

Any number of consumers may run, on any machine that has the folder of deployed bundles. The events of one that dies go
to the others, or to the next one. When Redis fails, a consumer retries until it is stopped.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import redis

from ..bundle.bundle import Bundle
from ..config import Settings
from ..dataset.entities import Numbers, int64
from ..dataset.schema import IdKind, Schema, Side
from ..errors import RecsysError, StoreError
from ..store import deployments
from ..store.deployments import DeploymentRecord
from ..store.events import Event, Group, Placement
from ..store.forgotten import forgotten_at, guarded, marks
from ..store.users import remove_all

if TYPE_CHECKING:
    from .feature_store import FeastGeneration

log = logging.getLogger(__name__)

WAIT_SECONDS = 0.5  # wait for an event before checking whether to stop
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds after a failure; doubled each time


@dataclass(frozen=True)
class GenerationRows:
    """Packed user rows of one generation, as far as the consumer needs to know them.

    Attributes:
        record: record of the deployment.
        schema: schema of its bundle.
        numbers: raw item ids -> entity numbers.
        feast: the same rows in Feast; None if they are not kept there.
    """

    record: DeploymentRecord
    schema: Schema
    numbers: Numbers
    feast: FeastGeneration | None

    @classmethod
    def of(cls, client: redis.Redis, record: DeploymentRecord, settings: Settings) -> GenerationRows:
        """Read what is needed from the deployed bundle.

        Raises:
            BundleError, DataError: the bundle is missing or damaged.
        """
        bundle = Bundle(settings.deploy.models / record.folder, verify=False)
        feast = None
        if record.feast and settings.deploy.feast and bundle.schema.history is not None:
            from .feature_store import FeastGeneration

            kinds: dict[Side, IdKind] = {"user": record.user_ids, "item": record.item_ids}
            feast = FeastGeneration(client, settings.data, record.generation, record.project, bundle.schema, kinds)
        return cls(record, bundle.schema, Numbers(bundle.raw_ids("item")), feast)

    def place(self, events: list[Event]) -> list[Placement | None]:
        """Placement of each event's item; None without a history column, or if the models do not know the item."""
        column = self.schema.history
        if column is None:
            return [None] * len(events)
        texts = [event.item for event in events]
        if self.record.item_ids == "int":
            ids = [int64(text) for text in texts]
            raw = np.array([raw_id or 0 for raw_id in ids], np.int64)
            numbers = np.where([raw_id is not None for raw_id in ids], self.numbers(raw), 0)
        else:
            numbers = self.numbers(np.array(texts, object))
        length = 4 * sum(self.schema.widths("user"))
        first = self.schema.slots(column).start
        return [
            Placement(self.record.generation, number, first, column.width, length)
            if 0 < number < (column.cardinality or 0)
            else None
            for number in numbers.tolist()
        ]

    def follow(self, users: set[str]) -> None:
        """Write the current rows of these users to Feast, too.

        Raises:
            StoreError: Redis or Feast fails; repeating the call does no harm.
        """
        if self.feast is not None:
            numbers = self.record.user_ids == "int"
            ids = [int64(user) for user in users] if numbers else list(users)
            self.feast.follow("user", [user for user in ids if user is not None])


class Consumer:
    """Applies live events until it is stopped.

    Every event updates the user's history and counters, and moves the item to the front of the history column in each
    generation's packed row. An item that a generation does not know leaves its rows unchanged.

    Attributes:
        name: name in the consumer group.
        applied, refused: number of events so far; those delivered twice count twice.
        trouble: reason why nothing is applied at present; None while all is well.
        ready: set once the deployments have been opened and Feast, which takes seconds to import, is loaded.

    Example:
        >>> with Consumer(client, load_settings()):  # doctest: +SKIP
        ...     publish(client, 405, 50, "click")
    """

    def __init__(self, client: redis.Redis, settings: Settings, name: str | None = None) -> None:
        """
        Args:
            client: a connected Redis.
            settings: section ``deploy`` and ``data``.
            name: name of this consumer. With the name of an earlier one it takes over its events at once; two must
                never run under one name. Default: a new one.
        """
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.applied = self.refused = 0
        self.trouble: str | None = None
        self._client, self._settings = client, settings
        self._group = Group(client, self.name)
        timeout = client.get_connection_kwargs().get("socket_timeout") or 2 * WAIT_SECONDS
        self._wait_ms = int(1000 * min(WAIT_SECONDS, timeout / 2))
        self._rows: dict[tuple[str, str], GenerationRows] = {}
        self._live: DeploymentRecord | None = None
        self._unchecked: dict[str, int] = {}  # users of an interrupted step -> time when they had been forgotten
        self.ready = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Apply events until ``stop`` is called from another thread."""
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            trouble = self._attempt()
            if trouble != self.trouble:
                log.warning("live events: %s", f"waiting, since {trouble}" if trouble else "applied again")
            self.trouble = trouble
            if trouble is None:
                pause = FIRST_PAUSE
            else:
                self._group.reset()
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _attempt(self) -> str | None:
        """Run one step; returns the reason if it failed."""
        try:
            self.step()
        except RecsysError as error:
            return str(error)
        except Exception as error:  # whatever it is, the events wait until the cause is fixed
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        return None

    def start(self) -> None:
        """Run in a thread."""
        self._thread = threading.Thread(target=self.run, name=f"consumer {self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the current batch and end, within about half a second if Redis answers."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Consumer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def step(self) -> None:
        """Wait for events, apply them and acknowledge them.

        Raises:
            StoreError: Redis fails.
            BundleError, DataError: a deployed bundle cannot be read here.
        """
        self._check_again()
        events = self._group.read(self._wait_ms)
        self._refresh()  # also without events, so that a new bundle is usually opened while nothing waits
        self.ready.set()
        if not events:
            return
        users = list({event.user for event in events})
        with guarded(self._client, users, lambda user: remove_all(self._client, user)) as before:
            since = self._unchecked = {user: forgotten_at(mark) for user, mark in zip(users, before, strict=True)}
            valid = [event for event in events if event.accepted > since[event.user]]
            good, rejected = self._apply(valid)
        self._unchecked = {}
        self._group.refuse(rejected)
        self._group.acknowledge([*good, *(event for event in events if event.accepted <= since[event.user])])
        self.applied += len(good)
        self.refused += len(rejected)

    def _check_again(self) -> None:
        """Remove users who were forgotten while Redis failed in the middle of a step."""
        for user, mark in zip(self._unchecked, marks(self._client, list(self._unchecked)), strict=True):
            if forgotten_at(mark) != self._unchecked[user]:
                remove_all(self._client, user)
        self._unchecked = {}

    def _apply(self, events: list[Event]) -> tuple[list[Event], list[tuple[Event, str]]]:
        """Apply events; returns those applied, and those rejected with the reasons."""
        rejected = [(event, reason) for event in events if (reason := self._objection(event)) is not None]
        good = [event for event in events if self._objection(event) is None] if rejected else events
        places = [rows.place(good) for rows in self._rows.values()]
        placements = [[p for p in of_event if p is not None] for of_event in zip(*places, strict=True)]
        rejected += self._group.apply(good, placements or [[]] * len(good), self._settings.deploy.history)
        for rows in self._rows.values():
            rows.follow({event.user for event in good})
        rejected_ids = {event.id for event, _ in rejected}
        return [event for event in good if event.id not in rejected_ids], rejected

    def _refresh(self) -> None:
        """Follow deployments: open bundles of new generations, drop those no longer read."""
        live = deployments.live(self._client)
        rows = {}
        self._live = None
        for generation in deployments.known(self._client):
            try:
                record = deployments.read(self._client, generation)
            except StoreError:
                if generation == live:
                    raise
                continue  # still being written: its deployment takes these events from the histories
            if generation == live:
                self._live = record
            key = generation, record.folder
            rows[key] = self._rows.get(key) or GenerationRows.of(self._client, record, self._settings)
        self._rows = rows

    def _objection(self, event: Event) -> str | None:
        """Reason why an event cannot belong to the live catalogue, if there is one."""
        if self._live is not None:
            for field, text, kind in (
                ("user", event.user, self._live.user_ids),
                ("item", event.item, self._live.item_ids),
            ):
                if kind == "int" and int64(text) is None:
                    return f"{field} {text[:40]!a} is not an integer as the ids of the live deployment are"
        return None
