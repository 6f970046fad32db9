"""A folder for a process's sockets and temporary files that nobody else can enter, and that goes with its process."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from deploy.config.errors import ConfigError

LONGEST_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path of a socket below a ``PrivateDir``: Ray's; the embedded server's is shorter."""

_PREFIX, _RANDOM = "qherd-", 8
_LOCK = "owner.lock"
_MAX_SOCKET_PATH_BYTES = 107  # sun_path holds 108 bytes with the closing NUL
_ELSEWHERE = (Path("/tmp"), Path("/var/tmp"))
_RENAMED = "is one in which others may rename what is yours"


class NoFolderError(ConfigError):
    """There is no folder that can hold sockets and temporary files."""


def temporary_folder() -> tuple[Path, str]:
    """Returns where private directories are made, and what there is to show about it: why it is not the system's
    folder for temporary files (TMPDIR), or that others may rename what lies in it.

    Raises:
        NoFolderError: none of the candidates can be used.
    """
    asked = Path(os.environ.get("TMPDIR") or tempfile.gettempdir()).absolute()
    candidates = tuple(dict.fromkeys((asked, *_ELSEWHERE)))
    reasons = {folder: _unusable(folder) for folder in candidates}
    usable = [folder for folder in candidates if not reasons[folder]]
    if not usable:
        refused = "; ".join(f"{folder} {why}" for folder, why in reasons.items())
        raise NoFolderError(f"no folder can hold sockets and temporary files: {refused}: set TMPDIR to a short one")
    closed = [folder for folder in usable if not _open_to_others(folder)]
    chosen = (closed or usable)[0]
    if chosen != asked:
        return chosen, f"TMPDIR {asked} {reasons[asked] or _RENAMED}; {chosen} is used instead"
    return chosen, "" if closed else f"TMPDIR {asked} {_RENAMED}: chmod +t {asked}"


def _unusable(folder: Path) -> str:
    """Returns why ``folder`` cannot hold a private directory; empty where it can."""
    if not folder.is_dir():
        return "is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be written"
    longest = len(os.fsencode(folder)) + len(f"/{_PREFIX}/{LONGEST_SOCKET}") + _RANDOM
    if longest > _MAX_SOCKET_PATH_BYTES:
        return f"is too long: its sockets' paths would have {longest} bytes, the system takes {_MAX_SOCKET_PATH_BYTES}"
    return ""


def _open_to_others(folder: Path) -> bool:
    """Returns whether others may rename what lies in ``folder``, or a folder above it, and put something else in its
    place."""
    real = folder.resolve()
    modes = [each.stat().st_mode for each in (real, *real.parents)]
    return any(mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX for mode in modes)


class PrivateDir:
    """A directory ``qherd-*`` (0700) in ``temporary_folder()``, locked for as long as this process lives.

    The kernel drops the lock however the process ends, so :func:`remove_stale_dirs` can find those whose owner is dead;
    a process id could be another's by then, or belong to another container that shares the folder.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=temporary_folder()[0]))
        self._owner_pid = os.getpid()
        try:
            self._lock_fd = self._lock()
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def _lock(self) -> int:
        """Locks first, names afterwards: a lock file that others can see is held from the start."""
        new = self.path / "owner.new"
        fd = os.open(new, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, f"{os.getpid()}\n".encode())
        new.rename(self.path / _LOCK)
        return fd

    def check(self) -> None:
        """Raises NoFolderError where others may enter by now: what else lies in it counts on that they cannot."""
        about = self.path.lstat()
        if about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) != 0o700 or not stat.S_ISDIR(about.st_mode):
            raise NoFolderError(
                f"{self.path} has mode {stat.S_IMODE(about.st_mode):04o} and owner {about.st_uid}, and has to be 0700 "
                f"and {os.geteuid()}'s: something has opened it to others"
            )

    def is_mine(self) -> bool:
        """Returns False in a forked child, which must not remove what its parent uses."""
        return os.getpid() == self._owner_pid

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_fd)


def remove_stale_dirs() -> list[Path]:
    """Removes what processes that were killed left in the temporary folder; returns the removed directories."""
    found = temporary_folder()[0].glob(f"{_PREFIX}*/{_LOCK}")
    return [lock.parent for lock in found if _remove_if_stale(lock)]


def _remove_if_stale(lock: Path) -> bool:
    try:
        if lock.parent.is_symlink() or lock.parent.stat().st_uid != os.geteuid():
            return False
        fd = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # another process removed it first
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # its owner lives
        return False
    else:
        shutil.rmtree(lock.parent, ignore_errors=True)
        return True
    finally:
        os.close(fd)
