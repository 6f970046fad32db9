"""A folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from deploy.config.errors import ConfigError


def check_new(to: Path) -> None:
    """Raises ConfigError where the folder exists already, or cannot be made."""
    _check_free(to, f"--to {to}")
    if not to.absolute().parent.is_dir():
        raise ConfigError(f"--to {to}: there is no folder {to.parent}")


def _check_free(to: Path, option: str) -> None:
    if to.exists() or to.is_symlink():
        raise ConfigError(f"{option} exists already, and is not overwritten: choose another name")


@contextlib.contextmanager
def written_whole(to: Path, option: str = "", beside: Path | None = None) -> Iterator[Path]:
    """Yields a folder to write into, which gets the name ``to`` at the end of the block. Nothing is left where the
    block raises. ``option``: how it was given, for messages; ``beside``: where the folder is meanwhile, on the same
    disk, by default where ``to`` will be. Its name is nobody else's, so that two commands do not write into one."""
    option = option or f"--to {to}"
    to = to.absolute()
    temporary = (beside or to.parent) / f".{to.name}.{secrets.token_hex(4)}.writing"
    try:
        temporary.mkdir()
        try:
            yield temporary
            _check_free(to, option)
            temporary.rename(to)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        _check_free(to, option)  # by another command, since it was looked for
        raise ConfigError(f"{option} cannot be written: {error.strerror or error}") from error
