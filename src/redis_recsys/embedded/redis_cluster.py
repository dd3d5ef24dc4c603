"""The project's own real Redis Cluster, for tables larger than one node holds, where no cluster is configured.

Every node is an ``EmbeddedRedis`` in a folder of its own, all with one password. They become a cluster step by step:
the nodes get to know each other (``CLUSTER MEET``), the primaries share out the hash slots, the replicas follow them.
Each step looks at what is there first, so the same steps form a new cluster, finish one whose forming was interrupted,
and bring the nodes of a stopped one together again, even at other ports.

Ports lie below those that systems give to outgoing connections, so that nobody takes one while its node is away. The
bus between the nodes, at the port 10,000 above, knows no password in Redis: only this machine can connect to it.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import StoreError
from .process import write_private
from .redis_server import Embedded, EmbeddedRedis

SLOTS = 16384
PORTS = range(12000, 22000)
NODE_TIMEOUT = 1.5  # seconds without a sign of life after which the others take a node for dead
WAIT_SECONDS = 30.0
LOOK_SECONDS = 0.05
STATE = "cluster.json"

Address = tuple[str, int]


class EmbeddedCluster(Embedded):
    """A Redis Cluster on 127.0.0.1 that lives as long as the ``with`` block, or a share of one that already runs.

    The nodes end with the process that started them, however it ends. A node that dies by itself comes back at the
    same address.

    Attributes:
        addresses: host and port of every node: the primaries, then their replicas, as they were when the cluster was
            formed. They are the same in every run, unless somebody has taken a port.
        password: password of all nodes; a new one in every run.
        owned: whether this object started the cluster and stops it.

    Example:
        >>> with EmbeddedCluster(Path("data/cluster")) as cluster:  # doctest: +SKIP
        ...     host, port = cluster.addresses[0]
        ...     redis.cluster.RedisCluster(host, port, password=cluster.password).set("key", "value")
        True
    """

    what = "Redis Cluster"
    choose = "choose"
    addresses: list[Address]
    password: str

    def __init__(
        self,
        folder: Path,
        nodes: int = 3,
        replicas: int = 0,
        max_memory: str | None = None,
        persist: bool = True,
        fsync: Literal["everysec", "always"] = "everysec",
    ) -> None:
        """
        Args:
            folder: holds a folder per node; made if it is not there.
            nodes: primaries, which share the data. Only with three or more do the others notice when one dies.
            replicas: number of replicas of each primary. One takes the place of a primary that stays away, within some
                three seconds.
            max_memory: limit of each node, as Redis writes it, such as ``512mb``; writes beyond it are refused.
            persist: keep the data on disk. Without, a node that dies comes back empty, and empties its replicas.
            fsync: moment at which writes go from the system's memory to the disk, which matters when the machine dies:
                once a second, or ``always`` before they are answered.

        Raises:
            StoreError: there cannot be a cluster of that shape.
        """
        super().__init__(folder)
        if nodes < 1 or replicas < 0:
            raise StoreError(
                f"a cluster of {nodes} nodes with {replicas} replicas each cannot be: take at least 1 and 0"
            )
        self.nodes = nodes
        self.replicas = replicas
        self._max_memory = max_memory
        self._persist = persist
        self._fsync = fsync
        self._servers: list[_Node] = []

    @property
    def owned(self) -> bool:
        return bool(self._servers)

    def __enter__(self) -> EmbeddedCluster:
        self.start()
        return self

    def stop(self) -> None:
        """Stop the nodes if this object started them: all at once, so that no replica takes a primary's place."""
        servers, self._servers = self._servers, []
        _on_each(servers, _Node.stop)
        self._lock.release()

    def pids(self) -> list[int | None]:
        """The process of every node at present; None where a node does not answer."""
        return [self._pid(address) for address in self.addresses]

    def kill(self, index: int) -> None:
        """End a node as a crash would; unlike one that dies by itself, it stays away until it is started again.

        Raises:
            StoreError: another process started the cluster.
        """
        self._server(index).kill()

    def restart(self, index: int) -> None:
        """Start a node again, killing it first if it runs; if no other is away, wait until the cluster is whole.

        Raises:
            StoreError: the node does not start, the cluster does not become whole, or another process started it.
        """
        server = self._server(index)
        server.kill()
        server.start()
        self._write_state()
        self._meet(time.monotonic() + WAIT_SECONDS)
        if len(self._running()) == len(self._servers):
            self.wait()

    def wait(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the cluster is whole: the nodes are in touch and agree who has which slots, every slot is had by
        one of them, and replicas follow. Nodes that this object killed do not count.

        Raises:
            StoreError: it takes longer; with what is missing.
        """
        deadline = time.monotonic() + seconds
        while (trouble := self._trouble()) is not None:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"the Redis Cluster in {self.folder} is not whole after {seconds:.0f} s: {trouble}; the files "
                    "redis.log in the folders of its nodes may say why"
                )
            time.sleep(LOOK_SECONDS)

    def _share(self) -> bool:
        state = self._state()
        if state is None:
            return False
        self.password = state["password"]
        self.addresses = [(EmbeddedRedis.host, port) for port in state["ports"]]
        return any(self.pids())

    def _launch(self, deadline: float) -> None:
        self.password = secrets.token_urlsafe(32)
        count = self.nodes * (1 + self.replicas)
        state = self._state()
        for index in range(count):
            ports = PORTS[index::count]  # so that no two nodes try the same
            first = state["ports"][index] if state is not None else random.choice(ports)
            folder = self.folder / f"node-{index}"
            self._servers.append(
                _Node(folder, self.password, first, ports, self._max_memory, self._persist, self._fsync)
            )
        _on_each(self._servers, _Node.start)
        self._share_out(self._meet(deadline))
        self.wait()
        self._write_state()

    def _meet(self, deadline: float) -> dict[Address, str]:
        """Tell the nodes where the others are until all know it; returns their ids."""
        ids = {address: self._ask(address, "MYID").decode() for address in self._running()}
        while True:
            known = {address: self._ask(address, "NODES") for address in ids}
            strangers = [
                (address, other)
                for address in ids
                for other, id in ids.items()
                if known[address].get(_name(other), {}).get("node_id") != id
            ]
            if not strangers:
                return ids
            if time.monotonic() > deadline:
                address, other = strangers[0]
                raise StoreError(
                    f"the Redis Cluster in {self.folder} cannot be put together: {_name(address)} does not find "
                    f"{_name(other)}; see redis.log in the folders of its nodes, or choose another folder"
                )
            for address, other in strangers:
                self._ask(address, "MEET", *other)
            time.sleep(LOOK_SECONDS)

    def _share_out(self, ids: dict[Address, str]) -> None:
        """Give slots that no node has to the primaries, in equal shares, and each new replica its primary."""
        own = [self._ask(address, "NODES")[_name(address)] for address in ids]
        taken = {slot for entry in own for slot in _slots(entry)}
        for index, (address, entry) in enumerate(zip(ids, own, strict=True)):
            if index < self.nodes:
                share = range(index * SLOTS // self.nodes, (index + 1) * SLOTS // self.nodes)
                missing = [slot for slot in share if slot not in taken]
                if missing:
                    self._ask(address, "ADDSLOTS", *missing)
            elif "master" in entry["flags"] and not entry["slots"]:
                self._ask(address, "REPLICATE", list(ids.values())[index % self.nodes])

    def _trouble(self) -> str | None:
        """Reason for which the nodes are no whole cluster yet; None if they are."""
        running = self._running()
        names = {_name(address) for address in running}
        agreed = None
        for address in running:
            name = _name(address)
            try:
                with self._client(address) as client:
                    view, state = client.cluster("NODES"), client.cluster("INFO")["cluster_state"]
                    replication = client.info("replication")
            except redis.RedisError as error:
                return f"{name} does not answer ({error})"
            far = names - {other for other, entry in view.items() if _in_touch(entry)}
            if far:
                return f"{name} has no contact with {', '.join(sorted(far))}"
            shares = {other: _slots(view[other]) for other in sorted(names)}
            free = SLOTS - sum(map(len, shares.values()))
            if free:
                return f"{free} slots are on no node that runs"
            if agreed not in (None, shares):
                return f"{name} and others disagree about who has which slots"
            agreed = shares
            if state != "ok":
                return f"{name} says cluster_state:{state}"
            if replication.get("master_link_status", "up") != "up":
                return f"{name} does not follow its primary yet"
        return None

    def _running(self) -> list[Address]:
        """Nodes that were not killed."""
        return [server.address for server in self._servers if server.owned] if self.owned else self.addresses

    def _server(self, index: int) -> _Node:
        if not self.owned:
            raise StoreError(f"the Redis Cluster in {self.folder} was started by another process: only it can do that")
        return self._servers[index]

    def _pid(self, address: Address) -> int | None:
        try:
            with self._client(address) as client:
                return int(client.info("server")["process_id"])
        except redis.RedisError:
            return None

    def _client(self, address: Address) -> redis.Redis:
        """A client of one node, which gives up at once."""
        return redis.Redis(*address, password=self.password, socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def _ask(self, address: Address, command: str, *args: Any) -> Any:
        try:
            with self._client(address) as client:
                return client.cluster(command, *args)
        except redis.RedisError as error:
            raise StoreError(
                f"the Redis Cluster in {self.folder} cannot be put together: {_name(address)} answers {error} to "
                f"CLUSTER {command}; see redis.log in the folders of its nodes, or choose another folder"
            ) from error

    def _state(self) -> dict[str, Any] | None:
        """State written by the last run, or by the one that is under way.

        Raises:
            StoreError: it has another number of nodes.
        """
        try:
            state: dict[str, Any] = json.loads((self.folder / STATE).read_text())
            shape = state["nodes"], state["replicas"]
        except (FileNotFoundError, ValueError, KeyError):
            return None
        if shape != (self.nodes, self.replicas):
            raise StoreError(
                f"{self.folder} holds a Redis Cluster of {shape[0]} nodes with {shape[1]} replicas each: take as many, "
                "or choose another folder"
            )
        return state

    def _write_state(self) -> None:
        self.addresses = [server.address for server in self._servers]
        state = {
            "nodes": self.nodes,
            "replicas": self.replicas,
            "password": self.password,
            "ports": [port for _, port in self.addresses],
        }
        write_private(self.folder / STATE, json.dumps(state))


class _Node(EmbeddedRedis):
    """One server of a cluster."""

    choose = "choose"

    def __init__(
        self,
        folder: Path,
        password: str,
        port: int,
        others: range,
        max_memory: str | None,
        persist: bool,
        fsync: Literal["everysec", "always"],
    ) -> None:
        """
        Args:
            password: password of the whole cluster.
            port: preferred port, taken if it is free.
            others: ports to try if it is not.
        """
        super().__init__(folder, max_memory, persist)
        self.port = port
        self._given = password
        self._others = others
        self._fsync = fsync

    @property
    def address(self) -> Address:
        return self.host, self.port

    def _share(self) -> bool:
        """Share nothing: while this object's cluster holds the lock, a server that still runs here is about to end."""
        return False

    def _new_password(self) -> str:
        return self._given

    def _ports(self) -> Iterator[int]:
        yield self.port
        while True:
            yield random.choice(self._others)

    def _configuration(self) -> list[str]:
        return [
            *super()._configuration(),
            f"masterauth {self.password}",
            f"appendfsync {self._fsync}",
            f"no-appendfsync-on-rewrite {'yes' if self._fsync == 'everysec' else 'no'}",
            "repl-diskless-sync-delay 0",
            "cluster-enabled yes",
            f"cluster-announce-ip {self.host}",
            f"cluster-node-timeout {NODE_TIMEOUT * 1000:.0f}",
            "cluster-allow-replica-migration no",  # a primary whose slots have moved elsewhere stays one
            # Without one node a part of the rows is away, which the tier below has, too; the others serve theirs.
            "cluster-require-full-coverage no",
            # A node cut off from the others takes no writes. Rows that it has are old at worst, and an old embedding
            # row is better than the default value.
            "cluster-allow-reads-when-down yes",
        ]


def _name(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def _slots(entry: dict[str, Any]) -> set[int]:
    """Slots of a node, from its line in ``CLUSTER NODES``."""
    return {slot for ends in entry["slots"] for slot in range(int(ends[0]), int(ends[-1]) + 1)}


def _in_touch(entry: dict[str, Any]) -> bool:
    """Whether a node has a connection to another one and does not take it for dead."""
    return entry["connected"] and not {"fail", "fail?", "handshake", "noaddr"} & set(entry["flags"].split(","))


def _on_each(servers: list[_Node], do: Callable[[_Node], None]) -> None:
    """Do the same with all nodes at the same time."""
    with ThreadPoolExecutor(max(len(servers), 1)) as threads:
        list(threads.map(do, servers))
