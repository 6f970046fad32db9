"""``qherd clean``: removes what a run has left on its server, after asking, and nothing of any other run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from pydantic import BaseModel
from rich.filesize import decimal

from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.config.models import RedisConfig
from deploy.run_directory.target import Target, find_run, is_url
from replay.chunk_log import open_inspector
from replay.chunk_log.inspector import RunInspector
from replay.chunk_log.protocol import CREDIT_MS

DECLINED = 1


class Clean(BaseModel):
    """Remove a run's keys from its Redis or Valkey server, after asking. Other runs' keys and the run's directory stay;
    a run that is alive is refused.

    Runs of mode local need none of it: their server ends with them.
    """

    given: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory or name. A directory's keys are removed only where they are that run's own."""
    redis: RedisConfig = RedisConfig()
    yes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not ask."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(Clean, args=arguments, prog="qherd clean", registry=as_written())
    return clean(call.given, call.redis, yes=call.yes)


def clean(given: str, redis: RedisConfig, *, yes: bool) -> int:
    """Removes the keys of a run, given by its directory or name, unless the user declines; returns the exit code.

    Raises:
        ConfigError: the run is alive, the keys are another's, there are none, or nobody can be asked.
    """
    if is_url(given):
        raise ConfigError("clean takes a run, not a server: qherd clean NAME --redis.url URL")
    target = find_run(given, redis)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(contextlib.closing(open_inspector(url, target.run))) for url in target.urls]
        check_ownership(target, servers)
        keys = {server: server.keys() for server in servers}
        if not any(keys.values()):
            raise ConfigError(f"run {target.run!r} has no keys on {', '.join(server.url for server in servers)}")
        for server in servers:
            size = decimal(server.memory_bytes(keys[server]))
            print(f"run {target.run!r} has {len(keys[server])} keys, {size}, on {server.url}")
        if not yes and not _confirmed(target.run):
            print("nothing was removed")
            return DECLINED
        check_ownership(target, servers)  # the answer may have taken a while
        removed = sum(server.remove(server.keys()) for server in servers)
    print(f"removed {removed} keys of run {target.run!r}")
    return 0


def check_ownership(target: Target, servers: Sequence[RunInspector]) -> None:
    """Raises ConfigError where the run is alive, or its name is claimed by another run than the directory's."""
    for server in servers:
        held = server.nonce()
        if None not in (target.nonce, held) and target.nonce != held:
            raise ConfigError(
                f"the keys of run {target.run!r} on {server.url} belong to another run of that name: its own "
                "directory, not this one, may remove them"
            )
        if server.alive():
            raise ConfigError(
                f"run {target.run!r} is alive on {server.url}: its learner has renewed its credit within the last "
                f"{CREDIT_MS // 1000} s; stop it first"
            )


def _confirmed(run: str) -> bool:
    """Asks on the terminal.

    Raises:
        ConfigError: there is none.
    """
    if not sys.stdin.isatty():
        raise ConfigError(f"nobody can be asked, since stdin is no terminal: qherd clean {run} --yes does not ask")
    try:
        return input("remove them for good? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
