"""What somebody else can put in the place of a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def sparse(path: Path) -> None:
    path.unlink()
    with path.open("wb") as file:
        file.truncate(40 << 30)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def link(path: Path) -> None:
    """To the very same contents, elsewhere."""
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def deep(path: Path) -> None:
    path.write_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


HOSTILE: list[Callable[[Path], None]] = [sparse, pipe, device, link, directory, deep]
"""Each replaces a plain file by something that is none, or that is no use."""
