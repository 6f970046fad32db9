"""A run's files: replaced in one step, read within bounds, and named where the disk refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from deploy.config.errors import RunDirError

CONFIG_BYTES = 1 << 20
"""No file of options or counts is bigger."""
WRITTEN = ("*.json", "*.jsonl", "*.yaml", "lock", "replay.url", "failure.txt", "checkpoints/*.json", "logs/*")
"""What a run writes in place, or puts in the place of."""
_NOT_PLAIN = "it is a link or no plain file: remove it"


def replace_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replaces a file in one step: temporary file, fsync, rename. ``mode``: its rights, less those of the umask.

    Raises:
        RunDirError: the disk refuses it; the old file is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    with naming(path):
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a crash could leave the name with nothing in it
        temporary.replace(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into a RunDirError that names the file: a failed write's own error does not."""
    try:
        yield
    except OSError as error:
        raise RunDirError(f"{path} cannot be written: {error.strerror}") from error


def is_plain(path: Path) -> bool:
    """Returns whether ``path`` is a plain file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):  # the latter for what can be no file's name
        return False


def plain_descriptor(path: Path, flags: int, mode: int = 0o666) -> int:
    """Opens a plain file, without waiting for the other end of a pipe; returns its descriptor.

    Raises:
        RunDirError: it is a link or no plain file, or the disk refuses it.
    """
    with naming(path):
        try:
            fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        except OSError as error:
            raise OSError(error.errno, _NOT_PLAIN) if error.errno in (errno.ELOOP, errno.ENXIO) else error from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, _NOT_PLAIN)
    return fd


def open_plain(path: Path, mode: Literal["wb", "ab"]) -> BinaryIO:
    """Opens a plain file to write it anew, or to append. Raises RunDirError as ``plain_descriptor`` does, before
    anything of it is lost."""
    fd = plain_descriptor(path, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if mode == "ab" else 0))
    if mode == "wb":
        os.truncate(fd, 0)
    return os.fdopen(fd, mode)


def check_plain(folder: Path) -> None:
    """Raises RunDirError where what a run writes into its ``folder`` would go elsewhere: through a link, or into a
    pipe."""
    for pattern in WRITTEN:
        for path in folder.glob(pattern):
            if not is_plain(path):
                raise RunDirError(f"{path} is a link or no plain file, and a run's own files are: remove it")
