"""The lock of a study's commands: a study that was killed leaves them at work, and the next one waits for their end."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from deploy.run_directory.files import naming, plain_descriptor


class CommandsLock:
    """The file ``runs.lock`` of a study's folder, locked for as long as one of the study's commands lives: each
    inherits it. Who acquires it has the study's own lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> int | None:
        """Returns a file descriptor for the study's commands to inherit; None while those of a study that was killed
        are still ending.

        Raises:
            RunDirError: the disk refuses the file.
        """
        fd = plain_descriptor(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            holders = self._holders()
            if holders and not any(holders.values()):  # what an environment has forked has inherited it
                with naming(self._path):
                    self._path.unlink(missing_ok=True)  # no other study does: this one has the study's lock
                return self.acquire()
            return None
        self._fd = fd
        return fd

    def pids(self) -> list[int]:
        """Returns the process ids of the commands of an earlier study that live, as far as they can be seen."""
        return sorted(pid for pid, is_command in self._holders().items() if is_command)

    def release(self) -> None:
        """Gives it up, but for what the commands have inherited."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _holders(self) -> dict[int, bool]:
        """Returns the ids of the processes on this machine that have the file open, and whether each is a command:
        these lead a session, and what an environment forks does not."""
        found = dict[int, bool]()
        with contextlib.suppress(OSError):
            for pid in _having_open(self._path.stat()):
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    found[pid] = os.getsid(pid) == pid
        return found


def _having_open(file: os.stat_result) -> Iterator[int]:
    """Yields the ids of the processes that have a file open, as far as they are this user's. On Linux alone."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # it has ended, or is another's
            if any(_is(each, file) for each in folder.iterdir()):
                yield int(folder.parent.name)


def _is(path: Path, file: os.stat_result) -> bool:
    """Returns whether a path leads to a file; False where a process has closed it meanwhile."""
    try:
        return os.path.samestat(path.stat(), file)
    except OSError:
        return False
