"""The project's own real Triton, for machines where none is configured.

A ``tritonserver`` process out of the serving environment, with its own model repository. Like the embedded Redis it
ends with the process that started it, however that process ends, and so do the processes of its Python models. When the
server dies by itself, ``watch`` starts it again.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..config import Settings, TritonSettings
from ..errors import ServingError
from ..triton.protocol import STATE, TOKEN
from ..utils.environments import located
from ..utils.ports import free_ports
from .process import FolderLock, kill, spawn, stop, watched, write_private

START_SECONDS = 300.0  # models may be large and the machine busy
DRAIN_SECONDS = 5  # that requests in flight get when the server stops
STOP_SECONDS = 20.0
DEAD_SECONDS = 2.0  # after which the server, which starts, will not notice any more that a model's process has ended
LOOK_SECONDS = 0.2  # between looks at the processes
LONGEST_PAUSE = 10.0  # seconds between attempts to start a server that keeps failing
STABLE = 60.0  # seconds after which a server that dies is started without a pause
CACHE_BYTES = 64 << 20
MODELS, BACKENDS, LOCK, LOG = "models", "backends", "server.lock", "triton.log"
MANAGEMENT = "shared-memory,model-repository,trace,logging"
USE = "inference,metadata,model-config,statistics"

INSPECT = """
import importlib.metadata, importlib.util, json, sys, sysconfig
spec = importlib.util.find_spec("pytriton")
print(json.dumps({
    "triton": spec and spec.submodule_search_locations[0] + "/tritonserver",
    "python": "%d.%d" % sys.version_info[:2],
    "libraries": sysconfig.get_config_var("LIBDIR"),
    "numpy": importlib.metadata.version("numpy"),
    "package": importlib.util.find_spec("redis_recsys") is not None,
}))
"""

log = logging.getLogger(__name__)


def own_triton(settings: Settings, repository: Path) -> Settings:
    """The settings with a Triton that meets no other one: a model repository of its own, free ports."""
    return settings.changed("triton", host=None, grpc_port=0, http_port=0, metrics_port=0, repository=repository)


class EmbeddedTriton:
    """A Triton server that lives as long as the ``with`` block.

    Attributes:
        host: address for clients on this machine.
        grpc_port, http_port, metrics_port: ports as set, or free ones where 0 was set.
        pid: id of the server's process group.
        log: file that the server writes to.
        restarts: number of restarts by ``watch``.

    Example:
        >>> with EmbeddedTriton(settings, lambda folder: write(folder, models, settings)) as server:  # doctest: +SKIP
        ...     Client(server.address())
    """

    def __init__(
        self,
        settings: TritonSettings,
        write_models: Callable[[Path], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            settings: addresses, limits, TLS, token and the folder for models, log and state.
            write_models: fills the folder that it is given with the model repository.
            environment: variables of the server's process besides those of this one, of which it does not get the
                ``RECSYS_*`` ones; the way for secrets.
        """
        self.folder = Path(os.path.abspath(settings.repository))
        self.log = self.folder / LOG
        self.restarts = 0
        self._settings = settings
        self._write_models = write_models
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = FolderLock(self.folder / LOCK)
        self._changing = threading.Lock()
        self._log_start = 0
        free = iter(free_ports(3))
        ports = [port or next(free) for port in (settings.grpc_port, settings.http_port, settings.metrics_port)]
        self.grpc_port, self.http_port, self.metrics_port = ports
        self.host = "127.0.0.1" if settings.address in ("0.0.0.0", "::") else settings.address

    def __enter__(self) -> EmbeddedTriton:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Write the models, start the server, and wait until it answers for all of them.

        Raises:
            ServingError: the environment is not there, a model does not load, a port is taken, or another server
                uses the folder.
            DataError: the model repository cannot be written, or another one is there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._lock.take():
                raise ServingError(
                    f"another Triton runs in {self.folder}: stop it, or set RECSYS_TRITON_REPOSITORY to another folder"
                )
            self._environment |= self._prepared()
            self._write_models(self.folder / MODELS)
            self.log.write_bytes(b"")
            self._launch()
        except OSError as error:
            self.stop()
            raise ServingError(
                f"cannot run Triton in {self.folder}: {error.strerror or error}; set RECSYS_TRITON_REPOSITORY to a "
                "folder that can be written"
            ) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server: first politely, for certain after 20 s, or 0.6 s after Ctrl-C. No process of it is left."""
        with self._changing:
            self._end()
            self._lock.release()

    def watch(self, stop: threading.Event) -> None:
        """Start the server again whenever it or a model's process dies, until ``stop`` is set.

        Triton does not replace the process of a model that was killed. Attempts that fail grow apart, up to 10 s.
        """
        pause, started = 0.0, time.monotonic()
        while not stop.wait(LOOK_SECONDS):
            with self._changing:
                if self._lock.descriptor is None or self._alive():
                    continue
            pause = 0.0 if time.monotonic() - started > STABLE else pause
            log.warning("Triton or a model in it has ended (%s): starting it again", self._last_words())
            if stop.wait(pause):
                return
            pause, started = min(LONGEST_PAUSE, pause * 2 or 0.5), time.monotonic()
            try:
                with self._changing:
                    self._end(politely=False)
                    self._launch(stop)
                    self.restarts += 1
            except (ServingError, OSError) as error:
                log.error("%s", error)

    def ready(self) -> bool:
        """Whether the server answers and all models are loaded."""
        connection = http.client.HTTPConnection(self._http_host(), self.http_port, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _prepared(self) -> dict[str, str]:
        """Find the server in the serving environment, and lay out the folder of backends; returns variables it needs.

        The stub of the Python backend loads the libpython it finds and the ``python`` that is first on PATH.
        """
        environment = located(self._settings.environment)
        how = (
            "make it with 'recsys setup serving', or let RECSYS_TRITON_ENVIRONMENT name one with redis-recsys[serving]"
        )
        try:
            answer = subprocess.run([environment / "bin" / "python", "-c", INSPECT], capture_output=True, text=True)
            found: dict[str, Any] = json.loads(answer.stdout)
        except (OSError, ValueError) as error:
            raise ServingError(f"no serving environment in {environment}: {how}") from error
        if not found["triton"] or not found["package"] or int(found["numpy"].split(".")[0]) > 1:
            raise ServingError(f"{environment} lacks nvidia-pytriton, redis-recsys, or a NumPy before 2: {how}")
        self._triton = Path(found["triton"])
        stub = self._triton / "python_backend_stubs" / found["python"] / "triton_python_backend_stub"
        backend = self.folder / BACKENDS / "python"
        # links of ours and what Python has compiled of them; anything else is of somebody's own Triton
        if any(not path.is_symlink() and path.name != "__pycache__" for path in backend.glob("*")):
            raise ServingError(f"{backend} is not this project's: set RECSYS_TRITON_REPOSITORY to another folder")
        shutil.rmtree(backend, ignore_errors=True)
        backend.mkdir(parents=True)
        for file in (*(self._triton / "backends" / "python").glob("*.*"), stub):
            (backend / file.name).symlink_to(file)
        return {
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [found["libraries"], os.environ.get("LD_LIBRARY_PATH")])),
            "VIRTUAL_ENV": str(environment),
        }

    def _launch(self, stop: threading.Event | None = None) -> None:
        """Start the server and wait for it, or until ``stop`` is set.

        Raises:
            ServingError: it does not become ready.
        """
        self.memory = memory = f"recsys-triton-{secrets.token_hex(6)}"
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            command = watched(
                self.command(memory),
                f"kill -INT $child; sleep {STOP_SECONDS / 2:.0f}; kill -KILL $child",
                # Whatever ends the server, the rest of its group ends too: the processes of the models, and this shell.
                f'echo "tritonserver ended with code $code"; rm -f {STATE} /dev/shm/{memory}*; kill -KILL 0',
            )
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("RECSYS_")}
            environment = inherited | {"OMP_NUM_THREADS": "1"} | self._environment
            self._process = spawn(command, output, self.folder, environment, self._lock)
        all_alive = time.monotonic()
        deadline = all_alive + START_SECONDS
        while not (self._process.poll() is None and self.ready()):
            if not _models_of(self._process.pid, defunct=True):
                all_alive = time.monotonic()
            if self._process.poll() is not None or time.monotonic() > all_alive + DEAD_SECONDS:
                self._end(politely=False)
                raise ServingError(f"Triton does not start: {self._last_words()}")
            if stop is not None and stop.is_set():
                return
            if time.monotonic() > deadline:
                self._end(politely=False)
                raise ServingError(f"Triton is not ready after {START_SECONDS:.0f} s: {self._last_words()}")
            time.sleep(0.05)
        self._models = _models_of(self._process.pid)
        state = {"host": self.host, "grpc_port": self.grpc_port, "http_port": self.http_port}
        write_private(self.folder / STATE, json.dumps(state | {"metrics_port": self.metrics_port}))

    def _alive(self) -> bool:
        """Whether the server and all processes of models run."""
        if self._process is None or self._process.poll() is not None:
            return False
        return self._models <= _models_of(self._process.pid)

    def _end(self, politely: bool = True) -> None:
        """End the process group, if there is one, and remove what it left in shared memory."""
        process, self._process = self._process, None
        if process is not None:
            if politely:
                # With its models it has done all that matters, but it goes on looking for them once a second.
                stop(process, STOP_SECONDS, enough=lambda: not _models_of(process.pid))
            else:
                kill(process)
            (self.folder / STATE).unlink(missing_ok=True)
            for path in Path("/dev/shm").glob(f"{self.memory}*"):
                path.unlink(missing_ok=True)

    def _http_host(self) -> str:
        return "127.0.0.1" if self._settings.tls_certificate is not None else self.host

    def command(self, memory: str) -> list[str]:
        settings = self._settings
        token = settings.token.get_secret_value() if settings.token is not None else None
        options = {
            "model-repository": self.folder / MODELS,
            "backend-directory": self.folder / BACKENDS,
            "cache-directory": self._triton / "caches",
            "grpc-address": settings.address,
            "grpc-port": self.grpc_port,
            # HTTP knows no TLS here: with TLS it is for this machine's health checks only
            "http-address": self._http_host() if settings.tls_certificate is not None else settings.address,
            "http-port": self.http_port,
            "metrics-address": settings.address,
            "metrics-port": self.metrics_port,
            "exit-timeout-secs": DRAIN_SECONDS,
            "backend-config": f"python,shm-region-prefix-name={memory}",
        }
        command = [
            str(self._triton / "bin" / "tritonserver"),
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        command.append("--disable-auto-complete-config")  # they are complete; saves a start of every model
        command.append(f"--backend-config=python,stub-timeout-seconds={START_SECONDS:.0f}")
        if settings.cache:
            command.append(f"--cache-config=local,size={CACHE_BYTES}")
        if settings.tls_certificate is not None:
            command += [
                "--grpc-use-ssl=true",
                f"--grpc-server-cert={settings.tls_certificate.absolute()}",
                f"--grpc-server-key={(settings.tls_key or settings.tls_certificate).absolute()}",
            ]
        # Nobody needs to manage this server from outside: these calls take a secret that is told to nobody.
        restricted = [(MANAGEMENT, f"management={secrets.token_urlsafe(32)}")]
        if token is not None:
            restricted.append((USE, f"{TOKEN}={token}"))
        for calls, key in restricted:
            command += [f"--grpc-restricted-protocol={calls}:{key}", f"--http-restricted-api={calls}:{key}"]
        return command

    def _last_words(self) -> str:
        """Reason for which the server ended, from its log since it was started."""
        path = self.log
        with path.open("rb") as file:
            file.seek(self._log_start)
            text = file.read().decode(errors="replace")
        reasons = (
            r"\| *UNAVAILABLE: *(?:Internal: *)?(.+?) *\|$",
            r"Failed to preinitialize Python stub: (.+)",
            r"failed to load '\S+' version \d+: (.+)",
            r"(Socket '\S+' already in use)",
            r"^E\d{4} .*?\] \"(Poll failed .+?)\"?$",
            r"^error: (.+)",
            r"^(.+)$",
        )
        for reason in reasons:
            matches = re.findall(reason, text, re.MULTILINE)
            if matches:
                return f"{matches[-1].strip()} (see {path})"
        return f"its log is empty (see {path})"


def _models_of(group: int, defunct: bool = False) -> set[int]:
    """Processes of models in a process group that run, or that have ended and were not asked why."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, rest = path.read_text().split("(", 1)[1].rsplit(")", 1)
            state, _, its_group = rest.split()[:3]
            if name.startswith("triton_python") and int(its_group) == group and (state == "Z") == defunct:
                found.add(int(path.parent.name))
    return found
