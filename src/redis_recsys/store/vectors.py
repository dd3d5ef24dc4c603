"""Item embeddings of a generation in a Redis vector set, and the stream of its changes since.

::

    items:{generation}           vector set: entity number as decimal text -> embedding, with attributes as JSON;
                                 missing while it holds no item
    items:{generation}:changes   stream of items put (item, embedding) and removed (item) since the set was loaded, only
                                 the last change of each item; it exists, even empty, as long as the generation
    items:{generation}:latest    hash: item -> id of its entry in the stream

The set holds the vectors unquantised (``NOQUANT``): 8-bit ones take a sixth less memory, but queries must explore more
neighbours for the same recall, and take a third more time. Queries run in the main thread of Redis
(``NOTHREAD``): each takes a few tenths of a millisecond, and handing it to a thread costs two thirds more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import orjson
import redis

from ..dataset.entities import RAW_ID, Entities
from ..dataset.schema import Schema
from ..errors import StoreError
from ..retrieval.index import Change
from .connection import store_errors

# Neighbours per node, and neighbours explored when one is added. Among 8 to 64 and 100 to 400, queries at recall 0.97
# are fastest from these on; more only costs memory and loading time.
LINKS, BUILD_EF = 32, 200
PIPELINE = 250  # commands sent before their answers are read
PAGE = 1000  # changes read at a time

GROWTH = 4  # factor by which more neighbours are requested if too few of them may be shown
ABSENT = -2  # PEXPIRETIME of a missing key


def key(generation: str) -> str:
    """Key of the vector set of a generation."""
    return f"items:{generation}"


def changes_key(generation: str) -> str:
    """Key of the stream of changes to the vector set."""
    return f"items:{generation}:changes"


def latest_key(generation: str) -> str:
    """Key of the hash with each item's position in the stream of changes."""
    return f"items:{generation}:latest"


def load(
    client: redis.Redis,
    generation: str,
    embeddings: np.ndarray,
    attributes: Iterable[bytes],
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Fill the vector set of a generation that is not live yet, on one connection.

    Redis adds vectors in its main thread, so more connections would not help.

    Args:
        client: a connected Redis.
        generation: the generation.
        embeddings: float32[n, D], unit vectors; row i belongs to item i + 1.
        attributes: JSON of each item, n times.
        advance: called with the number of items written since the last call.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client):
        client.unlink(
            key(generation), changes_key(generation)
        )  # VADD to the remains of an earlier attempt would not last
        rows = enumerate(zip(embeddings, attributes, strict=True), 1)
        while block := list(islice(rows, PIPELINE)):
            with client.pipeline(transaction=False) as pipe:
                for item, (embedding, document) in block:
                    _add(pipe, generation, item, embedding, document)
                pipe.execute()
            advance(len(block))
        # an empty stream, so that it expires with the set even if nothing ever changes
        client.xadd(changes_key(generation), {"item": 0}, maxlen=0, approximate=False)


def _add(pipe: Any, generation: str, item: int, embedding: np.ndarray, attributes: bytes) -> None:
    vector = np.asarray(embedding, "<f4").tobytes()
    options = ("NOQUANT", "EF", BUILD_EF, "SETATTR", attributes, "M", LINKS)
    pipe.execute_command("VADD", key(generation), "FP32", vector, str(item), *options)


def attributes_of(items: Entities, schema: Schema) -> Iterator[bytes]:
    """JSON of each item: its raw id, and every feature as the models see it, by column name."""
    slots = [(c.name, schema.slots(c), c.max_length) for c in schema.categorical("item")]
    names = [c.name for c in schema.numeric("item")]
    for raw, ids, numbers in zip(items.raw_ids.tolist(), items.categorical.tolist(), items.numeric, strict=True):
        document: dict[str, Any] = {RAW_ID: raw}
        document |= {name: ids[span] if several else ids[span.start] for name, span, several in slots}
        document |= dict(zip(names, numbers, strict=True))
        yield orjson.dumps(
            document, option=orjson.OPT_SERIALIZE_NUMPY
        )  # float32 is written with no more digits than it has


def put(client: redis.Redis, generation: str, item: int, embedding: np.ndarray, attributes: bytes) -> None:
    """Add an item or replace its embedding and attributes, and notify followers, in one transaction.

    Args:
        client: a connected Redis.
        generation: a generation whose vector set is loaded.
        item: entity number, possibly beyond the deployed catalogue.
        embedding: float32[D], unit vector.
        attributes: JSON.

    Raises:
        StoreError: the generation has no vector set (any more), or Redis fails.
    """

    def replace(pipe: Any) -> None:
        # Redis 8.2 writes VADD to its log and to replicas only if the element is new: an update would not last.
        pipe.execute_command("VREM", key(generation), str(item))
        _add(pipe, generation, item, embedding, attributes)

    blob = np.asarray(embedding, "<f4").tobytes()
    _change(client, generation, {"item": item, "embedding": blob}, replace)


def remove(client: redis.Redis, generation: str, item: int) -> None:
    """Remove an item from the vector set and notify followers, in one transaction; it may be gone already.

    Raises:
        StoreError: the generation has no vector set (any more), or Redis fails.
    """
    _change(client, generation, {"item": item}, lambda pipe: pipe.execute_command("VREM", key(generation), str(item)))


# Adds an entry (item, number, and perhaps embedding, vector) to the stream and removes the item's earlier one, so that
# the stream never has more entries than there are items.
NOTE = """
local id = redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', unpack(ARGV))
if id then
  local before = redis.call('HGET', KEYS[2], ARGV[2])
  if before then redis.call('XDEL', KEYS[1], before) end
  redis.call('HSET', KEYS[2], ARGV[2], id)
end
"""


def _change(client: redis.Redis, generation: str, fields: dict[Any, Any], queue: Callable[[Any], object]) -> None:
    stream, latest = changes_key(generation), latest_key(generation)

    def body(pipe: Any) -> None:
        expires = pipe.pexpiretime(stream)
        if expires == ABSENT:  # a new set would never expire
            raise _missing(generation)
        pipe.multi()
        queue(pipe)
        pipe.eval(NOTE, 2, stream, latest, *chain.from_iterable(fields.items()))
        if expires > 0:  # these keys may be new: Redis keeps no empty set
            pipe.pexpireat(key(generation), expires)
            pipe.pexpireat(latest, expires)

    with store_errors(client):
        client.transaction(body, key(generation), stream)


def changes(client: redis.Redis, generation: str, after: str) -> tuple[str, list[Change]]:
    """Read the last change of each item in the vector set, oldest first, without waiting for more.

    Args:
        client: a connected Redis.
        generation: the generation.
        after: id from the previous call; ``0`` for all changes since the set was loaded.

    Returns:
        The id for the next call, and the changes; none for an expired generation.

    Raises:
        StoreError: Redis fails.
    """
    collected: list[Change] = []
    while True:
        with store_errors(client):
            entries: Any = client.xrange(changes_key(generation), f"({after}", "+", count=PAGE)
        for _, fields in entries:
            vector = fields.get(b"embedding")
            collected.append(Change(int(fields[b"item"]), None if vector is None else np.frombuffer(vector, "<f4")))
        if entries:
            after = entries[-1][0].decode()
        if len(entries) < PAGE:
            return after, collected


def any_removed(client: redis.Redis, generation: str) -> bool:
    """Whether an item has been removed from the vector set and not added again since.

    Raises:
        StoreError: Redis fails.
    """
    return any(change.embedding is None for change in changes(client, generation, "0")[1])


class RedisIndex:
    """Approximate search in the vector set of a generation. Threads may share one."""

    def __init__(self, client: redis.Redis, generation: str, ef: int, allowed: np.ndarray | None = None) -> None:
        """
        Args:
            client: client of the Redis that holds the set.
            generation: the generation.
            ef: neighbours explored by each query, from :func:`redis_recsys.online.recall.tune`.
            allowed: items that may be found, bool[n + 1] by entity number, which excludes items added later.
                Default: all.
        """
        self._client, self._gen, self._ef, self._allowed = client, generation, ef, allowed
        self._times = 1.0 if allowed is None else (len(allowed) - 1) / max(int(allowed[1:].sum()), 1)

    def search(self, queries: np.ndarray, count: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`redis_recsys.retrieval.index.VectorIndex`; one pipelined round trip, more if many are barred."""
        return self._nearest(queries, count, exclude)[:2]

    def search_with_attributes(
        self, queries: np.ndarray, count: int, exclude: np.ndarray, schema: Schema
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Search, and return the packed features that the set holds as attributes of the items.

        Args:
            queries, count, exclude: see ``search``.
            schema: schema that the attributes were made with.

        Returns:
            items int32[b, count], similarities float32[b, count], categorical int32[b, count, Ci] and numeric
            float32[b, count, Fi]; all 0 where there are fewer items.

        Raises:
            StoreError: Redis fails, has no such vector set, or an item lacks attributes of the schema.
        """
        items, similarity, picks, values = self._nearest(queries, count, exclude, "WITHATTRIBS")
        slots = [(c.name, schema.slots(c)) for c in schema.categorical("item")]
        names = [c.name for c in schema.numeric("item")]
        categorical = np.zeros((*items.shape, schema.categorical_width("item")), np.int32)
        numeric = np.zeros((*items.shape, len(names)), np.float32)
        try:
            for row, column in zip(*np.nonzero(items), strict=True):
                document = orjson.loads(values[row][picks[row, column]][1])
                for name, span in slots:
                    categorical[row, column, span] = document[name]
                numeric[row, column] = [document[name] for name in names]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"item {items[row, column]} of vector set {key(self._gen)} lacks attributes of the schema "
                f"({error!r}): deploy again"
            ) from error
        return items, similarity, categorical, numeric

    def _nearest(
        self, queries: np.ndarray, count: int, exclude: np.ndarray, *options: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[Any]]]:
        """Search, and return each item's position in its query's answer, and the values of each query's answer."""
        requested = int(np.ceil(count * self._times))
        while True:
            answers = self._ask(queries, requested, exclude, *options)
            values = [list(answer.values()) for answer in answers]
            scores = [[score for score, _ in row] for row in values] if options else values
            items, similarity, picks = _first(answers, scores, count, exclude, self._allowed)
            asked = requested + np.count_nonzero(exclude, axis=1)
            whole = np.array([len(answer) for answer in answers], int) < asked  # there are no more items
            if (whole | items.all(axis=1)).all():
                return items, similarity, picks, values
            requested *= GROWTH

    def _ask(self, queries: np.ndarray, count: int, exclude: np.ndarray, *options: str) -> list[dict[bytes, Any]]:
        """Query the nearest items with their scores and attributes, enough of them to drop the excluded ones."""
        # Not redis-py's vsim, which parses the JSON of every item, although few are used: 16 queries for 100 items each
        # take 6.8 ms of CPU time with it and 1.6 ms without (AMD EPYC).
        with store_errors(self._client), self._client.pipeline(transaction=False) as pipe:
            for query, excluded in zip(
                np.asarray(queries, "<f4"), np.count_nonzero(exclude, axis=1).tolist(), strict=True
            ):
                requested, explored = count + excluded, max(self._ef, count) + excluded
                pipe.execute_command(
                    "VSIM", key(self._gen), "FP32", query.tobytes(), "WITHSCORES", *options, "COUNT", requested,
                    "EF", explored, "NOTHREAD",
                )  # fmt: skip
            answers = [_by_item(answer, len(options)) for answer in pipe.execute()]
            # Redis answers nothing for a missing key, and keeps no empty sets
            if not all(answers) and not self._client.exists(changes_key(self._gen)):
                raise _missing(self._gen)
        return answers


def _by_item(answer: Any, attributes: int) -> dict[bytes, Any]:
    """Answer to VSIM in the form of protocol 3; protocol 2 gives a flat list with scores as text."""
    if isinstance(answer, dict):
        return answer
    if attributes:
        return {item: (float(score), document) for item, score, document in zip(*[iter(answer)] * 3, strict=True)}
    return dict(zip(answer[::2], map(float, answer[1::2]), strict=True))


def _first(
    answers: Sequence[dict[bytes, Any]],
    scores: Sequence[list[float]],
    count: int,
    exclude: np.ndarray,
    allowed: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First ``count`` items of each answer that may be shown, their cosines, and their positions in the answer."""
    width = max([count, *map(len, answers)])
    candidates, score = np.zeros((len(answers), width), np.int32), np.zeros((len(answers), width), np.float32)
    for row, (answer, values) in enumerate(zip(answers, scores, strict=True)):
        candidates[row, : len(answer)] = np.fromstring(b" ".join(answer), np.int32, sep=" ")
        score[row, : len(answer)] = values
    highest = candidates.max(initial=0)
    banned = np.zeros((len(answers), highest + 1), bool)
    if allowed is not None:
        banned[:, : len(allowed)] = ~allowed[: highest + 1]
        banned[:, len(allowed) :] = True
    np.put_along_axis(banned, np.where(exclude <= highest, exclude, 0), True, axis=1)
    banned[:, 0] = True
    dropped = np.take_along_axis(banned, candidates, axis=1)
    picks = np.argsort(dropped, axis=1, kind="stable")[:, :count]
    items = np.take_along_axis(np.where(dropped, 0, candidates), picks, axis=1)
    cosine = 2 * np.take_along_axis(score, picks, axis=1) - 1  # Redis returns (1 + cosine) / 2
    return items, np.where(items > 0, cosine, 0).astype(np.float32), picks


def _missing(generation: str) -> StoreError:
    return StoreError(
        f"vector set {key(generation)} is not in this Redis: it has expired, or deploy with 'recsys deploy'"
    )
