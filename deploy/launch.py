"""Before a run: what cannot work is refused, what can becomes a session of its mode."""

from __future__ import annotations

import contextlib
import socket
import sys

from actors.first_look import Look, first_look
from actors.rollout import Place
from deploy.config import ConfigError, RunConfig
from deploy.inline_session import InlineSession
from deploy.plan import check_limiter
from deploy.ray_session import RaySession
from deploy.run_dir import RunDirectory, env_of
from deploy.session import Say, Session
from replay.chunk import Schema
from replay.log import LogError, Unavailable
from replay.redis_log import TIMEOUT_S, RedisLog


def start_session(config: RunConfig, directory: RunDirectory, schema: Schema, say: Say) -> Session:
    """The session of ``config.mode``."""
    if config.mode == "inline":
        return InlineSession(config, directory, schema, say)
    return RaySession(config, directory, schema, say)


def probe_env(config: RunConfig) -> Schema:
    """The schema of the run's environment. Raises EnvError where it cannot be used; warns on stderr."""
    look = look_at_env(config)
    for text in look.warnings:
        _tell(text)
    return look.schema


def look_at_env(config: RunConfig) -> Look:
    """A first look at the run's environment; on stderr what it waits for. Raises EnvError where it cannot be used."""
    (seed, *_), _ = Place("look", config.seed, 0, config.actors.count, 1).seeds(1)
    return first_look(env_of(config), seed or 0, config.actors.step_timeout_s, _tell)


def _tell(text: str) -> None:
    print(f"qherd: {text}", file=sys.stderr, flush=True)


def check(config: RunConfig) -> None:
    """Raises ConfigError or ValueError for what cannot work, before anything is made or started."""
    check_limiter(config)
    if config.mode == "inline":
        from learner.learner import choose_device

        try:
            choose_device(config.learner.device)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if config.env.path is not None and not config.env.path.is_dir():
        raise ConfigError(f"--env.path {config.env.path}: there is no such folder")
    check_port(config)
    if config.mode == "cluster":
        _check_cluster(config)


def _check_cluster(config: RunConfig) -> None:
    """Raises ConfigError where Redis or Ray does not answer, or cannot hold a run."""
    if not config.redis.servers:
        raise ConfigError(
            "the cluster mode needs a server: give --redis.url or QHERD_REDIS_URL (several: --redis.urls, "
            "QHERD_REDIS_URLS)"
        )
    if config.ray.address is None:
        raise ConfigError("the cluster mode needs a Ray cluster: give --ray.address (host:port, or auto)")
    host, _, port = config.ray.address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=TIMEOUT_S).close()
        except OSError as error:
            raise ConfigError(f"no Ray cluster answers at {config.ray.address}: {error}; see ray status") from error
    for url in config.redis.servers:
        _check_server(url)


def _check_server(url: str) -> None:
    """Raises ConfigError where this server does not answer, or cannot hold a run."""
    try:
        with contextlib.closing(RedisLog(url, "check")) as log:
            log.check()
    except Unavailable as error:
        raise ConfigError(f"no answer within {TIMEOUT_S:g} s from {error}") from error
    except (LogError, ValueError) as error:
        raise ConfigError(str(error)) from error


def check_port(config: RunConfig) -> None:
    """Find a busy metrics port before anything is started."""
    if config.metrics.port is None or config.mode == "cluster":
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.metrics.host, config.metrics.port))
        except OSError as error:
            raise ConfigError(
                f"metrics port {config.metrics.host}:{config.metrics.port} cannot be used: {error.strerror}; "
                "choose another --metrics.port"
            ) from error
