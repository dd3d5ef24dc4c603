"""Debian hosts on this machine, for tests that need a whole one, root's rights included: real systemd, SSH, packages.

A host is a set of Linux namespaces (processes, mounts, network, name) with systemd as its first process and an overlay
over one Debian 13 that is made once. It writes to a disk of its own, which is full when the host has filled it, not
when this machine's disk is. Hosts hang on a bridge, a :class:`Network`, with the addresses that they would have in the
cloud; the machine translates their traffic to the internet, as a NAT gateway does. Hosts need root, loop devices,
mmdebstrap, e2fsprogs, iproute2 and nftables. They end with the process that started them, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

CACHE = ROOT / ".cache/hosts"
SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"
# Packages of Debian's own cloud image, which roles may expect.
PACKAGES = "systemd-sysv,dbus,libpam-systemd,openssh-server,sudo,python3,python3-apt,iproute2,iputils-ping,curl,procps"
USER = "admin"  # of Debian's images in the cloud
DISK = "40G"  # of each host: no more than what it writes is taken from this machine's
BOOT_SECONDS = 60.0
PREFIX = "rc-"  # of namespaces, bridges and cables, to find those of a run that was killed

TRANSLATION = """
table ip {table} {{
  chain out {{
    type nat hook postrouting priority 100
    ip saddr {inside} ip daddr != {inside} oifname != "{bridge}" masquerade
  }}
  chain apart {{
    type filter hook forward priority 0
    iifname "{bridge}" oifname "{others}" oifname != "{bridge}" drop
  }}
}}
"""

BOOT = """
set -e
mount -o loop,discard $FOLDER/disk.img $FOLDER/disk
mount -t overlay overlay -o lowerdir=$BASE,upperdir=$FOLDER/disk/upper,workdir=$FOLDER/disk/work $FOLDER/root
cd $FOLDER/root
mkdir -p var/lib/docker && mount --bind $FOLDER/disk/docker var/lib/docker  # no overlay on an overlay
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/pts dev/shm dev/net
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
touch dev/net/tun && mount --bind /dev/net/tun dev/net/tun
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin && ln -s fd/1 dev/stdout && ln -s fd/2 dev/stderr
hostname $NAME
cd $FOLDER/root && pivot_root . mnt && cd /
umount -l /mnt
exec env -i container=recsys-test TERM=dumb PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd
"""


def _run(*command: str, check: bool = True, text: str | None = None) -> str:
    """The output of a command on this machine."""
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{command[-1]} ended with {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


def _dies_with_parent() -> None:
    """Have the new process in which this runs killed when its parent ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def base(folder: Path) -> Path:
    """The Debian that all hosts share, made on the first call; other processes wait meanwhile.

    Raises:
        RuntimeError: it cannot be made, with mmdebstrap's output.
    """
    made = folder / f"debian-{SUITE}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            _make_base(folder).rename(made)
    return made


def _make_base(folder: Path) -> Path:
    """Make a Debian with the packages of the cloud's images, beside its final place."""
    if not shutil.which("mmdebstrap"):
        raise RuntimeError("mmdebstrap is missing: apt-get install mmdebstrap")
    aside = folder / f"debian-{SUITE}.part"
    if aside.exists():
        shutil.rmtree(aside)
    _run(
        "unshare",  # so that its mounts end with it, even if it is killed
        "--mount",
        "mmdebstrap",
        "--variant=minbase",
        f"--include={PACKAGES}",
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        '--aptopt=Acquire::Languages "none"',
        "--skip=cleanup/apt/lists",  # new enough for hosts that start within the hour
        SUITE,
        str(aside),
        MIRROR,
    )
    root = aside.resolve()
    _run("chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", USER)
    (root / "etc/sudoers.d/90-cloud").write_text(f"{USER} ALL=(ALL) NOPASSWD:ALL\n")
    # Compiling every package's Python ahead takes longer than compiling the used ones on use.
    (root / "usr/bin/py3compile").unlink()
    (root / "usr/bin/py3compile").symlink_to("/bin/true")
    # Nor does it pay to compile Ansible's library, which never changes, again for every task.
    packages = root / "usr/lib/python3/dist-packages"
    shutil.copy(Path(__file__).with_name("keep_compiled.py"), packages)
    (packages / "keep_compiled.pth").write_text("import keep_compiled\n")
    (root / "var/cache/keep_compiled").mkdir()
    # A namespace has no kernel of its own, so nothing may load modules or set its clock.
    for unit in ("systemd-modules-load.service", "systemd-timesyncd.service", "getty.target"):
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    return aside


def _make_disk(image: Path, content: Path) -> None:
    """Make a file system with some content in a sparse file. It needs no journal: no host survives its tests."""
    _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", str(content), str(image), DISK)


def _until(found: Callable[[], Any], what: str) -> Any:
    """Result of a function, once it has one.

    Raises:
        RuntimeError: it has none within a minute.
    """
    end = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < end:
        result = found()
        if result:
            return result
        time.sleep(0.1)
    raise RuntimeError(what)


def _cgroups() -> Path:
    """Path of the control groups of version 2, into which systemd sorts its services."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next(Path(path) for _, path, kind, *_ in mounts if kind == "cgroup2")


@dataclass
class Host:
    """A running host.

    Attributes:
        name: name of the host.
        address: address of its first interface.
        process: process that waits for its first process.
        folder: folder of its disk and its console.
    """

    name: str
    address: str
    process: subprocess.Popen[bytes]
    folder: Path
    pid: int = field(init=False)

    def __post_init__(self) -> None:
        self.pid = _until(self._first_process, f"{self.name} does not start: {self.folder / 'console'}")

    def _first_process(self) -> int:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended: {(self.folder / 'console').read_text()}")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next((int(each) for each in children if Path(f"/proc/{each}/comm").read_text() == "systemd\n"), 0)

    @property
    def files(self) -> Path:
        """Its file system, as this machine sees it while the host runs."""
        return Path(f"/proc/{self.pid}/root")

    def run(self, command: str, check: bool = True) -> str:
        """The output of a shell command that root runs on the host.

        Raises:
            RuntimeError: it failed, with its output, unless ``check`` is false.
        """
        return _run("nsenter", "-t", str(self.pid), "-a", "/bin/sh", "-c", command, check=check)

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Write a file on the host."""
        inside = f"mkdir -p {shlex.quote(os.path.dirname(path))} && cat > {shlex.quote(path)} && chmod {mode} {path}"
        _run("nsenter", "-t", str(self.pid), "-a", "/bin/sh", "-c", inside, text=text)

    def from_its_network(self, *command: str, check: bool = True, **variables: str) -> str:
        """The output of a program of this machine that sees the host's network and names.

        Raises:
            RuntimeError: it failed, with its output, unless ``check`` is false.
        """
        names = self.folder / "names"
        names.write_text(self.run("cat /etc/hosts"))
        inside = f"mount --bind {names} /etc/hosts; exec nsenter -t {self.pid} -n {shlex.join(command)}"
        given = [f"{name}={value}" for name, value in variables.items()]
        return _run("env", *given, "unshare", "--mount", "/bin/sh", "-c", inside, check=check)

    def is_up(self) -> bool:
        """Whether systemd has started everything and SSH answers."""
        if self.run("systemctl is-system-running", check=False).strip() not in ("running", "degraded"):
            return False
        with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
        return False


class Network:
    """Hosts that reach each other and, if ``nat``, the internet, but not the hosts of another network.

    Example:
        >>> with Network("vpc", "10.20.0.1/16", cache, tmp_path, public_key) as vpc:  # doctest: +SKIP
        ...     vpc.start({"redis-1": "10.20.3.7"})["redis-1"].run("uptime")
    """

    def __init__(self, name: str, gateway: str, cache: Path, folder: Path, public_key: str, nat: bool = True) -> None:
        """
        Args:
            name: at most ten letters.
            gateway: this machine's address in it, with the length of the network's prefix.
            cache: folder for the Debian that hosts share.
            folder: folder for the disks of hosts.
            public_key: key that may log in by SSH as ``admin``.
            nat: whether hosts reach the internet through this machine.
        """
        self.name, self.bridge = name, f"{PREFIX}{name}"
        self.gateway = IPv4Interface(gateway)
        self.hosts: dict[str, Host] = {}
        self._cache = cache
        self._folder = folder / name
        self._public_key = public_key
        self._nat = nat

    def __enter__(self) -> Network:
        self._sweep()
        _run("ip", "link", "add", self.bridge, "type", "bridge")
        _run("ip", "address", "add", str(self.gateway), "dev", self.bridge)
        _run("ip", "link", "set", self.bridge, "up")
        if self._nat:
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            _run(
                "nft",
                "-f",
                "-",
                text=TRANSLATION.format(
                    table=self._table, inside=self.gateway.network, bridge=self.bridge, others=f"{PREFIX}*"
                ),
            )
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.process.kill()  # and with it, by --kill-child, all that runs on the host
            host.process.wait()
        self._sweep()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, addresses: Mapping[str, str]) -> dict[str, Host]:
        """Start hosts together and wait until SSH answers on all.

        Args:
            addresses: name -> address.

        Raises:
            RuntimeError: one does not start, with its console.
        """
        shared = base(self._cache)
        started = {name: self._boot(shared, name, address) for name, address in addresses.items()}
        self.hosts |= started
        for host in started.values():
            _until(lambda host=host: host.is_up(), f"{host.name} does not start: {host.folder / 'console'}")
        return started

    def attach(self, host: Host, address: str, interface: str) -> None:
        """Give a host of another network an address in this one."""
        self._plug(self._namespace(host.name), f"{host.name[:6]}{interface}", address, interface)

    @property
    def _table(self) -> str:
        return f"recsys_test_{self.name}"

    @staticmethod
    def _namespace(host: str) -> str:
        return f"{PREFIX}{host}"

    def _plug(self, namespace: str, cable: str, address: str, interface: str) -> None:
        """Run a cable from the bridge into the namespace."""
        outside = f"{PREFIX}{cable}"
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", interface, "netns", namespace)
        _run("ip", "link", "set", outside, "master", self.bridge, "up")
        within = ("ip", "-n", namespace)
        _run(*within, "address", "add", f"{address}/{self.gateway.network.prefixlen}", "dev", interface)
        _run(*within, "link", "set", interface, "up")

    def _boot(self, shared: Path, name: str, address: str) -> Host:
        """Start a host: its network namespace first, the others with its first process."""
        folder = self._folder / name
        namespace = self._namespace(name)
        _run("ip", "netns", "delete", namespace, check=False)  # of a run that was killed
        shutil.rmtree(folder, ignore_errors=True)
        for each in ("root", "disk/work", "disk/docker", "disk/upper/home/admin/.ssh", "disk/upper/etc"):
            (folder / each).mkdir(parents=True)
        upper = folder / "disk/upper"
        # Owners and modes are those of the lower folder only where the upper one has none of its own.
        owner = next(line for line in (shared / "etc/passwd").read_text().splitlines() if line.startswith(f"{USER}:"))
        uid, gid = map(int, owner.split(":")[2:4])
        keys = upper / "home/admin/.ssh/authorized_keys"
        keys.write_text(f"{self._public_key}\n")
        for path in (keys, keys.parent, keys.parent.parent):
            os.chown(path, uid, gid)
        (upper / "etc/hostname").write_text(f"{name}\n")
        (upper / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        shutil.copy("/etc/resolv.conf", upper / "etc/resolv.conf")
        _make_disk(folder / "disk.img", folder / "disk")
        _run("ip", "netns", "add", namespace)
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
        self._plug(namespace, name[:10], address, "eth0")
        if self._nat:
            _run("ip", "-n", namespace, "route", "add", "default", "via", str(self.gateway.ip))
        group = _cgroups() / f"{PREFIX}{name}"
        group.mkdir(exist_ok=True)
        enter = f"echo 0 > {group}/cgroup.procs; exec ip netns exec {namespace} unshare --pid --fork --kill-child=KILL "
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"{enter} --mount --uts --ipc --cgroup /bin/sh -c {shlex.quote(BOOT)}"],
            stdin=subprocess.DEVNULL,
            stdout=(folder / "console").open("wb"),
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "FOLDER": str(folder), "BASE": str(shared), "NAME": name},
            preexec_fn=_dies_with_parent,
        )
        return Host(name, address, process, folder)

    def _sweep(self) -> None:
        """Remove the remains of this network, or of one with its name whose process was killed."""
        for line in _run("ip", "-o", "link", "show", "master", self.bridge, check=False).splitlines():
            _run("ip", "link", "delete", line.split(": ")[1].split("@")[0], check=False)
        _run("ip", "link", "delete", self.bridge, check=False)
        if self._nat:
            _run("nft", "delete", "table", "ip", self._table, check=False)
        for name in self.hosts:
            _run("ip", "netns", "delete", self._namespace(name), check=False)
