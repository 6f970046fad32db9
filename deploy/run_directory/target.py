"""Which run on which server a command is about: a run directory, a run's name, or a URL."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from deploy.config.errors import ConfigError
from deploy.config.layers import compose
from deploy.config.models import RUN_NAME, SERVER_OPTIONS, RedisConfig, RunConfig
from deploy.run_directory.directory import RunDirectory
from replay.chunk_log.redis_client import TIMEOUT_S
from replay.chunk_log.urls import public_url
from replay.foreign import read_file


class Target(NamedTuple):
    """A run and where its keys are. ``urls`` hold passwords; ``nonce`` is known of a run with a directory here."""

    run: str
    urls: tuple[str, ...]
    nonce: str | None = None


def is_url(given: str) -> bool:
    """Returns whether a command's argument names a server, not a run."""
    return "://" in given


def run_name(given: str) -> str:
    """Returns ``given``, if it can be a run's name.

    Raises:
        ConfigError: it cannot.
    """
    if not re.fullmatch(RUN_NAME, given):
        shown = "what was given" if set(given) & set(":@") else repr(given)  # a mistyped URL may hold a password
        raise ConfigError(
            f"{shown} is neither a run directory nor a run's name: names have 1 to 64 letters, digits, '.', '_' or "
            "'-', a letter or digit first"
        )
    return given


def find_run(given: str, redis: RedisConfig) -> Target:
    """Returns the run of a directory or a name. The server is ``redis``'s, else the environment's, else the
    directory's.

    Raises:
        ConfigError: the run has no server, or none is known.
    """
    if (Path(given) / "config.yaml").is_file():
        directory = RunDirectory.open(Path(given))
        return Target(directory.run, _urls_of(directory, redis), directory.fences.nonce)
    name = run_name(given)
    if not (urls := given_urls(redis)):
        raise ConfigError(
            f"there is no run directory {given}; for a run of that name on a server, give the server with "
            f"{SERVER_OPTIONS}"
        )
    return Target(name, urls)


def given_urls(redis: RedisConfig) -> tuple[str, ...]:
    """Returns the servers of the options, or else of the environment."""
    return redis.servers or compose(None, None, None).redis.servers


def _urls_of(directory: RunDirectory, redis: RedisConfig) -> tuple[str, ...]:
    config = directory.config
    if config.mode == "inline":
        raise ConfigError(f"{directory.given_path} is a run of mode inline: its replay memory is in its own process")
    if config.mode == "local":
        return (_local_url(directory),)
    return given_urls(redis) or _urls_in_config(directory, config)


def _local_url(directory: RunDirectory) -> str:
    try:
        url = read_file(directory.replay_url, 4096).decode()
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(TIMEOUT_S)
            probe.connect(unquote(urlsplit(url).path))
    except (OSError, ValueError):  # a run that was killed leaves the file, and perhaps the socket
        raise ConfigError(
            f"{directory.given_path} has no replay server: that of a run of mode local starts and ends with the run"
        ) from None
    return url


def _urls_in_config(directory: RunDirectory, config: RunConfig) -> tuple[str, ...]:
    """Raises ConfigError where a URL had a password: config.yaml keeps none."""
    urls = config.redis.servers
    if not urls or any(url != public_url(url) or "***" in url for url in urls):
        shown = f" {', '.join(map(public_url, urls))}" if urls else ""
        raise ConfigError(
            f"{directory.given_path}/config.yaml keeps no password of its server{shown}: give the whole URL with "
            f"{SERVER_OPTIONS}"
        )
    return urls
