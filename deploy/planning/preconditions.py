"""What has to hold before a run: what cannot work is refused before anything is made or started."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace

from pydantic import BaseModel

from actors.actor_id import ActorId
from actors.envs import use_path
from actors.errors import EnvError
from actors.first_look import Look, first_look
from deploy.config.errors import ConfigError
from deploy.config.models import SERVER_OPTIONS, RunConfig, env_of
from deploy.planning import memory
from deploy.planning.dataset import check_dataset, check_without_actors
from deploy.process.host import host_and_port
from learner.algorithms import ALGORITHMS
from learner.networks import ENCODERS, NetworkConfig, core_width, encoder_of
from replay.chunk import ACTION_MASK, Schema
from replay.chunk_log import open_inspector
from replay.chunk_log.inspector import RunInspector
from replay.chunk_log.protocol import LogError, Unavailable
from replay.chunk_log.redis_client import TIMEOUT_S
from replay.chunk_log.server_kind import Bounds
from replay.samplers import SAMPLERS, sampler_of


def check_before_run(config: RunConfig) -> Look:
    """Returns what a look at the run's environment has found, once nothing is found that cannot work. Makes and starts
    nothing.

    Raises:
        ConfigError, EnvError, ValueError: what cannot work, with the remedy.
    """
    check(config)
    check_process(config)
    look = warning_look(config)
    memory.check_network(config, look.schema)
    memory.check_windows(config, look.schema)
    check_dataset(resolved(config, look.schema), look.schema, look.about)
    memory.check_memory(config, look.schema)
    check_values(config, look.schema)
    return look


def resolved(config: RunConfig, schema: Schema) -> RunConfig:
    """Returns the configuration with what ``auto`` stands for in the environment that was looked at: whether action
    masks are obeyed, and the encoder. A run keeps both."""
    masked = any(column.name == ACTION_MASK for column in schema.extras)
    env = config.env.model_copy(update={"action_mask": "obey" if masked else "ignore"})
    network = config.learner.network
    network = network.model_copy(update={"encoder": encoder_of(network, schema)})
    return config.model_copy(update={"env": env, "learner": config.learner.model_copy(update={"network": network})})


def probe_env(config: RunConfig) -> Schema:
    """Returns the schema of the run's environment; warns on stderr.

    Raises:
        EnvError: the environment cannot be used.
    """
    return warning_look(config).schema


def warning_look(config: RunConfig) -> Look:
    """Looks at the run's environment, as ``look_at_env``, and prints the warnings on stderr."""
    look = look_at_env(config)
    for text in look.warnings:
        _warn(text)
    return look


def look_at_env(config: RunConfig) -> Look:
    """Makes and plays the run's environment for a moment; on stderr what it waits for.

    Raises:
        EnvError: the environment cannot be used.
        ConfigError: there is no such algorithm.
    """
    check_env_path(config)
    use_path(env_of(config))  # parts of the user's own are looked for here, after the environment
    (seed, *_), _ = ActorId("look", config.seed, 0, config.actors.count, 1).seeds(1)
    look = first_look(env_of(config), seed or 0, config.actors.step_timeout_s, _warn)
    try:
        spec = config.learner.network_spec
    except ValueError as error:  # an algorithm of the user's own that is none
        raise ConfigError(str(error)) from error
    core = core_width(spec, look.schema.num_actions)
    return look._replace(schema=replace(look.schema, core=core))


def _warn(text: str) -> None:
    print(f"qherd: {text}", file=sys.stderr, flush=True)


def check(config: RunConfig) -> None:
    """Raises ConfigError or ValueError for what cannot work, before anything is made or started."""
    memory.check_limiter(config)
    check_unused(config)
    if config.mode == "inline":
        from learner.learner import choose_device

        try:
            choose_device(config.learner.device)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    check_port(config)
    if config.mode == "cluster":
        _check_cluster(config)


def check_env_path(config: RunConfig) -> None:
    """Raises EnvError where the folder of the environment's module is not there, or is none."""
    if config.env.path is not None and not config.env.path.is_dir():
        raise EnvError(
            f"--env.path {config.env.path}: there is no such folder; give the one that has the environment's module"
        )


def check_process(config: RunConfig) -> None:
    """Raises ConfigError where this process, which may be another program's, cannot have a Ray and a server of its
    own."""
    if config.mode != "local":
        return
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            "the mode local needs the main thread of its process, since its server ends with the thread that started "
            "it: call it from there, run the command qherd, or choose --mode inline"
        )
    if "ray" in sys.modules:
        raise ConfigError(
            "ray was imported before the run, and its loopback and token settings are read at import: run the command "
            "qherd, or choose --mode inline"
        )


def check_values(config: RunConfig, schema: Schema) -> None:
    """Raises ConfigError where a server refuses a full chunk or the weights for their bytes. A cluster's servers are
    asked: for their bounds, and since managed ones do not return them, whether they take such values."""
    if config.mode == "local":
        memory.check_values(config, schema, Bounds(), "a server")
    if config.mode == "cluster":
        for url in config.redis.servers:
            with _inspecting(url) as log:
                memory.check_values(config, schema, log.bounds(), log.url)
                for nbytes in (memory.chunk_bytes(config, schema), memory.network_bytes(config, schema)):
                    log.check_length(nbytes)


def check_unused(config: RunConfig) -> None:
    """Raises ConfigError for an address of a cluster in a mode that has none: the run would not be there. Likewise for
    an option of a sampler or an algorithm that is not the chosen one: it would do nothing."""
    _check_sections(config)
    check_without_actors(config)
    if config.mode == "cluster":
        return
    given = {f"redis.{name}": getattr(config.redis, name) for name in type(config.redis).model_fields}
    given |= {"ray.address": config.ray.address, "ray.autoscales": config.ray.autoscales}
    if unused := [f"--{name}" for name, value in given.items() if value]:
        raise ConfigError(
            f"the mode {config.mode} uses no {', '.join(unused)} (or QHERD_... of that name): give --mode cluster, or "
            "leave it out"
        )


def _check_sections(config: RunConfig) -> None:
    encoders = {name: name if name in NetworkConfig.model_fields else None for name in ENCODERS}
    algorithms = {name: algorithm.section for name, algorithm in ALGORITHMS.items()}
    samplers = {name: sampler_of(name).section for name in SAMPLERS}
    _check_section("learner.network.encoder", config.learner.network, encoders)
    _check_section("learner.algorithm", config.learner, algorithms)
    _check_section("replay.sampler", config.replay, samplers)
    for section, switch in (("munchausen", "enabled"), ("anneal", "updates")):
        options = getattr(config.learner, section)
        if not getattr(options, switch) and options != type(options)():
            changed = next(name for name, value in options if value != type(options).model_fields[name].default)
            raise ConfigError(
                f"learner.{section}.{changed} is {getattr(options, changed)!r}, and learner.{section}.{switch} is "
                f"{getattr(options, switch)!r}, so that it does nothing: give --learner.{section}.{switch}, or leave "
                "it out"
            )


def _check_section(choice: str, options: BaseModel, sections: Mapping[str, str | None]) -> None:
    """Raises ConfigError where another section than that of the chosen variant was changed. ``sections``: by variant.
    A user's own variant may use any."""
    part, _, what = choice.rpartition(".")
    chosen = getattr(options, what)
    if ":" in chosen:
        return
    for name, section in sections.items():
        if section is None or section == sections.get(chosen):
            continue
        for option, value in getattr(options, section):
            if value != type(getattr(options, section)).model_fields[option].default:
                raise ConfigError(
                    f"{part}.{section}.{option} is {value!r}, and {choice} is {chosen}, which has no such option: "
                    f"choose --{choice} {name}, or leave it out"
                )


def _check_cluster(config: RunConfig) -> None:
    """Raises ConfigError where Redis or Ray does not answer, or cannot hold a run."""
    if not config.redis.servers:
        raise ConfigError(f"the cluster mode needs a server: give {SERVER_OPTIONS}")
    if config.ray.address is None:
        raise ConfigError("the cluster mode needs a Ray cluster: give --ray.address (host:port, or auto)")
    host, _, port = config.ray.address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S).close()
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"no Ray cluster answers at {config.ray.address}: {error}; see ray status") from error
    for url in config.redis.servers:
        with _inspecting(url) as log:
            log.check()


@contextlib.contextmanager
def _inspecting(url: str) -> Iterator[RunInspector]:
    """Yields a server that can be asked.

    Raises:
        ConfigError: it does not answer, or cannot hold a run.
    """
    try:
        with contextlib.closing(open_inspector(url, "check")) as log:
            yield log
    except Unavailable as error:
        raise ConfigError(f"no answer within {TIMEOUT_S:g} s from {error}") from error
    except (LogError, ValueError) as error:
        raise ConfigError(str(error)) from error


def check_port(config: RunConfig) -> None:
    """Raises ConfigError for a busy metrics port, before anything is started."""
    if config.metrics.port is None or config.mode == "cluster":
        return
    host, port = config.metrics.host, config.metrics.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"metrics port {host_and_port(host, port)} cannot be used: {getattr(error, 'strerror', error)}; "
            "choose another --metrics.port, or --metrics.host"
        ) from error
