"""Deployments: the generation of features, vectors and models that serves, and the contents of each generation.

::

    deploy:live           name of the live generation
    deploy:next           complete generation that is about to go live, loaded by servers meanwhile
    deploy:generations    hash: generation -> writing | live | retiring
    deploy:lock           owner of the running deployment
    deploy:id             random name of this Redis' run of generations: owner of their files on disk
    deploy:folders        hash: generation -> name of the folder with the models, of every generation that may still
                          have files on disk
    deploy:{generation}   hash: owner and fingerprint (name the folder with the models), ef, recall, users, items,
                          feast, average_user

A generation's packed features, deployed histories, vector set with its changes, popular items and Feast's own keys
expire with it.

Several Redis may share a data folder. Each removes only files that bear its own ``deploy:id``, created by the first
deployment. An emptied Redis gets a new one; one restored from its backup keeps the former one.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import numpy as np
import redis

from ..dataset.schema import IdKind
from ..errors import StoreError
from . import features, history, popular_items, vectors
from .connection import store_errors
from .generations import GenerationWriter

LIVE, NEXT, GENERATIONS, FOLDERS = "deploy:live", "deploy:next", "deploy:generations", "deploy:folders"
ID = "deploy:id"


@dataclass(frozen=True)
class DeploymentRecord:
    """Data that a server needs to know about a deployment.

    Attributes:
        generation: its name.
        fingerprint: fingerprint of the bundle.
        ef: number of neighbours that vector queries explore.
        recall: recall of the vector index at that ef, against exact search.
        user_ids, item_ids: kind of the raw ids.
        feast: whether the features are also in Feast's layout.
        average_user: float32[D], unit embedding used for unknown users.
        owner: ``deploy:id`` of the Redis; empty for a deployment by a version without owners.
    """

    generation: str
    fingerprint: str
    ef: int
    recall: float
    user_ids: IdKind
    item_ids: IdKind
    feast: bool
    average_user: np.ndarray
    owner: str = ""

    @property
    def folder(self) -> str:
        """Name of the bundle's folder among the deployed ones."""
        return _folder(self.owner, self.fingerprint)

    @property
    def project(self) -> str:
        """Name of the project in Feast; the keys that Feast writes into Redis end with it."""
        return _project(self.generation, self.owner)

    @property
    def legacy(self) -> bool:
        """Whether an earlier version deployed it, which put the bundle's histories among the live events."""
        return not self.owner


def _folder(owner: str, fingerprint: str) -> str:
    return f"{owner}-{fingerprint}" if owner else fingerprint


def _project(generation: str, owner: str) -> str:
    return f"recsys_{owner}_{generation}" if owner else f"recsys_{generation}"


def live(client: redis.Redis) -> str | None:
    """The generation that serves; None before the first deployment."""
    return _name(client, LIVE)


def live_or_refuse(client: redis.Redis) -> str:
    """The generation that serves.

    Raises:
        StoreError: there is none yet, or Redis fails.
    """
    generation = live(client)
    if generation is None:
        raise StoreError("this Redis holds no deployment yet: make one with 'recsys deploy'")
    return generation


def upcoming(client: redis.Redis) -> str | None:
    """The generation that is about to go live."""
    return _name(client, NEXT)


def _name(client: redis.Redis, pointer: str) -> str | None:
    with store_errors(client):
        name: Any = client.get(pointer)
    return None if name is None else name.decode()


def known(client: redis.Redis) -> list[str]:
    """Generations whose features follow live events: the live one, and one being written."""
    with store_errors(client):
        states: Any = client.hgetall(GENERATIONS)
    return sorted((name.decode() for name, state in states.items() if state != b"retiring"), key=int)


def exists(client: redis.Redis, generation: str) -> bool:
    """Whether a generation is still in Redis; False once it has expired.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client):
        return bool(client.exists(f"deploy:{generation}"))


def read(client: redis.Redis, generation: str) -> DeploymentRecord:
    """Read the record of a complete deployment.

    Raises:
        StoreError: the record is missing or has expired, or Redis fails.
    """
    names = ("fingerprint", "ef", "recall", "users", "items", "feast", "average_user")
    with store_errors(client):
        *values, owner = cast(list[Any], client.hmget(f"deploy:{generation}", [*names, "owner"]))
    if None in values:
        raise StoreError(f"deployment {generation} is not in this Redis, or not complete: deploy with 'recsys deploy'")
    fingerprint, ef, recall, users, items, feast, average_user = values
    return DeploymentRecord(
        generation,
        fingerprint.decode(),
        int(ef),
        float(recall),
        cast(IdKind, users.decode()),
        cast(IdKind, items.decode()),
        feast == b"1",
        np.frombuffer(average_user, "<f4"),
        (owner or b"").decode(),
    )


class DeploymentWriter(GenerationWriter):
    """Writes one deployment and makes it live. The next run removes an incomplete one.

    Attributes:
        owner: ``deploy:id`` of the Redis.
        folder: name of the bundle's folder among the deployed ones.
        project: name of the project in Feast.
    """

    prefix, resumes = "deploy", False
    owner = folder = project = ""

    @staticmethod
    def keys(generation: str) -> tuple[list[str], list[str | bytes]]:
        names = [f"deploy:{generation}", popular_items.key(generation)]
        names += [vectors.key(generation), vectors.changes_key(generation), vectors.latest_key(generation)]
        # Feast's keys: the number 1 of join keys, the type code 2 of text, the key and its value, then the project
        projects = [b"\x01\0\0\0\x02\0\0\0*" + _project(generation, owner).encode() for owner in ("", "*")]
        return names, [features.pattern(generation), history.pattern(generation), *projects]

    def _take_up(self, fingerprint: str) -> None:
        super()._take_up(fingerprint)
        self._client.set(ID, secrets.token_hex(8), nx=True)
        owner: Any = self._client.get(ID)
        self.owner = owner.decode()
        self.folder = _folder(self.owner, fingerprint)
        self.project = _project(self.generation, self.owner)
        self._client.hset(f"deploy:{self.generation}", "owner", self.owner)
        self._client.hset(FOLDERS, self.generation, self.folder)

    def announce(self, record: DeploymentRecord) -> None:
        """Store the record and let servers load the complete deployment before it goes live.

        Raises:
            StoreError: Redis fails.
        """
        values: dict[Any, Any] = {
            "ef": record.ef,
            "recall": record.recall,
            "users": record.user_ids,
            "items": record.item_ids,
            "feast": int(record.feast),
            "average_user": np.asarray(record.average_user, "<f4").tobytes(),
        }
        with store_errors(self._client), self._client.pipeline() as pipe:
            pipe.hset(f"deploy:{self.generation}", mapping=values)
            pipe.set(NEXT, self.generation)
            pipe.execute()

    def queue_switch(self, pipe: redis.client.Pipeline) -> Any:
        """Queue the switch, and clear the announcement."""
        old = super().queue_switch(pipe)
        pipe.delete(NEXT)
        return old

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop writing. A generation that did not go live is removed; if Redis is gone, by the next run."""
        with suppress(StoreError):
            self.abandon()
        super().__exit__(kind, error, trace)

    def abandon(self) -> None:
        """Remove this generation unless it is live.

        Raises:
            StoreError: Redis fails.
        """
        if not self.switched:
            with store_errors(self._client):
                # the answer to the switch may have been lost
                if self._client.get(LIVE) != self.generation.encode():
                    self._discard(self.generation)

    def _discard(self, generation: str) -> None:
        if self._client.get(NEXT) == generation.encode():
            self._client.delete(NEXT)
        super()._discard(generation)

    def left_over(self) -> tuple[dict[str, str], set[str]]:
        """Expired generations with the names of their folders, and the names of folders still in use.

        Raises:
            StoreError: Redis fails.
        """
        with store_errors(self._client):
            folders: Any = self._client.hgetall(FOLDERS)
            names = {generation.decode(): folder.decode() for generation, folder in folders.items()}
            gone = {
                generation: folder
                for generation, folder in names.items()
                if not self._client.exists(f"deploy:{generation}")
            }
        return gone, {folder for generation, folder in names.items() if generation not in gone}

    def files(self, generation: str, folder: str) -> str | None:
        """Name of a generation's project in Feast if its files bear this Redis' name, else None."""
        return _project(generation, self.owner) if folder.startswith(f"{self.owner}-") else None

    def sweep(self, gone: dict[str, str], used: set[str]) -> None:
        """Remove leftovers of an earlier version's deployments among live events, once the last of these is gone.

        Args:
            gone, used: result of ``left_over``.

        Raises:
            StoreError: Redis fails.
        """
        if any("-" not in folder for folder in gone.values()) and all("-" in folder for folder in used):
            history.remove_positions(self._client)

    def forget(self, generation: str) -> None:
        """Note that an expired generation has no files any more, and remove keys that did not expire with it.

        Raises:
            StoreError: Redis fails.
        """
        with store_errors(self._client):
            self._discard(generation)
            self._client.hdel(FOLDERS, generation)
