"""The project's own real Redis, for machines where none is configured.

A ``redis-server`` process with its own port, password and folder. It ends with the process that started it, however
that process ends. A lock on a file in the folder, which the server inherits, makes sure that no two servers
ever use one folder; whoever comes second connects to the first one's server. A server that dies by itself comes back
at the same address.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import StoreError
from ..utils.ports import free_ports
from .process import FolderLock, kill, spawn, stop, watched, write_private
from .redis_binary import find_redis_server

START_SECONDS = 120.0  # includes reading the data back from disk
STOP_SECONDS = 20.0

STATE, LOCK, CONF, LOG = "server.json", "server.lock", "redis.conf", "redis.log"
PORT_TAKEN = "Failed listening on port"


class Embedded(ABC):
    """Base of servers with a folder of their own: the first process to lock it starts the server, later ones share it.

    Attributes:
        folder: data, configuration, log and state.
    """

    what = "Redis"
    choose = "set RECSYS_REDIS_FOLDER to"  # how to take another folder

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._lock = FolderLock(self.folder / LOCK)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers, or connect to the one that runs on this folder.

        Raises:
            StoreError: no usable Redis, the folder cannot be written, or it does not start.
        """
        deadline = time.monotonic() + START_SECONDS
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            while not self._lock.take():
                if self._share():
                    return
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"{self.folder} is locked by a {self.what} that does not answer: stop it, or {self.choose} "
                        "another folder"
                    )
                time.sleep(0.05)
            self._launch(deadline)
        except OSError as error:
            self.stop()
            raise StoreError(
                f"cannot keep {self.what} data in {self.folder}: {error.strerror or error}; "
                f"{self.choose} a folder that can be written"
            ) from error
        except BaseException:
            self.stop()
            raise

    @abstractmethod
    def stop(self) -> None:
        """Stop it if this object started it."""

    @abstractmethod
    def _share(self) -> bool:
        """Connect to what runs in the folder; False while that is starting or stopping."""

    @abstractmethod
    def _launch(self, deadline: float) -> None:
        """Start it in the folder, which this object has locked."""


class EmbeddedRedis(Embedded):
    """A Redis server on 127.0.0.1 that lives as long as the ``with`` block, or a share of one that already runs.

    Attributes:
        host, port, password: address and password for clients.
        pid: process id of the server when it was started or found.
        owned: whether this object started the server and stops it.

    Example:
        >>> with EmbeddedRedis(Path("data/redis")) as server:  # doctest: +SKIP
        ...     redis.Redis(port=server.port, password=server.password).ping()
        True
    """

    host = "127.0.0.1"
    port: int
    password: str
    pid: int

    def __init__(self, folder: Path, max_memory: str | None = None, persist: bool = True) -> None:
        """
        Args:
            folder: data, configuration and log of the server; made if it is not there.
            max_memory: limit as Redis writes it, such as ``512mb``; writes beyond it are refused, nothing is evicted.
                Without effect on a server that already runs.
            persist: keep the data on disk (append-only file, at most one second is lost when the machine dies).
        """
        super().__init__(folder)
        self.max_memory = max_memory
        self.persist = persist
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def owned(self) -> bool:
        return self._process is not None

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def stop(self) -> None:
        """Stop the server if this object started it: first politely, after 20 s for certain."""
        process, self._process = self._process, None
        if process is not None:
            stop(process, STOP_SECONDS, saves=self.persist)
        self._lock.release()

    def kill(self) -> None:
        """End the server that this object started at once, as a crash would; it does not come back by itself."""
        process, self._process = self._process, None
        if process is not None:
            kill(process)
            (self.folder / STATE).unlink(missing_ok=True)

    def _share(self) -> bool:
        """Connect to the server that holds the lock; False while it is starting or stopping."""
        try:
            state = json.loads((self.folder / STATE).read_text())
            self.port, self.password = state["port"], state["password"]
            self.pid = self._server_pid()
            return True
        except (FileNotFoundError, ValueError, KeyError, redis.RedisError):
            return False

    def _server_pid(self) -> int:
        """Ask the server for its process id, once it has read its data."""
        once = Retry(NoBackoff(), 0)
        with redis.Redis(self.host, self.port, password=self.password, socket_timeout=1, retry=once) as client:
            client.ping()
            return int(client.info("server")["process_id"])

    def _launch(self, deadline: float) -> None:
        binary = find_redis_server()
        self.password = self._new_password()
        (self.folder / STATE).unlink(missing_ok=True)
        for port in self._ports():
            self.port = port
            write_private(self.folder / CONF, "\n".join(self._configuration()) + "\n")
            with (self.folder / LOG).open("wb") as log:
                # A server that dies unasked, after it was ready, is started again in its place.
                command = watched([binary, CONF], f"rm -f {STATE}; kill -TERM $child", again=f"[ -f {STATE} ]")
                self._process = spawn(command, log, self.folder, lock=self._lock)
            while self._process.poll() is None:
                with contextlib.suppress(redis.RedisError):
                    self.pid = self._server_pid()
                    state = {"port": self.port, "password": self.password, "pid": self.pid}
                    write_private(self.folder / STATE, json.dumps(state))
                    self._lock.release()  # from here on only the server holds it
                    return
                if time.monotonic() > deadline:
                    raise StoreError(f"Redis is not ready after {START_SECONDS:.0f} s: {self._last_words()}")
                time.sleep(0.02)
            if PORT_TAKEN not in self._last_words():  # somebody took the port in between: try another
                raise StoreError(f"Redis in {self.folder} does not start: {self._last_words()}")

    def _new_password(self) -> str:
        return secrets.token_urlsafe(32)

    def _ports(self) -> Iterator[int]:
        """Ports to try."""
        while True:
            yield from free_ports(1)

    def _configuration(self) -> list[str]:
        """Lines of the server's configuration file."""
        lines = [
            f"bind {self.host}",
            "protected-mode yes",
            f"port {self.port}",
            f"requirepass {self.password}",
            'save ""',
            f"appendonly {'yes' if self.persist else 'no'}",
            "appendfsync everysec",
            "no-appendfsync-on-rewrite yes",
            "auto-aof-rewrite-min-size 256mb",
            "shutdown-on-sigterm force",  # ends even when the disk is full
            "lazyfree-lazy-expire yes",
            "maxmemory-policy noeviction",
        ]
        if self.max_memory is not None:
            lines.append(f"maxmemory {self.max_memory}")
        return lines

    def _last_words(self) -> str:
        """The end of the server's log; of a wrong setting both the setting and the reason."""
        lines = (self.folder / LOG).read_text(errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()] or ["its log is empty"]
        setting = lines[-2].removeprefix(">>> ") + ": " if len(lines) > 1 and lines[-2].startswith(">>>") else ""
        return f"{setting}{lines[-1]} (see {self.folder / LOG})"
