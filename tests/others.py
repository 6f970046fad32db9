"""What another user of this machine could do to a run: the sockets that its processes listen on, and the files, folders
and sockets that somebody else may read, write or enter."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

NOBODY = 65534
LISTENS = "0A"

_TRY = """
import json, os, socket, stat, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
writable, readable = [], []
for path in json.load(sys.stdin):
    try:
        mode = os.stat(path).st_mode
    except OSError:
        continue
    if stat.S_ISSOCK(mode):
        try:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(path)
            writable.append(path)
        except OSError:
            pass
        continue
    writable += [path] if os.access(path, os.W_OK) else []
    readable += [path] if stat.S_ISREG(mode) and os.access(path, os.R_OK) else []
json.dump([writable, readable], sys.stdout)
"""


class Reach(NamedTuple):
    """What nobody's user reaches: sockets, files and folders to write, and files to read."""

    writable: list[str]
    readable: list[str]


def reach_of_nobody(paths: Iterable[Path]) -> Reach:
    """Try all of them as another user (root alone can)."""
    given = json.dumps([str(path) for path in paths])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _TRY], input=given, capture_output=True, text=True, check=True, timeout=60
    )
    return Reach(*json.loads(done.stdout))


def all_below(*folders: Path) -> list[Path]:
    """The folders themselves and all that is in them, as it is now; what goes meanwhile is left out."""
    found = list(folders)
    for folder in folders:
        for at, names, files in os.walk(folder):
            found += [Path(at, name) for name in (*names, *files)]
    return found


def open_by_mode(folder: Path) -> Iterator[Path]:
    """What below ``folder`` the modes let everybody write, as far as everybody may go in."""
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # it went meanwhile
            if path.is_symlink():
                continue
            mode = path.stat().st_mode
            if mode & 0o002:
                yield path
            if path.is_dir() and mode & 0o001:
                yield from open_by_mode(path)


class Listener(NamedTuple):
    """A socket that waits for connections: ``address`` of a port; an abstract name is what begins with @."""

    pid: int
    address: str

    @property
    def local(self) -> bool:
        """Whether this machine alone reaches it, by a port; an abstract name has no rights, so everybody here does."""
        if self.address.startswith("@"):
            return False
        host = ip_address(self.address.rpartition(":")[0])
        return ((host.ipv4_mapped or host) if isinstance(host, IPv6Address) else host).is_loopback


def listeners(pids: Iterable[int]) -> list[Listener]:
    """What these processes listen on, beside sockets with a path, by the kernel's own tables."""
    inodes = dict(_sockets(pids))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            (
                _,
                local,
                _,
                state,
                *_,
            ) = (fields := line.split())
            if state == LISTENS and fields[9] in inodes:
                found.append(Listener(inodes[fields[9]], _address(local)))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        *_, inode, name = [*line.split(maxsplit=7), ""][:8]
        if name.startswith("@") and inode in inodes:
            found.append(Listener(inodes[inode], name))
    return found


def _sockets(pids: Iterable[int]) -> Iterator[tuple[str, int]]:
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(fd.readlink())
                    if target.startswith("socket:["):
                        yield target[8:-1], pid


def _address(text: str) -> str:
    """``0100007F:1F90`` is 127.0.0.1:8080: words of 32 bits in the machine's own order."""
    words, port = text.split(":")
    packed = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, packed)}:{int(port, 16)}"
