"""The lock of a run's directory: one driver at a time, since two would both count fences."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from deploy.config.errors import RunDirError
from deploy.run_directory.files import plain_descriptor


class RunLock:
    """The file ``lock`` of a run's directory, locked for as long as its driver's process lives. The kernel drops the
    lock with the process, however that ends."""

    def __init__(self, folder: Path, shown: Path) -> None:
        """Acquires nothing yet. ``shown``: the folder as the user named it, for messages."""
        self._path, self._shown = folder / "lock", shown
        self._fd: int | None = None

    def acquire(self) -> None:
        """Locks the directory.

        Raises:
            RunDirError: another driver has it, or the disk refuses the file.
        """
        fd = plain_descriptor(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        with contextlib.suppress(OSError):  # somebody else's, in a folder that is shared
            os.fchmod(fd, 0o600)  # who may open it may hold it, and the run could not be resumed
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(fd, 100).decode(errors="replace").strip()
            os.close(fd)
            raise RunDirError(
                f"{self._shown} is at work already, in {owner or 'another process'}: stop it first"
            ) from None
        os.truncate(fd, 0)
        os.write(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._fd = fd

    def owner(self) -> str | None:
        """Returns who has the run: ``process 12 on a-host``; None where nobody does. Asks the kernel, and keeps
        nothing."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return os.read(fd, 100).decode(errors="replace").strip() or "another process"
        finally:
            os.close(fd)
        return None

    def release(self) -> None:
        """Gives the directory up, if this object has it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
