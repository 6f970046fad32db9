"""Files and JSON that somebody else may have written or damaged: read whole and bounded, or refused."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from replay.storage import available_memory

MEMORY_BYTES = 1 << 32
"""What is read at the most where the free memory is unknown."""


class Unreadable(ValueError):
    """A file that is not read, or JSON that is none; the text says why, and of a file which."""


def read_file(path: Path, most_bytes: int) -> bytes:
    """Returns what is in a plain file. Links, pipes and devices are refused without waiting for them.

    Raises:
        FileNotFoundError: there is none.
        Unreadable: it is no plain file, has more than ``most_bytes``, or the disk refuses it.
    """
    with _plain(path) as (file, size):
        if size > most_bytes:
            raise Unreadable(f"{path} has {size:,} bytes, and at most {most_bytes:,} are read")
        return file.read(size)  # not most_bytes, of which Python would make a buffer


def read_end(path: Path, most_bytes: int) -> tuple[bytes, bool]:
    """Returns the last ``most_bytes`` of a plain file, and whether that is all of it. Raises what ``read_file`` does,
    but for the file's size."""
    with _plain(path) as (file, size):
        file.seek(max(0, size - most_bytes))
        return file.read(min(size, most_bytes)), size <= most_bytes


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Opens a plain file to read, and yields it with its size. Raises what ``read_file`` does, but for its size."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise Unreadable(f"{path} cannot be read: {why}") from None
    except ValueError:
        raise Unreadable(f"{str(path)!r} cannot be read: no file has such a name") from None
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise Unreadable(f"{path} cannot be read: it is no plain file")
        with os.fdopen(fd, "rb", closefd=False) as file:
            yield file, about.st_size
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)


def read_big_file(path: Path) -> bytes:
    """Returns what is in a file that may be as big as the free memory. Raises what ``read_file`` does."""
    return read_file(path, available_memory() or MEMORY_BYTES)


def parse_json(data: bytes | str) -> Any:
    """Returns the value that JSON of any origin holds. Raises Unreadable where it is none or nests too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise Unreadable("its JSON nests too deeply") from None
    except ValueError as error:
        raise Unreadable(f"it is no JSON: {error}") from None


def read_object(path: Path, most_bytes: int) -> dict[str, Any]:
    """Returns the JSON object in a plain file. Raises what ``read_file`` does, and Unreadable where it holds none."""
    data = read_file(path, most_bytes)
    try:
        value = parse_json(data)
    except Unreadable as error:
        raise Unreadable(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise Unreadable(f"{path} is damaged: it holds no JSON object")
    return value
