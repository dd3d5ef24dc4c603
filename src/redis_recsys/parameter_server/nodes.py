"""The Redis servers of the tables, one or a cluster, accessed in batches: one round trip to all nodes at once.

Commands are grouped by node, sent to all nodes before the first answer is read, and answered in order. A cluster may
change meanwhile: a moved slot is followed at once; a node that does not answer is skipped for a moment, so that lookups
wait for it only once, while the map of the cluster is read again in the background.

Own code by measurement (``benchmarks.large_scale.cluster_clients``, AMD EPYC, 2 cores shared with others): 1,664 rows
from three nodes take 8.1 ms, of which 0.8 ms of this process's CPU time; 12.3 and 2.0 ms with valkey-glide 2.6, 11.7
and 1.9 ms with redis-py 8.1.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, BusyLoadingError, ClusterDownError, MovedError, TryAgainError
from redis.retry import Retry

from ..errors import StoreError
from ..utils.redis_errors import explain_redis

SLOTS = 16_384
AGAIN_SECONDS = 0.05  # pause between attempts of a command that has to succeed
REDIRECTIONS = 5
ASKING = b"*1\r\n$6\r\nASKING\r\n"
LOST = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    ClusterDownError,
    TryAgainError,
)

Address = tuple[str, int]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """Addresses and login of Redis.

    Attributes:
        addresses: addresses of any nodes of a cluster, or of one server.
        username, password: name and password of the ACL user.
        tls: options of the TLS library, such as ``ssl_ca_certs``; None: connections are not encrypted.
        timeout: seconds to wait for a connection or an answer.
        pause: seconds for which a failed node is skipped.
    """

    addresses: tuple[Address, ...]
    username: str | None = None
    password: str | None = None
    tls: tuple[tuple[str, str], ...] | None = None
    timeout: float = 0.5
    pause: float = 0.5

    def client(self, address: Address) -> redis.Redis:
        """A client of one node, not connected yet."""
        return redis.Redis(
            host=address[0],
            port=address[1],
            username=self.username,
            password=self.password,
            ssl=self.tls is not None,
            **dict(self.tls or ()),  # type: ignore[arg-type]
            socket_timeout=self.timeout,
            socket_connect_timeout=self.timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # answers are flat lists
        )


@dataclass(frozen=True)
class Command:
    """One or more commands in the Redis protocol, for one key.

    Attributes:
        key: key that determines the node.
        packed: the commands in wire format.
        answers: number of these commands; the answer to several is the list of their answers.
    """

    key: bytes
    packed: bytes
    answers: int = 1

    @classmethod
    def of(cls, key: bytes, *commands: Sequence[str | bytes]) -> Command:
        """Pack commands for one key.

        Example:
            >>> Command.of(b"key", ("HLEN", b"key")).packed
            b'*2\r\n$4\r\nHLEN\r\n$3\r\nkey\r\n'
        """
        return cls(key, b"".join(hiredis.pack_command(tuple(command)) for command in commands), len(commands))  # type: ignore[arg-type]


class _Map:
    """Snapshot of which node has which slots; replaced by a new object when that changes.

    Attributes:
        replicated: nodes with a working replica.
    """

    def __init__(self, ranges: list[tuple[int, int, Address, bool]]) -> None:
        """
        Args:
            ranges: (first slot, last slot, node, whether it has a replica), sorted.
        """
        self._starts = [first for first, *_ in ranges]
        self._owners = [(last, node) for _, last, node, _ in ranges]
        self.replicated = {node for _, _, node, has_replica in ranges if has_replica}
        self._known: dict[bytes, Address] = {}

    def owner(self, key: bytes) -> Address:
        """The node of a key.

        Raises:
            ClusterDownError: no node has its slot.
        """
        address = self._known.get(key)
        if address is None:
            slot = key_slot(key)
            index = bisect.bisect_right(self._starts, slot) - 1
            if index < 0 or self._owners[index][0] < slot:
                raise ClusterDownError(f"no node has slot {slot}, the one of {key!r}")
            address = self._known[key] = self._owners[index][1]
        return address


class Nodes:
    """Connections to all nodes. Safe to use from several threads."""

    def __init__(self, access: Access) -> None:
        """
        Raises:
            StoreError: none of the addresses answers, or the login is refused.
        """
        self.access = access
        self._clients: dict[Address, redis.Redis] = {}
        self._map = _Map([])
        self._free: dict[Address, list[Any]] = defaultdict(list)
        self._down: dict[Address, float] = {}  # time until which a node is skipped
        self._stale = threading.Event()
        self._closed = threading.Event()
        self._read_map()
        self._reader = threading.Thread(target=self._keep_map, name="reads the cluster's map", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Close all connections."""
        self._closed.set()
        self._stale.set()
        self._reader.join()
        for connections in self._free.values():
            for connection in connections:
                connection.disconnect()
        for client in self._clients.values():
            client.close()

    def run(self, commands: Sequence[Command], patience: float = 0.0) -> list[Any]:
        """Run commands, concurrently on different nodes.

        Args:
            commands: commands in any order.
            patience: seconds for which a command is retried while its node does not answer.

        Returns:
            The answer of each command, or its error, a ``redis.RedisError``.
        """
        answers: list[Any] = [None] * len(commands)
        deadline = time.monotonic() + patience
        waiting: dict[int, AskError | None] = dict.fromkeys(range(len(commands)))
        redirections = 0
        while True:
            self._round(commands, waiting, answers, patient=patience > 0)
            redirected = {index: answers[index] for index in waiting if isinstance(answers[index], AskError)}
            unanswered = [index for index in waiting if isinstance(answers[index], LOST)]
            if redirected and redirections < REDIRECTIONS:
                redirections += 1
                waiting = redirected | (dict.fromkeys(unanswered) if patience > 0 else {})
            elif unanswered and time.monotonic() < deadline:
                time.sleep(AGAIN_SECONDS)
                waiting = dict.fromkeys(unanswered)
            else:
                return answers

    def replicated(self, key: bytes) -> bool:
        """Whether the node of a key is known to have a working replica; False if no node has its slot."""
        current = self._map
        try:
            return current.owner(key) in current.replicated
        except ClusterDownError:
            return False

    def _round(
        self, commands: Sequence[Command], waiting: dict[int, AskError | None], answers: list[Any], patient: bool
    ) -> None:
        """Send commands to their nodes, or where a redirection points, then read the answers."""
        batches: dict[Address, list[int]] = defaultdict(list)
        current, now = self._map, time.monotonic()
        for index, redirection in waiting.items():
            try:
                address = redirection.node_addr if redirection else current.owner(commands[index].key)
            except ClusterDownError as error:
                answers[index] = error
                self._stale.set()
                continue
            if not patient and self._down.get(address, 0.0) > now:
                answers[index] = redis.ConnectionError(f"{address[0]}:{address[1]} did not answer a moment ago")
            else:
                batches[address].append(index)
        sent = []
        for address, batch in batches.items():
            asked = [waiting[index] is not None and not isinstance(waiting[index], MovedError) for index in batch]
            try:
                connection = self._connection(address)
            except (redis.RedisError, OSError) as error:
                self._fail(address, batch, answers, error)
                continue
            sent.append((address, batch, asked, connection))
            packed = [
                (ASKING if ask else b"") + commands[index].packed for index, ask in zip(batch, asked, strict=True)
            ]
            try:
                connection.send_packed_command([b"".join(packed)], check_health=False)
            except (redis.RedisError, OSError):
                connection.disconnect()  # reading will fail, below
        for address, batch, asked, connection in sent:
            done = 0
            try:
                for index, ask in zip(batch, asked, strict=True):
                    answers[index] = answer = _answer(connection, commands[index].answers, ask)
                    if isinstance(answer, MovedError | ClusterDownError | redis.ReadOnlyError):
                        self._stale.set()
                    done += 1
                self._down.pop(address, None)
            except (redis.RedisError, OSError) as error:
                self._fail(address, batch[done:], answers, error)
            finally:
                if done == len(batch):
                    self._free[address].append(connection)
                else:  # pending answers must not be taken for those of the next command
                    connection.disconnect()

    def _connection(self, address: Address) -> Any:
        """A free connection to a node; redis-py's pool takes several times as long to give one."""
        free = self._free[address]
        while free:
            connection = free.pop()
            with contextlib.suppress(redis.RedisError, OSError):
                if not connection.can_read():  # neither closed nor with an unread answer
                    return connection
            connection.disconnect()
        pool = self._client(address).connection_pool
        connection = pool.connection_class(**pool.connection_kwargs)  # make_connection() refuses after the hundredth
        connection.connect()
        return connection

    def _fail(self, address: Address, batch: list[int], answers: list[Any], error: Exception) -> None:
        for index in batch:
            answers[index] = error if isinstance(error, redis.RedisError) else redis.ConnectionError(f"{error}")
        self._down[address] = time.monotonic() + self.access.pause
        self._stale.set()

    def _client(self, address: Address) -> redis.Redis:
        client = self._clients.get(address)
        if client is None:
            client = self._clients.setdefault(address, self.access.client(address))
        return client

    def _read_map(self) -> None:
        """Read the owners of all slots from the first node that answers."""
        reason = ""
        for address in dict.fromkeys((*self.access.addresses, *self._clients)):
            client = self._client(address)
            try:
                answer = client.execute_command("CLUSTER SLOTS")
            except redis.ResponseError as error:
                if "cluster support disabled" not in f"{error}":
                    reason = explain_redis(error, f"Redis at {address[0]}:{address[1]}", self.access.timeout)
                    continue
                self._map = _Map([(0, SLOTS - 1, address, False)])
                return
            except redis.RedisError as error:
                reason = explain_redis(error, f"Redis at {address[0]}:{address[1]}", self.access.timeout)
                continue
            ranges = [
                (int(first), int(last), _node(node, address), bool(replicas)) for first, last, node, *replicas in answer
            ]
            if not ranges:
                reason = f"the cluster node at {address[0]}:{address[1]} knows of no slots: is the cluster formed?"
                continue
            self._map = _Map(sorted(ranges))
            return
        raise StoreError(reason)

    def _keep_map(self) -> None:
        """Read the map again when something has changed, at most once per pause."""
        while self._stale.wait() and not self._closed.is_set():
            self._stale.clear()
            try:
                self._read_map()
            except StoreError as error:
                log.warning("the map of the cluster cannot be read: %s", error)
            self._closed.wait(self.access.pause)


def _node(node: Sequence[Any], asked: Address) -> Address:
    """(host, port) of a node in the answer of CLUSTER SLOTS; without a host it is the node asked."""
    host = node[0].decode() if isinstance(node[0], bytes) else node[0]
    return (host or asked[0], int(node[1]))


def _answer(connection: Any, count: int, asked: bool) -> Any:
    """Read the answers of ``count`` commands; the first error among them stands for all."""
    answers = [_read(connection) for _ in range(count + asked)][asked:]
    wrong = next((answer for answer in answers if isinstance(answer, Exception)), None)
    return wrong if wrong is not None else answers if count > 1 else answers[0]


def _read(connection: Any) -> Any:
    """Read one answer, which may be an error; a lost connection is raised."""
    try:
        return connection.read_response()
    except BusyLoadingError as error:  # an answer, although redis-py counts it among lost connections
        return error
    except (redis.ConnectionError, redis.TimeoutError):
        raise
    except redis.RedisError as error:
        return error
