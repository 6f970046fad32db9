"""Machines on one machine: each node has network, processes, mounts, shared memory and a host name of its own.

As root. A node's processes end with it, whatever happened before; no name or file is shared with another test.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
PATH = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SUBNET = "10.231.77"

_INIT = """set -e
mount --make-rprivate /
mount --bind {hosts} /etc/hosts
hostname {name}
for folder in /tmp/ray /dev/shm; do mkdir -p $folder; mount -t tmpfs -o mode=1777,size=2g tmpfs $folder; done
{mounts}
echo ready
while :; do sleep 1000 & wait $!; done  # as a container's init: waits for orphans
"""


def sh(*command: str | Path) -> str:
    """Run a command that has to succeed; its output."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@dataclass
class Program:
    """What runs on a node."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def out(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """To the program itself, not to the nsenter that waits for it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), number)

    def until(self, true: Callable[[], object], what: str, deadline_s: float) -> None:
        """Wait; fails where the program ends before, with what it has printed."""
        end = time.monotonic() + deadline_s
        while not true():
            assert self.process.poll() is None, f"no {what} before the end, code {self.process.returncode}:\n{self.out}"
            assert time.monotonic() < end, f"no {what} in {deadline_s} s:\n{self.out}"
            time.sleep(0.1)

    def finish(self, deadline_s: float) -> int:
        """Wait for its own end; the exit code."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {deadline_s} s:\n{self.out}") from None


@dataclass
class Node:
    """One machine. ``start`` and ``run`` execute commands on it."""

    name: str
    ip: str
    netns: str
    folder: Path
    mounts: Sequence[str] = ()
    """Shell commands that are run on it before anything else."""
    programs: list[Program] = field(default_factory=list)
    _init: subprocess.Popen[str] | None = None

    def boot(self) -> None:
        """Power on; also after ``kill``."""
        script = _INIT.format(hosts=self.folder.parent / "hosts", name=self.name, mounts="\n".join(self.mounts))
        spaces = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
        self._init = subprocess.Popen(
            ["ip", "netns", "exec", self.netns, *spaces, "bash", "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == "ready\n"

    def _enter(self, command: Sequence[str | Path], env: Mapping[str, str] | None) -> list[str]:
        assert self._init is not None
        inner = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()[0]
        known = {"PATH": PATH, "HOME": str(self.folder), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        pairs = [f"{name}={value}" for name, value in (known | dict(env or {})).items()]
        spaces = [f"--{kind}" for kind in ("mount", "pid", "net", "ipc", "uts")]
        return ["nsenter", "--target", inner, *spaces, "env", "-i", *pairs, *map(str, command)]

    def start(
        self, *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, name: str = "log"
    ) -> Program:
        """Start a command here."""
        log = self.folder / f"{name}-{len(self.programs)}.txt"
        script = f"cd {shlex.quote(str(cwd or self.folder))} && exec {shlex.join(map(str, command))}"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self._enter(["sh", "-c", script], env), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        self.programs.append(Program(process, log))
        return self.programs[-1]

    def run(
        self, *command: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end."""
        return subprocess.run(self._enter(command, env), capture_output=True, text=True, timeout=timeout_s, check=False)

    def kill(self) -> None:
        """Power off: every process ends by SIGKILL at once. The network stays."""
        if self._init is not None:
            self._init.kill()
            self._init.communicate()
            self._init = None
        for program in self.programs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.process.wait(5)

    def link(self, state: str) -> None:
        """``down``: pull the cable, from the switch's side, so that the node itself notices nothing."""
        sh("ip", "-n", f"{self.netns.split('-')[0]}-switch", "link", "set", f"p{self.ip.rpartition('.')[2]}", state)


class Network:
    """A switch and nodes, each of which knows all others by name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prefix = folder, f"q{uuid.uuid4().hex[:6]}"
        self.nodes: dict[str, Node] = {}

    def open(self) -> None:
        """Set up the switch."""
        switch = f"{self.prefix}-switch"
        sh("ip", "netns", "add", switch)
        sh("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        sh("ip", "-n", switch, "link", "set", "bridge", "up")
        self._write_hosts()

    def join(self, name: str, of: str, mounts: Sequence[str] = ()) -> Node:
        """A node that shares the network of another one, as a container with ``network_mode: service:...`` does."""
        node = Node(name, self.nodes[of].ip, self.nodes[of].netns, self.folder / name, mounts)
        node.folder.mkdir()
        self.nodes[name] = node
        self._write_hosts()
        node.boot()
        return node

    def add(self, name: str, mounts: Sequence[str] = ()) -> Node:
        """One more node, with its address."""
        number = 10 + len(self.nodes)
        netns, switch, port = f"{self.prefix}-{name}", f"{self.prefix}-switch", f"p{number}"
        sh("ip", "netns", "add", netns)
        node = Node(name, f"{SUBNET}.{number}", netns, self.folder / name, mounts)
        self.nodes[name] = node
        sh("ip", "-n", netns, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
        sh("ip", "-n", switch, "link", "set", port, "master", "bridge")
        sh("ip", "-n", switch, "link", "set", port, "up")
        sh("ip", "-n", netns, "addr", "add", f"{node.ip}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            sh("ip", "-n", netns, "link", "set", device, "up")
        node.folder.mkdir()
        self._write_hosts()
        node.boot()
        return node

    def _write_hosts(self) -> None:
        lines = ["127.0.0.1 localhost", *(f"{node.ip} {name}" for name, node in self.nodes.items())]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")  # in place: it is mounted by inode

    def close(self) -> None:
        """End everything on every node, and the nodes."""
        for node in self.nodes.values():
            node.kill()
        for line in sh("ip", "netns", "list").splitlines():
            if line.startswith(f"{self.prefix}-"):
                subprocess.run(["ip", "netns", "del", line.split()[0]], check=False, timeout=20)


@contextlib.contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A network that is gone afterwards."""
    net = Network(folder)
    try:
        net.open()
        yield net
    finally:
        net.close()


def quit_in_order(program: Program, deadline_s: float) -> int:
    """SIGTERM, and wait."""
    program.signal(signal.SIGTERM)
    return program.finish(deadline_s)


def secrets_shown(secrets: Path, folder: Path, nodes: Sequence[Node]) -> list[str]:
    """Where a secret of ``qherd secrets`` is seen that should not be: the nodes' command lines, and files in ``folder``
    (logs, a run's directory). ``users.acl`` has digests."""
    texts = [path.read_text() for path in secrets.rglob("*") if path.is_file() and path.name != "users.acl"]
    hidden = {word for text in texts for word in re.findall(r"[\w-]{30,}", text)}
    assert len(hidden) >= 6, "a token and five passwords at least"
    places = {f"ps on {node.name}": node.run("ps", "-eo", "args").stdout for node in nodes}
    inside = [Path(at) / name for at, _, names in os.walk(folder) for name in names]
    for path in inside:
        with contextlib.suppress(FileNotFoundError):  # a run at work renames its files
            if path.is_file() and secrets not in path.parents:
                places[str(path)] = path.read_bytes().decode(errors="replace")
    return [place for place, text in places.items() if any(secret in text for secret in hidden)]
