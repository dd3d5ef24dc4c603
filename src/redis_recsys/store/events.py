"""Live events: a stream that anybody may add to, and the effects of an event in Redis, atomic and exactly once.

::

    events               stream of accepted events: user, item, type; time in epoch milliseconds, if not "now"; key
    events:dead          stream of rejected entries: their id, the reason, their content
    events:users         sorted set: user -> acceptance of their last applied event, epoch milliseconds
    applied:{user}       sorted set: keys of applied events that may be redelivered -> acceptance
    counts:{user}        hash: event type -> number of events

An event is delivered at least once, to one of the consumers of the group ``features``. One Lua script applies all its
effects; its keys lie in one cluster slot, and it notes the event's key. So a second delivery changes nothing, nor does
a second entry that a client added because the answer to the first was lost. An entry without a key is identified by its
id. Every type of event puts the item into the history and so among the seen ones, negative feedback included.
"""

from __future__ import annotations

import hashlib
import operator
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import redis

from ..errors import DataError, one_line
from . import features, history
from .connection import store_errors
from .forgotten import forgotten_at, guarded

STREAM, DEAD, USERS, GROUP = "events", "events:dead", "events:users", "features"
BATCH = 500  # events read at once
CLAIM_SECONDS = 5.0  # a consumer that holds an event for so long has died: another one claims it
TIDY_SECONDS = 1.0  # pause between searches for such events, and between removals of applied ones
REMEMBER_SECONDS = 86_400  # an event's key is kept this long after the user's last event, to recognise redelivery
AGAIN_SECONDS = 600  # limit for a client to retry an event whose acceptance was not confirmed
FORGET_SECONDS = 3600  # an idle consumer without pending events is then removed from the group
DEAD_KEPT = 10_000
SHOWN = 200  # bytes of a value kept in a dead letter
ID_BYTES = 512
TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")

# KEYS: applied, history, counts, then the packed row of every generation that takes the event
# ARGV: key, ms of acceptance, ms before which no event is redelivered, seconds to remember, item, recency, cap, type,
#       then per generation: the item's number and the first slot of the history as int32, its slots, the row's bytes
APPLY = """
if redis.call('ZADD', KEYS[1], 'NX', ARGV[2], ARGV[1]) == 0 then return 0 end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
local item = ARGV[5]
redis.call('ZADD', KEYS[2], 'GT', ARGV[6], item)
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -ARGV[7] - 1)
redis.call('HINCRBY', KEYS[3], ARGV[8], 1)
local score = redis.call('ZSCORE', KEYS[2], item)
if not score then return 1 end
local place = redis.call('ZCOUNT', KEYS[2], '(' .. score, '+inf')
for k = 4, #KEYS do
  local a = 4 * k - 7
  local number, first, width, bytes = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  if place < width then
    local row = redis.call('GET', KEYS[k])
    if not row or #row ~= bytes then row = string.rep('\\0', bytes) end
    number = struct.pack('<i4', number)
    local slots = {}
    for at = 4 * first + 1, 4 * (first + width), 4 do
      local slot = row:sub(at, at + 3)
      if slot ~= number then slots[#slots + 1] = slot end
    end
    table.insert(slots, math.min(place, #slots) + 1, number)
    local recent = table.concat(slots) .. '\\0\\0\\0\\0'
    row = row:sub(1, 4 * first) .. recent:sub(1, 4 * width) .. row:sub(4 * (first + width) + 1)
    redis.call('SET', KEYS[k], row, 'KEEPTTL')
  end
end
return 1
"""
APPLY_SHA = hashlib.sha1(APPLY.encode()).hexdigest()

# Removes idle consumers without pending events; check and removal are atomic, so that no event is lost.
FORGET = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  if consumer[4] == 0 and consumer[6] > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer[2])
  end
end
"""


# Removed entries stay in the memory of a stream as long as their neighbours do, so the stream is rewritten: remaining
# entries, groups, and each consumer's pending entries. KEYS: stream, aside. ARGV: the user, as the whole of the field
# `user`, then texts that name the user within the field `entry`.
REWRITE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local function list(values)
  local found = {}
  for at = 1, #values, 2 do found[values[at]] = values[at + 1] end
  return found
end
local function named(fields)
  for at = 1, #fields, 2 do
    if fields[at] == 'user' and fields[at + 1] == ARGV[1] then return true end
    for k = 2, #ARGV do
      if fields[at] == 'entry' and string.find(fields[at + 1], ARGV[k], 1, true) then return true end
    end
  end
  return false
end
local stream, removed = list(redis.call('XINFO', 'STREAM', KEYS[1])), 0
local last = stream['last-generated-id']
redis.call('DEL', KEYS[2])
local from = '-'
repeat
  local page = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1000)
  for _, entry in ipairs(page) do
    if named(entry[2]) then removed = removed + 1 else redis.call('XADD', KEYS[2], entry[1], unpack(entry[2])) end
    from = '(' .. entry[1]
  end
until #page == 0
if last ~= '0-0' then
  if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('XADD', KEYS[2], 'MAXLEN', 0, last, 'x', 'x') end
  redis.call('XSETID', KEYS[2], last, 'ENTRIESADDED', stream['entries-added'], 'MAXDELETEDID',
    stream['max-deleted-entry-id'])
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  group = list(group)
  redis.call('XGROUP', 'CREATE', KEYS[2], group['name'], group['last-delivered-id'], 'MKSTREAM', 'ENTRIESREAD',
    group['entries-read'] or -1)
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], group['name'])) do
    redis.call('XGROUP', 'CREATECONSUMER', KEYS[2], group['name'], list(consumer)['name'])
  end
  for _, waiting in ipairs(redis.call('XPENDING', KEYS[1], group['name'], '-', '+', group['pending'])) do
    redis.call('XCLAIM', KEYS[2], group['name'], waiting[2], 0, waiting[1], 'IDLE', waiting[3], 'RETRYCOUNT',
      waiting[4], 'FORCE', 'JUSTID', 'LASTID', group['last-delivered-id'])
  end
end
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('RENAME', KEYS[2], KEYS[1]) else redis.call('DEL', KEYS[1]) end
return removed
"""


@dataclass(frozen=True)
class Event:
    """An accepted event.

    Attributes:
        id: id in the stream, ``<ms>-<number>``.
        user, item: raw ids as text.
        type: a short word.
        time: epoch milliseconds, not after acceptance.
        key: identity of the event, the same in all its entries in the stream.
    """

    id: str
    user: str
    item: str
    type: str
    time: int
    key: str

    @property
    def accepted(self) -> int:
        """Time of acceptance, epoch milliseconds on Redis' clock."""
        return _order(self.id)[0]

    @property
    def recency(self) -> float:
        """Score in the user's history: the time and, if it had just happened, its order within the millisecond."""
        accepted, number = _order(self.id)
        return self.time + min(number, 4095) / 4096 if self.time == accepted else self.time


@dataclass(frozen=True)
class Placement:
    """Position of an event's item in one generation's packed row of the user.

    Attributes:
        generation: name of the generation.
        number: number of the item, an id of the history column.
        first, width: first slot and number of slots of that column in the row.
        length: bytes of the row, for a user without one.
    """

    generation: str
    number: int
    first: int
    width: int
    length: int


def publish(client: redis.Redis, user: int | str, item: int | str, kind: str, time_ms: int | None = None) -> str:
    """Publish an event; once this returns, it will be applied, whatever fails in between.

    Args:
        client: a connected Redis.
        user, item: raw ids.
        kind: type of event, such as ``click``: a word of at most 32 letters, digits, ``_`` and ``-``.
        time_ms: time of the event, epoch milliseconds; default: now.

    Returns:
        the event's id in the stream.

    Raises:
        DataError: a value is invalid; the message names the field.
        StoreError: Redis fails; the event may have been accepted or not.
    """
    fields: dict[Any, Any] = {"user": _id("user", user), "item": _id("item", item), "type": _type(kind)}
    if time_ms is not None:
        fields["time"] = _time(time_ms)
    fields["key"] = secrets.token_hex(8)  # the client below may add the event again after losing its connection
    with store_errors(client):
        accepted: Any = client.xadd(STREAM, fields)
    return str(accepted.decode())


def refusal(client: redis.Redis, event: str) -> str | None:
    """Reason why an event was rejected; None if it was not, or long ago.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client):
        entries: Any = client.xrevrange(DEAD, count=1000)
    return next((fields[b"reason"].decode() for _, fields in entries if fields.get(b"id") == event.encode()), None)


def settled(client: redis.Redis, event: str) -> bool:
    """Whether an event has been applied or rejected: it is acknowledged and never delivered again.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client):
        try:
            groups = _groups(client)
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return False
        delivered = [g["last-delivered-id"].decode() for g in groups if g["name"] == GROUP.encode()]
        if not delivered or _order(delivered[0]) < _order(event):
            return False
        return not client.xpending_range(STREAM, GROUP, event, event, 1)


def settled_within(client: redis.Redis, event: str, seconds: float) -> bool:
    """Wait until an event is settled; returns False if it takes longer.

    Raises:
        StoreError: Redis fails.
    """
    end = time.monotonic() + seconds
    while not settled(client, event):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def waiting(client: redis.Redis) -> int:
    """Number of entries in the stream: those not applied yet, and those applied within the last second.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client):
        return int(client.xlen(STREAM))


def keys_of(user: int | str) -> list[str]:
    """Keys that events create for one user, besides the history: applied events, and counters."""
    return [f"applied:{{{user}}}", f"counts:{{{user}}}"]


def newest(client: redis.Redis) -> int:
    """Time of acceptance of the newest event, epoch milliseconds; 0 if there never was one.

    Raises:
        StoreError: Redis fails.
    """
    with store_errors(client):
        try:
            stream: Any = client.xinfo_stream(STREAM)
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise
            return 0
    return _order(stream["last-generated-id"].decode())[0]


def remove_user(client: redis.Redis, stream: str, user: int | str) -> int:
    """Remove a user's entries from a stream, leaving no trace of those removed before either.

    Args:
        client: a connected Redis.
        stream: ``events`` or ``events:dead``.
        user: raw id.

    Returns:
        number of entries removed.

    Raises:
        StoreError: Redis fails.
    """
    raw = str(user).encode(errors="replace")
    # as in a dead letter: an event, or the fields of an entry, cut short
    named = f"user={str(user)!r},", f"b'user': {raw[:SHOWN]!r}"
    with store_errors(client):
        return int(client.eval(REWRITE, 2, stream, f"{{{stream}}}:aside", raw, *named))


class Group:
    """One consumer's view of the group: reads, applies and acknowledges events, and tidies up."""

    def __init__(self, client: redis.Redis, consumer: str) -> None:
        self._client, self._consumer = client, consumer
        self._joined = False
        self._resuming = True  # events delivered to this consumer before come first
        self._claimed_to = "0-0"
        self._next_tidy = 0.0
        self._horizon = 0

    def reset(self) -> None:
        """Recover from a failure: join again, and begin with events that were delivered and not acknowledged."""
        self._joined, self._resuming = False, True

    def read(self, wait_ms: int) -> list[Event]:
        """Read the next events, in the order of the stream; waits at most ``wait_ms`` for one.

        Events that this consumer has not acknowledged come first, then those that another one left. Entries that are
        no events are dead-lettered in ``events:dead``.

        Raises:
            StoreError: Redis fails, or the group is gone: ``reset`` and read again.
        """
        with store_errors(self._client):
            if not self._joined:
                self._join()
            if time.monotonic() >= self._next_tidy:
                self._tidy()
                claimed: Any = self._client.xautoclaim(
                    STREAM, GROUP, self._consumer, int(CLAIM_SECONDS * 1000), self._claimed_to, BATCH
                )
                self._claimed_to = claimed[0].decode()
                if claimed[1]:
                    return self._parsed(claimed[1])
            if self._resuming:
                own: Any = self._client.xreadgroup(GROUP, self._consumer, {STREAM: "0"}, BATCH)
                if own and own[0][1]:
                    return self._parsed(own[0][1])
                self._resuming = False
            new: Any = self._client.xreadgroup(GROUP, self._consumer, {STREAM: ">"}, BATCH, max(wait_ms, 1))
            return self._parsed(new[0][1]) if new else []

    def _join(self) -> None:
        try:
            self._client.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):  # the group is there already
                raise
        self._client.eval(FORGET, 1, STREAM, GROUP, FORGET_SECONDS * 1000)
        self._joined = True

    def _tidy(self) -> None:
        """Remove all entries before the oldest event that may be delivered (again)."""
        self._next_tidy = time.monotonic() + TIDY_SECONDS
        group = next((g for g in _groups(self._client) if g["name"] == GROUP.encode()), None)
        if group is None:
            raise redis.ResponseError(f"NOGROUP {GROUP} is gone")
        # In this order, since events delivered in between come after the last one delivered before.
        pending: Any = self._client.xpending(STREAM, GROUP)
        oldest = (pending["min"] or group["last-delivered-id"]).decode()
        if _order(oldest) > _order(group["last-delivered-id"].decode()):
            oldest = group["last-delivered-id"].decode()
        self._client.xtrim(STREAM, minid=oldest, approximate=False)
        self._horizon = _order(oldest)[0]

    def _parsed(self, entries: Iterable[tuple[bytes, Mapping[bytes, bytes] | None]]) -> list[Event]:
        events = []
        rejected = []
        for name, fields in entries:
            if not fields:  # deleted meanwhile
                self._client.xack(STREAM, GROUP, name)
                continue
            try:
                events.append(_event(name.decode(), fields))
            except DataError as error:
                shown = {key[:100]: value[:SHOWN] for key, value in islice(fields.items(), 16)}
                user = (fields.get(b"user") or b"").decode(errors="replace")
                rejected.append((name.decode(), user, str(error), repr(shown)))
        self.dead_letter(rejected)
        return events

    def refuse(self, reasons: Sequence[tuple[Event, str]]) -> None:
        """Reject events that cannot be applied: dead-letter them with the reasons, and acknowledge them.

        Raises:
            StoreError: Redis fails.
        """
        with store_errors(self._client):
            self.dead_letter([(event.id, event.user, reason, repr(event)) for event, reason in reasons])

    def dead_letter(self, refused: Sequence[tuple[str, str, str, str]]) -> None:
        """Dead-letter entries, each with its id, user, reason and content; not those of users forgotten since."""
        if not refused:
            return
        users = [user for _, user, _, _ in refused]
        with (
            guarded(self._client, users, lambda user: remove_user(self._client, DEAD, user)) as marks,
            self._client.pipeline(transaction=False) as pipe,
        ):
            for (name, _, reason, entry), mark in zip(refused, marks, strict=True):
                if forgotten_at(mark) < _order(name)[0]:
                    letter: dict[Any, Any] = {"id": name, "reason": reason, "entry": entry}
                    pipe.xadd(DEAD, letter, maxlen=DEAD_KEPT, approximate=True)
            pipe.execute()  # entries are acknowledged only once they are stored
        self._client.xack(STREAM, GROUP, *[name for name, _, _, _ in refused])

    def apply(
        self, events: Sequence[Event], placements: Sequence[Sequence[Placement]], cap: int
    ) -> list[tuple[Event, str]]:
        """Apply events, each atomically and once: history, counter, packed rows of the generations.

        Args:
            events: events from ``read``.
            placements: placements of each event, one per generation whose rows it changes.
            cap: items kept in a history.

        Returns:
            events that cannot be applied because the user's keys hold another type, with the reason.

        Raises:
            StoreError: Redis fails; repeating the call does no harm.
        """
        with store_errors(self._client):
            commands = [self._command(event, placed, cap) for event, placed in zip(events, placements, strict=True)]
            answers = self._run_commands(commands)
            if any(isinstance(answer, redis.exceptions.NoScriptError) for answer in answers):
                self._client.script_load(APPLY)
                answers = self._run_commands(commands)
            impossible = []
            latest: dict[str, int] = {}
            for event, answer in zip(events, answers, strict=True):
                if isinstance(answer, redis.RedisError):
                    if not re.search("WRONGTYPE|not an integer|overflow", str(answer)):
                        raise answer
                    impossible.append((event, one_line(answer, 200)))
                else:
                    latest[event.user] = max(event.accepted, latest.get(event.user, 0))
            if latest:
                self._client.zadd(USERS, latest, gt=True)
            return impossible

    def _command(self, event: Event, placed: Sequence[Placement], cap: int) -> list[Any]:
        user = event.user
        applied, counts = keys_of(user)
        keys = [applied, history.key(user), counts]
        keys += [features.key(p.generation, "user", user) for p in placed]
        arguments: list[Any] = [event.key, event.accepted, self._horizon - AGAIN_SECONDS * 1000, REMEMBER_SECONDS]
        arguments += [event.item, event.recency, cap, event.type]
        for p in placed:
            arguments += [p.number, p.first, p.width, p.length]
        # Not redis-py's Script: in a pipeline it asks Redis for the script before every batch, a round trip more.
        return ["EVALSHA", APPLY_SHA, len(keys), *keys, *arguments]

    def _run_commands(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return pipe.execute(raise_on_error=False)

    def acknowledge(self, events: Sequence[Event]) -> None:
        """Acknowledge events, so that they are not delivered again.

        Raises:
            StoreError: Redis fails; they are delivered again.
        """
        if events:
            with store_errors(self._client):
                self._client.xack(STREAM, GROUP, *[event.id for event in events])


def _groups(client: redis.Redis) -> list[dict[str, Any]]:
    groups: Any = client.xinfo_groups(STREAM)
    return list(groups)


def _order(name: str) -> tuple[int, int]:
    """Sort key of a stream's id."""
    ms, _, number = name.partition("-")
    return int(ms), int(number or 0)


def _event(name: str, fields: Mapping[bytes, bytes]) -> Event:
    """Parse an entry of the stream as an event.

    Raises:
        DataError: it is not an event; the message names the field.
    """
    texts = {}
    for field in ("user", "item", "type", "time", "key"):
        value = fields.get(field.encode())
        if value is None and field not in ("time", "key"):
            raise DataError(f"event without {field}: it needs user, item and type")
        try:
            texts[field] = (value or b"").decode()
        except UnicodeDecodeError:
            raise DataError(f"event with a {field} that is not UTF-8") from None
    accepted = _order(name)[0]
    happened = _time(texts["time"]) if texts["time"] else accepted
    user, item = _id("user", texts["user"]), _id("item", texts["item"])
    # A clock that is ahead must not keep an item the newest forever.
    return Event(name, user, item, _type(texts["type"]), min(happened, accepted), texts["key"][:ID_BYTES] or name)


def _id(field: str, value: object) -> str:
    if isinstance(value, str):
        text = value
    else:
        try:
            text = str(operator.index(value))  # type: ignore[arg-type]  # other types are refused below
        except TypeError:
            raise DataError(f"{field} of an event must be an integer or a text, not {type(value).__name__}") from None
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise DataError(f"{field} of an event is not a valid text: {text[:40]!a}") from None
    if not 0 < size <= ID_BYTES:
        raise DataError(f"{field} of an event must have 1 to {ID_BYTES} bytes, this has {size:,}")
    return text


def _type(value: object) -> str:
    if not isinstance(value, str) or not TYPE.fullmatch(value):
        raise DataError(
            f"type of an event must be a word of at most 32 letters, digits, _ and -, such as click; "
            f"this is {str(value)[:40]!a}"
        )
    return value


def _time(value: object) -> int:
    try:
        number = int(value[:20]) if isinstance(value, str) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"time of an event must be epoch milliseconds, not {str(value)[:40]!a}") from None
    if not history.EARLIEST <= number < 10**15:
        raise DataError(f"time of an event must be epoch milliseconds, such as {time.time_ns() // 10**6}; got {number}")
    return number
