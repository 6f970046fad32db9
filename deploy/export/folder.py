"""A folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from deploy.config.errors import ConfigError


def check_new(to: Path) -> None:
    """Raises ConfigError where the folder exists already, or cannot be made."""
    if to.exists() or to.is_symlink():
        raise ConfigError(f"--to {to} exists already, and is not overwritten: choose another name")
    if not to.absolute().parent.is_dir():
        raise ConfigError(f"--to {to}: there is no folder {to.parent}")


@contextlib.contextmanager
def written_whole(to: Path) -> Iterator[Path]:
    """Yields a folder beside ``to`` to write into, which gets that name at the end of the block. Nothing is left where
    the block raises."""
    to = to.absolute()
    temporary = to.with_name(f".{to.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a command that was killed
        temporary.mkdir()
        yield temporary
        check_new(to)
        temporary.rename(to)
    except OSError as error:
        raise ConfigError(f"--to {to} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
