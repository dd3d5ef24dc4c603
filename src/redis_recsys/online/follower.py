"""Follower of deployments: loads the next one in the background and switches to the live one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import redis

from ..config import Settings
from ..errors import BundleError, ConfigError, DataError, RecsysError, StoreError
from ..store import deployments
from .fallback import popular_answer
from .loaded_deployment import Deployment
from .stages.stage import Stage

TICK = 0.1  # seconds between reads of the pointer to the live deployment
RETRY = 2.0  # seconds before a failure in the background is retried
KEPT = 3  # deployments in memory: the live one, the next, and the previous one, which a staged request may still need

log = logging.getLogger(__name__)


@dataclass
class LoadedStages:
    """One deployment in memory, as far as a model needs it.

    Attributes:
        generation: name of the deployment.
        folder: folder of its bundle; empty if Redis did not answer.
        popular: fallback answer by column, each [k]; empty if this model produces no answers.
        stages: stages in order; None if the deployment could not be loaded.
        since: time of loading, on the monotonic clock.
        record: its record; None if Redis did not answer.
        deployment: the deployment with its bundle; None if the bundle cannot be read.
    """

    generation: str
    folder: str
    popular: dict[str, np.ndarray]
    stages: list[Stage] | None
    since: float
    record: deployments.DeploymentRecord | None = None
    deployment: Deployment | None = None


class Follower:
    """Stages of one model for every deployment that requests may ask for.

    Attributes:
        live: deployment that answers new requests.
    """

    def __init__(
        self,
        stages: Sequence[type[Stage]],
        settings: Settings,
        client: redis.Redis,
        patient: redis.Redis,
        answers: bool,
    ) -> None:
        """Load the live deployment, and begin to follow.

        Args:
            stages: stages of the model, in order.
            settings: all settings.
            client: Redis for the stages, with the short timeout of requests.
            patient: Redis for this object, with the timeout of commands.
            answers: whether this model produces the answers, and so needs a fallback.

        Raises:
            StoreError: Redis fails, or nothing is deployed.
            ConfigError: settings contradict each other.
        """
        self._stages, self._settings, self._answers = stages, settings, answers
        self._client, self._patient = client, patient
        self._loaded: dict[str, LoadedStages] = {}
        self._loading = threading.Lock()
        self._id_kinds: tuple[str, str] | None = None  # of users and items, as declared to Triton at the start
        live = deployments.live_or_refuse(patient)
        self.live = self._loaded[live] = self._load(live, starting=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follows deployments", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join()

    def loaded(self, generation: str, retry: bool = False) -> LoadedStages:
        """One deployment, loaded on demand; without stages while Redis fails.

        Requests for a loaded one do not wait while another is being loaded.

        Args:
            generation: name of the deployment.
            retry: whether to load one without stages again; never set while a request waits.
        """
        loaded = self._loaded.get(generation)
        if loaded is not None and (loaded.stages is not None or not retry):
            return loaded
        with self._loading:
            loaded = self._loaded.get(generation)
            if loaded is None or (retry and loaded.stages is None and time.monotonic() - loaded.since > RETRY):
                try:
                    loaded = self._load(generation)
                except StoreError as error:
                    log.error("generation %s: %s", generation, error)
                    return LoadedStages(generation, "", self.live.popular, None, time.monotonic())
                self._loaded[generation] = loaded
                old = [name for name in self._loaded if name not in (generation, self.live.generation)]
                for name in old[: len(self._loaded) - KEPT]:
                    del self._loaded[name]
            return loaded

    def look(self) -> None:
        """Load announced deployments and switch to the live one; one that cannot be loaded changes nothing.

        Raises:
            StoreError: Redis fails.
        """
        live, upcoming = deployments.live(self._patient), deployments.upcoming(self._patient)
        if upcoming is not None:
            self._apply_changes(self._up_to_date(upcoming))
        if live is None:  # Redis has lost its data: no user is known any more, and no removed item
            self.live = replace(self.live, stages=None)
            with self._loading:
                self._loaded.clear()
        else:
            loaded = self._up_to_date(live)
            self._apply_changes(loaded)
            usable = self.live.stages is not None and deployments.exists(self._patient, self.live.generation)
            if loaded.stages is not None or not usable:
                self.live = loaded
            else:  # the previous one continues to serve
                self._apply_changes(self.live)

    def _follow(self) -> None:
        """Look repeatedly until told to stop; the thread survives every error."""
        pause = TICK
        while not self._stop.wait(pause):
            pause = TICK
            try:
                self.look()
            except RecsysError as error:
                log.warning("%s", error)
                pause = RETRY
            except Exception:
                log.exception("following deployments failed")
                pause = RETRY

    def _load(self, generation: str, starting: bool = False) -> LoadedStages:
        record = deployments.read(self._patient, generation)
        loaded = LoadedStages(generation, record.folder, {}, None, time.monotonic(), record)
        try:
            kinds = record.user_ids, record.item_ids
            if kinds != (self._id_kinds or kinds):
                raise ConfigError("its ids have another type than when this server started: start it again")
            self._id_kinds = kinds
            loaded.deployment = Deployment(record, self._settings)
            loaded.stages = [stage(loaded.deployment, self._settings.online, self._client) for stage in self._stages]
        except (BundleError, ConfigError, DataError) as error:
            if starting and isinstance(error, ConfigError):  # reported to whoever starts the server
                raise
            log.error("generation %s cannot be served: %s", generation, error)
        self._apply_changes(loaded)
        self._refresh_fallback(loaded)
        return loaded

    def _up_to_date(self, generation: str) -> LoadedStages:
        """A deployment, reloaded if loading it failed or if its name now belongs to another one.

        A Redis that has lost its data counts generations from 1 again.
        """
        loaded = self.loaded(generation, retry=True)
        if loaded.stages is not None and deployments.read(self._patient, generation).folder != loaded.folder:
            self._loaded.pop(generation, None)
            loaded = self.loaded(generation)
        return loaded

    def _apply_changes(self, loaded: LoadedStages) -> None:
        """Hand the stages the vectors added and removed since the last look."""
        changes = loaded.deployment.follow(self._patient) if loaded.deployment is not None else []
        if changes:
            for stage in loaded.stages or ():
                stage.follow(changes)
            self._refresh_fallback(loaded)

    def _refresh_fallback(self, loaded: LoadedStages) -> None:
        if self._answers:
            text = self._id_kinds is not None and self._id_kinds[1] == "str"
            loaded.popular = popular_answer(
                self._settings.online, text, self._patient, loaded.record, loaded.deployment
            )
