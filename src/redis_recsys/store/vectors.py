"""Item embeddings of a generation in a Redis vector set, and the stream of what has changed in it since.

::

    items:{generation}           vector set: entity number as decimal text -> embedding, with attributes as JSON; not
                                 there while it holds no item
    items:{generation}:changes   stream of what was put (item, embedding) and removed (item) since the set was loaded,
                                 the last change of each item alone; there, if empty, for as long as the generation
    items:{generation}:latest    hash: item -> id of its entry in the stream

The set holds the vectors as they are (``NOQUANT``): 8-bit ones take a sixth less memory, but need more neighbours
explored for the same recall, and a third more time for each query. Queries run in the main thread of Redis
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

# Neighbours per node, and neighbours explored when one is added. Of 8 to 64 and 100 to 400, queries at recall 0.97 are
# fastest from these on; more only costs memory and loading time.
LINKS, BUILD_EF = 32, 200
PIPELINE = 250  # commands sent before their answers are read
PAGE = 1000  # changes read at a time

GROWTH = 4  # times as many neighbours are asked for where too few of them may be shown
ABSENT = -2  # Redis' time at which a key expires that is not there


def key(generation: str) -> str:
    """Where the vector set of a generation lies."""
    return f"items:{generation}"


def changes_key(generation: str) -> str:
    """Where the stream of changes to the vector set lies."""
    return f"items:{generation}:changes"


def latest_key(generation: str) -> str:
    """Where the place of each item in the stream of changes lies."""
    return f"items:{generation}:latest"


def load(
    client: redis.Redis,
    generation: str,
    embeddings: np.ndarray,
    attributes: Iterable[bytes],
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Fill the vector set of a generation that is not live yet, on one connection.

    Redis adds vectors in its main thread, so further connections would add nothing.

    Args:
        client: a connected Redis.
        generation: the generation.
        embeddings: float32[n, D], unit vectors; row i belongs to item i + 1.
        attributes: JSON of each item, n times.
        advance: called with the number of items that have been written since the last call.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client):
        client.unlink(key(generation), changes_key(generation))  # VADD on what an earlier attempt left would not last
        rows = enumerate(zip(embeddings, attributes, strict=True), 1)
        while part := list(islice(rows, PIPELINE)):
            with client.pipeline(transaction=False) as pipe:
                for item, (embedding, document) in part:
                    _add(pipe, generation, item, embedding, document)
                pipe.execute()
            advance(len(part))
        # an empty stream, so that it expires with the set even if nothing ever changes before
        client.xadd(changes_key(generation), {"item": 0}, maxlen=0, approximate=False)


def _add(pipe: Any, generation: str, item: int, embedding: np.ndarray, attributes: bytes) -> None:
    vector = np.asarray(embedding, "<f4").tobytes()
    options = ("NOQUANT", "EF", BUILD_EF, "SETATTR", attributes, "M", LINKS)
    pipe.execute_command("VADD", key(generation), "FP32", vector, str(item), *options)


def attributes_of(items: Entities, schema: Schema) -> Iterator[bytes]:
    """JSON of each item: its raw id, and every feature as the models see it, by name of the column."""
    slots = [(c.name, schema.slots(c), c.max_length) for c in schema.categorical("item")]
    names = [c.name for c in schema.numeric("item")]
    for raw, ids, numbers in zip(items.raw_ids.tolist(), items.categorical.tolist(), items.numeric, strict=True):
        document: dict[str, Any] = {RAW_ID: raw}
        document |= {name: ids[at] if several else ids[at.start] for name, at, several in slots}
        document |= dict(zip(names, numbers, strict=True))
        yield orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)  # of float32: as few digits as it has


def put(client: redis.Redis, generation: str, item: int, embedding: np.ndarray, attributes: bytes) -> None:
    """Add an item or replace its embedding and attributes, and tell the followers, in one transaction.

    Args:
        client: a connected Redis.
        generation: a generation whose vector set is loaded.
        item: entity number, which may be beyond the catalogue that was deployed.
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
    """Take an item out of the vector set and tell the followers, in one transaction; it may be gone already.

    Raises:
        StoreError: the generation has no vector set (any more), or Redis fails.
    """
    _change(client, generation, {"item": item}, lambda pipe: pipe.execute_command("VREM", key(generation), str(item)))


# Adds an entry (item, number, and perhaps embedding, vector) to the stream and removes the item's earlier one, so that
# the stream is never longer than items are many, whoever reads it from the start.
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
        if expires > 0:  # these may be new: Redis keeps no empty set
            pipe.pexpireat(key(generation), expires)
            pipe.pexpireat(latest, expires)

    with store_errors(client):
        client.transaction(body, key(generation), stream)


def changes(client: redis.Redis, generation: str, after: str) -> tuple[str, list[Change]]:
    """The last change of each item in the vector set, oldest first, without waiting for more.

    Args:
        client: a connected Redis.
        generation: the generation.
        after: last id that this returned before; ``0`` for all changes since the set was loaded.

    Returns:
        The id to go on from, and the changes; none of a generation that has expired.

    Raises:
        StoreError: Redis fails.
    """
    found: list[Change] = []
    while True:
        with store_errors(client):
            entries: Any = client.xrange(changes_key(generation), f"({after}", "+", count=PAGE)
        for _, fields in entries:
            vector = fields.get(b"embedding")
            found.append(Change(int(fields[b"item"]), None if vector is None else np.frombuffer(vector, "<f4")))
        if entries:
            after = entries[-1][0].decode()
        if len(entries) < PAGE:
            return after, found


def any_removed(client: redis.Redis, generation: str) -> bool:
    """Whether an item has been removed from the vector set and not put again since.

    Raises:
        StoreError: Redis fails.
    """
    return any(change.embedding is None for change in changes(client, generation, "0")[1])


class RedisIndex:
    """Approximate search in the vector set of a generation. Threads may share one."""

    def __init__(self, client: redis.Redis, generation: str, ef: int, allowed: np.ndarray | None = None) -> None:
        """
        Args:
            client: of the Redis that holds the set.
            generation: the generation.
            ef: neighbours explored by each query, from :func:`redis_recsys.online.recall.tune`.
            allowed: which items are to be found, bool[n + 1] by entity number; items that came later are not then.
                Default: all.
        """
        self._client, self._gen, self._ef, self._allowed = client, generation, ef, allowed
        self._times = 1.0 if allowed is None else (len(allowed) - 1) / max(int(allowed[1:].sum()), 1)

    def search(self, queries: np.ndarray, count: int, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`redis_recsys.retrieval.index.VectorIndex`; one pipelined round trip, more if some are barred."""
        return self._nearest(queries, count, exclude)[:2]

    def search_with_attributes(
        self, queries: np.ndarray, count: int, exclude: np.ndarray, schema: Schema
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As ``search``, and the packed features that the set holds as attributes of the items.

        Args:
            queries, count, exclude: see ``search``.
            schema: that the attributes were made with.

        Returns:
            items int32[b, count], similarities float32[b, count], categorical int32[b, count, Ci] and numeric
            float32[b, count, Fi]; all 0 where there are fewer items.

        Raises:
            StoreError: Redis fails, has no such vector set, or an item has not the attributes of the schema.
        """
        items, similarity, picks, values = self._nearest(queries, count, exclude, "WITHATTRIBS")
        slots = [(c.name, schema.slots(c)) for c in schema.categorical("item")]
        names = [c.name for c in schema.numeric("item")]
        categorical = np.zeros((*items.shape, schema.categorical_width("item")), np.int32)
        numeric = np.zeros((*items.shape, len(names)), np.float32)
        try:
            for row, place in zip(*np.nonzero(items), strict=True):
                document = orjson.loads(values[row][picks[row, place]][1])
                for name, at in slots:
                    categorical[row, place, at] = document[name]
                numeric[row, place] = [document[name] for name in names]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"item {items[row, place]} of vector set {key(self._gen)} has not the attributes of the schema "
                f"({error!r}): deploy again"
            ) from error
        return items, similarity, categorical, numeric

    def _nearest(
        self, queries: np.ndarray, count: int, exclude: np.ndarray, *options: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[Any]]]:
        """As ``search``; and for each item its place in its query's answer, and for each query the answer's values."""
        wanted = int(np.ceil(count * self._times))
        while True:
            answers = self._ask(queries, wanted, exclude, *options)
            values = [list(answer.values()) for answer in answers]
            scores = [[score for score, _ in row] for row in values] if options else values
            items, similarity, picks = _first(answers, scores, count, exclude, self._allowed)
            asked = wanted + np.count_nonzero(exclude, axis=1)
            whole = np.array([len(answer) for answer in answers], int) < asked  # there are no further items
            if (whole | items.all(axis=1)).all():
                return items, similarity, picks, values
            wanted *= GROWTH

    def _ask(self, queries: np.ndarray, count: int, exclude: np.ndarray, *options: str) -> list[dict[bytes, Any]]:
        """Each query's nearest items with what is told about them, enough of them to drop the excluded ones."""
        # Not redis-py's vsim: it parses every item's JSON, of which few are used. 16 queries for 100 items each took
        # 6.8 ms of CPU with it and 1.6 ms so (AMD EPYC).
        with store_errors(self._client), self._client.pipeline(transaction=False) as pipe:
            for query, more in zip(np.asarray(queries, "<f4"), np.count_nonzero(exclude, axis=1).tolist(), strict=True):
                wanted, explored = count + more, max(self._ef, count) + more
                pipe.execute_command(
                    "VSIM", key(self._gen), "FP32", query.tobytes(), "WITHSCORES", *options, "COUNT", wanted,
                    "EF", explored, "NOTHREAD",
                )  # fmt: skip
            answers = [_by_item(answer, len(options)) for answer in pipe.execute()]
            # Redis answers with nothing where it has no such key, and keeps no empty sets
            if not all(answers) and not self._client.exists(changes_key(self._gen)):
                raise _missing(self._gen)
        return answers


def _by_item(answer: Any, attributes: int) -> dict[bytes, Any]:
    """An answer to VSIM as protocol 3 gives it; protocol 2 gives a flat list with scores as text."""
    if isinstance(answer, dict):
        return answer
    if attributes:
        return {item: (float(score), more) for item, score, more in zip(*[iter(answer)] * 3, strict=True)}
    return dict(zip(answer[::2], map(float, answer[1::2]), strict=True))


def _first(
    answers: Sequence[dict[bytes, Any]],
    scores: Sequence[list[float]],
    count: int,
    exclude: np.ndarray,
    allowed: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first ``count`` items of each answer that may be shown, their cosines, and their places in the answer."""
    width = max([count, *map(len, answers)])
    found, score = np.zeros((len(answers), width), np.int32), np.zeros((len(answers), width), np.float32)
    for row, (answer, values) in enumerate(zip(answers, scores, strict=True)):
        found[row, : len(answer)] = np.fromstring(b" ".join(answer), np.int32, sep=" ")
        score[row, : len(answer)] = values
    highest = found.max(initial=0)
    banned = np.zeros((len(answers), highest + 1), bool)
    if allowed is not None:
        banned[:, : len(allowed)] = ~allowed[: highest + 1]
        banned[:, len(allowed) :] = True
    np.put_along_axis(banned, np.where(exclude <= highest, exclude, 0), True, axis=1)
    banned[:, 0] = True
    dropped = np.take_along_axis(banned, found, axis=1)
    picks = np.argsort(dropped, axis=1, kind="stable")[:, :count]
    items = np.take_along_axis(np.where(dropped, 0, found), picks, axis=1)
    cosine = 2 * np.take_along_axis(score, picks, axis=1) - 1  # Redis tells (1 + cosine) / 2
    return items, np.where(items > 0, cosine, 0).astype(np.float32), picks


def _missing(generation: str) -> StoreError:
    return StoreError(
        f"vector set {key(generation)} is not in this Redis: it has expired, or deploy with 'recsys deploy'"
    )
