"""The online pipeline: which stages there are, how they are shared out among models, and what runs them.

The runner owns what is the same for every stage: the check that every input is there, the time each takes, the
answer when Redis fails (popular items, marked ``degraded``), and the change from one deployment to the next. A
request is answered by one deployment from its first stage to its last.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..config import OnlineSettings, Settings
from ..errors import BundleError, ConfigError, DataError, RecsysError, ServingError, StoreError
from ..store import deployments, popular, vectors
from ..store.connection import check, client_of
from .loaded_deployment import Deployment
from .stages.candidates import Candidates, CandidatesWithFeatures
from .stages.feast_features import ItemFeaturesFromFeast, UserFeaturesFromFeast
from .stages.filter import Filter
from .stages.item_features import ItemFeatures, ItemFeaturesInMemory
from .stages.ordering import Ordering
from .stages.ranking import Ranking, RankingOfFeatures
from .stages.stage import Columns, Field, Stage, stack
from .stages.user_embedding import UserEmbedding
from .stages.user_features import UserFeatures

USERS: dict[str, type[Stage]] = {"packed": UserFeatures, "feast": UserFeaturesFromFeast}
ITEMS: dict[str, tuple[type[Stage], ...]] = {
    "memory": (Candidates, Filter, ItemFeaturesInMemory, Ranking),
    "packed": (Candidates, Filter, ItemFeatures, RankingOfFeatures),
    "feast": (Candidates, Filter, ItemFeaturesFromFeast, RankingOfFeatures),
    "attributes": (CandidatesWithFeatures, Filter, RankingOfFeatures),
}
CONSOLIDATED = ("candidates", "filter", "item_features")  # that the partition ``consolidated`` puts into one model
STATUS = (Field("degraded", "bool"), Field("generation", "int64"))
OUTWARD = ("item_ids", "scores")
EXPLAINING = ("candidates", "similarity", "sources", "items", "probability", "position")
TICK = 0.1  # seconds between looks at the pointer to the live deployment
RETRY = 2.0  # seconds until what failed in the background is tried again
KEPT = 3  # deployments in memory: the live one, the next, and the one before, which a staged request may still need
COUNTED = {"candidates": "candidates", "filter": "items"}  # stage -> its column of items whose number is counted
BUCKETS = tuple(round(1e-5 * factor * 10**power, 6) for power in range(5) for factor in (1, 2, 5))  # 10 us to 0.5 s

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """One part of a partition: stages that run in one process.

    Attributes:
        name: of the model; the outermost is ``recommender``.
        stages: names, in order.
        inputs, outputs: columns that come from and go to other models or the client.
    """

    name: str
    stages: tuple[str, ...]
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]


def stages_of(settings: OnlineSettings) -> dict[str, type[Stage]]:
    """The stages by name, in order, in the alternatives that the settings choose."""
    stages: list[type[Stage]] = [USERS[settings.users], UserEmbedding, *ITEMS[settings.items], Ordering]
    return {stage.name: stage for stage in stages}


def models(settings: Settings, user_ids: str, item_ids: str) -> list[Model]:
    """How the stages are shared out among models, in order; the only or outermost one is ``recommender``.

    Every model after the first takes ``degraded`` and ``generation`` in, and every one hands ``degraded`` on.

    Args:
        settings: the partition, and the alternatives of the stages.
        user_ids, item_ids: type of the raw ids, ``int`` or ``str``.
    """
    stages = stages_of(settings.online)
    partition = settings.triton.partition
    if partition == "fused":
        groups = [("recommender", tuple(stages))]
    else:
        merged = CONSOLIDATED if partition == "consolidated" else ()
        groups = [
            (name, tuple(each for each in stages if each in merged) if name in merged else (name,))
            for name in stages
            if name not in merged[1:]
        ]
    ids = {"user": user_ids, "item": item_ids}
    outward = OUTWARD + (EXPLAINING if settings.triton.explain else ())
    result = []
    for place, (name, names) in enumerate(groups):
        here = [stages[each] for each in names]
        later = [stages[each] for _, rest in groups[place + 1 :] for each in rest]
        made = {field.name: field for stage in here for field in stage.outputs}
        read = {field.name: field for stage in here for field in stage.inputs if field.name not in made}
        wanted = {field.name for stage in later for field in stage.inputs} | set(outward)
        timings = [Field(f"us_{each}", "float32") for each in names if settings.triton.explain]
        degraded, generation = STATUS
        inputs = [*read.values(), *(STATUS if place else ())]
        outputs = [*(field for field in made.values() if field.name in wanted), degraded, *timings]
        if not place:
            outputs.append(generation)
        result.append(Model(name, names, *(tuple(_typed(f, ids) for f in each) for each in (inputs, outputs))))
    return result


def _typed(field: Field, ids: dict[str, str]) -> Field:
    return replace(field, dtype={"int": "int64", "str": "object"}[ids[field.dtype]]) if field.dtype in ids else field


class Timings:
    """How long stages took, as Prometheus histograms, and what came out; one thread adds, another reads."""

    def __init__(self, stages: Sequence[str]) -> None:
        self.counts = {stage: np.zeros(len(BUCKETS) + 1, np.int64) for stage in stages}
        self.seconds = dict.fromkeys(stages, 0.0)
        self.candidates = {stage: 0 for stage in stages if stage in COUNTED}
        self.requests = 0
        self.degraded = 0

    def add(self, stage: str, seconds: float) -> None:
        """One run of a stage."""
        self.counts[stage][bisect_left(BUCKETS, seconds)] += 1
        self.seconds[stage] += seconds


@dataclass
class _Loaded:
    """A deployment in memory; without stages if it could not be loaded."""

    generation: str
    folder: str  # of its bundle
    popular: dict[str, np.ndarray]  # what degraded requests are answered with, by column, each [k]
    stages: list[Stage] | None
    since: float
    record: deployments.DeploymentRecord | None = None
    deployment: Deployment | None = None  # where its bundle can be read


class Runner:
    """Runs some stages, those of one model, for whatever deployment is live; loads the next one beside requests."""

    def __init__(self, names: Sequence[str], settings: Settings) -> None:
        """Load the live deployment.

        Args:
            names: of the stages, in order.
            settings: of everything; Redis must be configured.

        Raises:
            StoreError: Redis fails, or nothing is deployed.
            ConfigError: settings that contradict each other.
        """
        stages = stages_of(settings.online)
        self._settings, self._stages = settings, [stages[name] for name in names]
        self._first, self._last = names[0] == next(iter(stages)), names[-1] == next(reversed(stages))
        self.timings = Timings(names)
        # a connection that Redis has closed meanwhile is made again at once; what takes too long is not tried again
        once = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        self._client = client_of(settings.redis, settings.online.timeout, once)
        self._patient = client_of(settings.redis, settings.redis.timeout, once)
        self._loaded: dict[str, _Loaded] = {}
        self._loading = threading.Lock()
        self._paused_until = 0.0
        self._kinds: tuple[str, str] | None = None  # of user and item ids, as the models were declared at the start
        check(self._patient)
        live = deployments.live_or_refuse(self._patient)
        self._live = self._loaded[live] = self._load(live, starting=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follows deployments", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following deployments."""
        self._stop.set()
        self._thread.join()
        self._client.close()
        self._patient.close()

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        """The outputs for b requests.

        Args:
            columns: the inputs, each [b, ...].

        Returns:
            Every output of the stages, ``degraded`` and ``generation`` as bool and int64 [b, 1], and, if answers are to
            be explained, per stage the microseconds that the batch spent in it, float32[b, 1], as ``us_<stage>``.

        Raises:
            ServingError: an input is missing.
        """
        if self._first:
            live, count = self._live, len(columns["user_id"])
            status = {
                "degraded": np.zeros((count, 1), bool),
                "generation": np.full((count, 1), int(live.generation), np.int64),
            }
            return self._run(live, {**columns, **status})
        of = columns["generation"][:, 0]
        generations = np.unique(of)
        rows = [np.flatnonzero(of == generation) for generation in generations]
        parts = [
            self._run(self._of(str(generation)), {name: column[at] for name, column in columns.items()})
            for generation, at in zip(generations, rows, strict=True)
        ]
        back = np.argsort(np.concatenate(rows), kind="stable")
        return {name: stack([part[name] for part in parts])[back] for name in parts[0]}

    def _run(self, loaded: _Loaded, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = len(columns["generation"])
        failed = loaded.stages is None or time.monotonic() < self._paused_until or columns["degraded"].all()
        if not failed:
            try:
                for stage in loaded.stages or ():
                    began = time.perf_counter()
                    columns |= self._checked(stage, columns)
                    seconds = time.perf_counter() - began
                    self.timings.add(stage.name, seconds)
                    if stage.name in COUNTED:
                        found = np.count_nonzero(columns[COUNTED[stage.name]])
                        self.timings.candidates[stage.name] += int(found)
                    if self._settings.triton.explain:
                        columns["us_" + stage.name] = np.full((count, 1), seconds * 1e6, np.float32)
            except StoreError as error:
                log.warning("%s: answering with popular items", error)
                if isinstance(error.__cause__, (redis.ConnectionError, redis.TimeoutError)):  # not just one key
                    self._paused_until = time.monotonic() + self._settings.online.pause
                failed = True
        if failed:
            self._fill(columns, count)
        if self._last:
            degraded = columns["degraded"]
            if degraded.any():
                for name, instead in loaded.popular.items():
                    columns[name] = np.where(degraded, instead, columns[name] if columns[name].shape[1] else instead)
                self.timings.degraded += int(degraded.sum())
            self.timings.requests += count
        return columns

    @staticmethod
    def _checked(stage: Stage, columns: Columns) -> dict[str, np.ndarray]:
        missing = [field.name for field in stage.inputs if field.name not in columns]
        if missing:
            raise ServingError(f"stage {stage.name} lacks its input {', '.join(missing)}: check the partition")
        return stage(columns)

    def _fill(self, columns: dict[str, np.ndarray], count: int) -> None:
        """Mark all requests degraded, and put empty columns where the stages made none."""
        columns["degraded"] = np.ones((count, 1), bool)
        for stage in self._stages:
            if self._settings.triton.explain:
                columns["us_" + stage.name] = np.zeros((count, 1), np.float32)
            for field in stage.outputs:
                dtype = field.dtype if field.dtype != "item" else object
                columns[field.name] = np.zeros((count, *(max(size, 0) for size in field.shape)), dtype)

    def _of(self, generation: str, mend: bool = False) -> _Loaded:
        """A deployment, loaded if need be; one without stages while Redis fails.

        Requests for one that is there do not wait while another is being loaded, nor try to ``mend`` one without
        stages: this is done beside them.
        """
        loaded = self._loaded.get(generation)
        if loaded is not None and (loaded.stages is not None or not mend):
            return loaded
        with self._loading:
            loaded = self._loaded.get(generation)
            if loaded is None or (mend and loaded.stages is None and time.monotonic() - loaded.since > RETRY):
                try:
                    loaded = self._load(generation)
                except StoreError as error:
                    log.error("generation %s: %s", generation, error)
                    return _Loaded(generation, "", self._live.popular, None, time.monotonic())
                self._loaded[generation] = loaded
                old = [name for name in self._loaded if name not in (generation, self._live.generation)]
                for name in old[: len(self._loaded) - KEPT]:
                    del self._loaded[name]
            return loaded

    def _load(self, generation: str, starting: bool = False) -> _Loaded:
        online, record = self._settings.online, deployments.read(self._patient, generation)
        loaded = _Loaded(generation, record.folder, {}, None, time.monotonic(), record)
        try:
            kinds = record.user_ids, record.item_ids
            if kinds != (self._kinds or kinds):
                raise ConfigError("its ids are of another type than when this server started: start it again")
            self._kinds = kinds
            loaded.deployment = Deployment(record, self._settings)
            loaded.stages = [stage(loaded.deployment, online, self._client) for stage in self._stages]
        except (BundleError, ConfigError, DataError) as error:
            if starting and isinstance(error, ConfigError):  # for whoever starts the server
                raise
            log.error("generation %s cannot be served: %s", generation, error)
        self._catch_up(loaded)
        self._take_popular(loaded)
        return loaded

    def _take_popular(self, loaded: _Loaded) -> None:
        """Get ready what degraded requests are answered with, if this model makes answers."""
        if self._last:
            loaded.popular = self._popular(loaded)

    def _popular(self, loaded: _Loaded) -> dict[str, np.ndarray]:
        """Popular items by column, each [k]; nothing that the business rules exclude or that has been removed."""
        online, record, k = self._settings.online, loaded.record, self._settings.online.topk
        text = self._kinds is not None and self._kinds[1] == "str"
        shown = {
            "item_ids": np.full(k, b"" if text else -1, object if text else np.int64),
            "scores": np.full(k, -np.inf, np.float32),
            "position": np.full(k, -1, np.int32),
        }
        if record is None or text != (record.item_ids == "str"):
            return shown
        if loaded.deployment is not None:
            best = loaded.deployment.popular
            raw_ids, scores = loaded.deployment.raw_items[best.items[:k]].tolist(), best.scores[:k].tolist()
        elif online.allow or online.deny or vectors.any_removed(self._patient, record.generation):
            return shown  # which may be shown, only the bundle tells
        else:
            items, scores = popular.read(self._patient, record.generation, k, record.item_ids)
            raw_ids = [raw.encode() if isinstance(raw, str) else raw for raw in items]
        shown["item_ids"][: len(raw_ids)] = raw_ids
        shown["scores"][: len(raw_ids)] = scores
        return shown

    def _follow(self) -> None:
        """Stay with what is deployed until told to stop; the thread outlives every error."""
        pause = TICK
        while not self._stop.wait(pause):
            pause = TICK
            try:
                self._look()
            except RecsysError as error:
                log.warning("%s", error)
                pause = RETRY
            except Exception:
                log.exception("following deployments failed")
                pause = RETRY

    def _look(self) -> None:
        """Load what is deployed and switch to what is live; a deployment that cannot be loaded changes nothing."""
        live, upcoming = deployments.live(self._patient), deployments.upcoming(self._patient)
        if upcoming is not None:
            self._catch_up(self._current(upcoming))
        if live is None:  # Redis has lost its data: nobody is known any more, nor what had been removed
            self._live = replace(self._live, stages=None)
            with self._loading:
                self._loaded.clear()
        else:
            loaded = self._current(live)
            self._catch_up(loaded)
            usable = self._live.stages is not None and deployments.exists(self._patient, self._live.generation)
            if loaded.stages is not None or not usable:
                self._live = loaded
            else:  # the one before goes on serving
                self._catch_up(self._live)

    def _catch_up(self, loaded: _Loaded) -> None:
        """Take over what was put into the vectors and removed since the last look."""
        changes = loaded.deployment.follow(self._patient) if loaded.deployment is not None else []
        if changes:
            for stage in loaded.stages or ():
                stage.follow(changes)
            self._take_popular(loaded)

    def _current(self, generation: str) -> _Loaded:
        """A deployment, mended if need be, and loaded again if its name is another one's now.

        A Redis that has lost its data counts generations from the start.
        """
        loaded = self._of(generation, mend=True)
        if loaded.stages is not None and deployments.read(self._patient, generation).folder != loaded.folder:
            self._loaded.pop(generation, None)
            loaded = self._of(generation)
        return loaded
