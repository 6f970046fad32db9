"""The checks of ``qherd doctor``: what a run needs, looked at one by one, each with what was found and what to do."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from actors.contract import EnvError
from actors.first_look import Look, Played
from deploy.cluster.placement import Resources, alive_nodes, asks, check_room, shown
from deploy.cluster.ray_running import ray_running
from deploy.config.models import SERVER_OPTIONS, RunConfig
from deploy.planning.forecast import measure_actor
from deploy.planning.memory import (
    check_limiter,
    check_memory,
    check_windows,
    chunk_bytes,
    megabytes,
    network_bytes,
    plan,
)
from deploy.process.arithmetic import changes
from deploy.process.host import host_and_port, usable_cores
from deploy.server.embedded import EmbeddedServer, find_server
from deploy.sessions.launch import check_port, check_unused, check_values, look_at_env
from replay.chunk import Schema
from replay.chunk_log import open_inspector
from replay.chunk_log.inspector import RunInspector
from replay.errors import QherdError
from replay.identity import Identity

State = Literal["ok", "warning", "problem"]
RAY_OBJECTS_BYTES = 256 << 20
"""Ray's object store in the local mode."""
TRIES = 50
COMPUTES = 0.7
"""An actor that is on the core for a greater share of its time is bound by the CPU."""
SLOW_S = 0.002
"""A round trip that takes longer costs actors of fast environments more than their steps."""
FILES_PER_ACTOR, FILES = 32, 512
NODE_S = 60.0
"""Seconds that a node of the cluster may take to compare its code."""


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    remedy: str = ""


def preflight(config: RunConfig) -> Iterator[Check]:
    """Everything that a run with this configuration needs, one after the other, the slow ones last."""
    yield versions()
    yield from guarded("limits", lambda: _limits(config))
    schema = None
    try:
        look = look_at_env(config)
        schema = look.schema
        yield from _environment(config, look)
    except EnvError as error:
        yield Check("env", "problem", str(error), "see --env.id, --env.path and --env.kwargs")
    if schema is not None:
        yield from guarded("memory", lambda: _memory(config, schema))
    yield from guarded("ports", lambda: _ports(config))
    yield _disk(config.runs_dir)
    yield _open_files(config)
    yield _cores(config)
    yield from guarded("GPU", lambda: _gpu(config))
    if config.mode != "inline":
        yield from guarded("server", lambda: _servers(config, schema))
        yield _shared_memory(config)
        yield from guarded("Ray", lambda: _ray(config))


def guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """What ``look`` finds; what it raises for a user becomes a problem."""
    try:
        yield from look()
    except (QherdError, OSError, ValueError) as error:
        yield Check(name, "problem", str(error))


def versions(recorded: dict[str, str] | None = None) -> Check:
    """Python and the packages against what this qherd was tested with at the least, or against those that a run was
    started with."""
    own = {"python": platform.python_version()}
    wrong = []
    for text in importlib.metadata.requires("qherd") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            own[requirement.name] = found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    if wrong:
        return Check("versions", "problem", "; ".join(wrong), "install qherd anew: make setup, or pip install")
    if changed := changes(recorded or {}, own):
        return Check("versions", "warning", "; ".join(changed), "results may differ from those before")
    names = ("python", "ray", "torch", "gymnasium", "numpy", "redis")
    return Check("versions", "ok", ", ".join(f"{name} {own[name]}" for name in names if name in own))


def _limits(config: RunConfig) -> Iterator[Check]:
    limiter = check_limiter(config)
    check_unused(config)
    yield Check(
        "limits",
        "ok",
        f"{limiter.samples_per_insert:g} samples per insert from {limiter.min_rows:,} rows on, a replay of "
        f"{limiter.capacity_rows:,}",
    )


def _environment(config: RunConfig, look: Look) -> Iterator[Check]:
    """Spaces and dtypes, what comes out of it, the autoreset mode, and the step rate."""
    name, schema = "env", look.schema
    stored = f"stored as {schema.obs_dtype}{list(schema.obs_shape)}, {schema.row_bytes} B a row"
    yield Check(name, "ok", f"{config.env.id}: {look.spaces}; {stored}")
    yield _played(name, look.played, config)
    for text in look.warnings:
        yield Check(name, "warning", text, "see docs/environments.md")
    try:
        rate = measure_actor(config, schema)
    except EnvError as error:
        yield Check(name, "problem", f"it raises as it is played: {error}", "mend it: each time costs an episode")
        return
    kind = "it computes" if rate.cpu_share > COMPUTES else "it waits most of the time, and not for the CPU"
    yield Check(
        name,
        "ok",
        f"autoreset NEXT_STEP; an actor of {config.actors.lanes} lanes does {rate.env_steps_per_s:,.0f} env steps/s, "
        f"{rate.env_share:.0%} of its time in the environment; {kind} ({rate.cpu_share:.0%} on the core)",
    )


def _played(name: str, played: Played, config: RunConfig) -> Check:
    """How it was played at random."""
    if played.slowest_s * config.actors.lanes > config.actors.step_timeout_s / 2:
        return Check(
            name,
            "warning",
            f"a step took {played.slowest_s:.1f} s, and an actor makes {config.actors.lanes} of them in turn",
            f"raise --actors.step_timeout_s ({config.actors.step_timeout_s:g} s) or lower --actors.lanes",
        )
    if not played.reproduces:
        return Check(
            name, "warning", "the same seed gives another first observation", "runs of it cannot be reproduced"
        )
    found = f"{played.steps:,} env steps at random: {played.ends} episode(s) ended, seeds reproduce, values are finite"
    return Check(name, "ok", found)


def _memory(config: RunConfig, schema: Schema) -> Iterator[Check]:
    check_windows(config, schema)
    check_memory(config, schema)
    yield Check("memory", "ok", plan(config, schema).told(config))


def _ports(config: RunConfig) -> Iterator[Check]:
    check_port(config)
    if config.metrics.port:
        yield Check("ports", "ok", f"{host_and_port(config.metrics.host, config.metrics.port)} is free for /metrics")


def _disk(folder: Path) -> Check:
    """Whether a run's directory can be made, and how much room there is."""
    existing = next(found for found in (folder.absolute(), *folder.absolute().parents) if found.is_dir())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Check("disk", "problem", f"{existing} cannot be written", "choose another --runs-dir")
    if free < 1 << 30:
        return Check("disk", "warning", f"{megabytes(free)} are free in {existing}", "make room: checkpoints need it")
    return Check("disk", "ok", f"{megabytes(free)} are free in {existing}")


def _open_files(config: RunConfig) -> Check:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES + FILES_PER_ACTOR * config.actors.count
    if config.mode == "local" and 0 <= soft < needed:
        return Check(
            "open files", "warning", f"at most {soft}, about {needed} are needed", f"ulimit -n {min(hard, 65536)}"
        )
    return Check("open files", "ok", f"at most {soft}")


def _cores(config: RunConfig) -> Check:
    cores, load = usable_cores(), os.getloadavg()[0]
    if load > 1.5 * cores:
        return Check(
            "cores", "warning", f"{cores:g}, with a load of {load:.1f}", "others are at work here: rates will be low"
        )
    if config.mode == "local" and config.actors.count + 1 > 4 * cores:
        return Check(
            "cores",
            "warning",
            f"{cores:g} for the learner and {config.actors.count} actors",
            "more actors than cores help only where the environment waits; see qherd plan",
        )
    return Check("cores", "ok", f"{cores:g}, with a load of {load:.1f}")


def _gpu(config: RunConfig) -> Iterator[Check]:
    import torch

    from learner.learner import choose_device

    smi = shutil.which("nvidia-smi")
    seen = smi is not None and subprocess.run([smi, "-L"], capture_output=True, check=False, timeout=20).returncode == 0
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Check("GPU", "ok", f"{', '.join(names)}; the learner's device is {choose_device(config.learner.device)}")
    elif seen:
        yield Check("GPU", "warning", f"this torch ({torch.__version__}) cannot use the GPU", "install torch with CUDA")
    elif config.mode == "cluster":
        yield Check("GPU", "ok", "none here; the cluster's are below")
    else:
        choose_device(config.learner.device)
        yield Check("GPU", "ok", "none; the learner computes on the CPU")


def _servers(config: RunConfig, schema: Schema | None) -> Iterator[Check]:
    if config.mode == "local":
        began = time.perf_counter()
        with EmbeddedServer("doctor", 8 << 20) as server:
            started_s = time.perf_counter() - began
            with contextlib.closing(open_inspector(server.url("learner"), "doctor")) as log:
                log.check()
                trip_s = round_trip(log)
        shown_version = subprocess.run([find_server(), "--version"], capture_output=True, text=True, check=False).stdout
        version = " ".join(shown_version.split()[:3])
        yield Check(
            "server", "ok", f"{version}, noeviction, up in {started_s:.1f} s; a round trip takes {trip_s * 1e6:,.0f} us"
        )
        if schema is not None:
            yield from guarded("values", lambda: _values(config, schema))
        return
    if not config.redis.servers:
        yield Check("server", "problem", "the cluster mode has none", f"give {SERVER_OPTIONS}")
    planned = plan(config, schema).server // max(1, len(config.redis.servers)) if schema is not None else 0
    checks = [
        each
        for url in config.redis.servers
        for each in guarded("server", lambda url=url: iter([_server(url, planned)]))  # type: ignore[misc]
    ]
    yield from checks
    if schema is not None and not any(each.state == "problem" for each in checks):
        yield from guarded("values", lambda: _values(config, schema))


def _values(config: RunConfig, schema: Schema) -> Iterator[Check]:
    check_values(config, schema)
    sizes = f"a chunk has at most {chunk_bytes(config, schema):,} B, the weights {network_bytes(config, schema):,} B"
    yield Check("values", "ok", f"{sizes}: the server takes both")


def _server(url: str, planned: int) -> Check:
    """One of the cluster's servers: version, memory policy, room, and how far away it is."""
    with contextlib.closing(open_inspector(url, "doctor")) as log:
        log.check()
        trip_s, memory = round_trip(log), log.memory()
    found = f"{log.url} answers in {trip_s * 1e6:,.0f} us; noeviction"
    if memory is None:
        return Check("server", "warning", f"{found}, no maxmemory", f"set one: this run wants {megabytes(planned)}")
    room = memory.bound - memory.used
    found += f"; {megabytes(room)} of {megabytes(memory.bound)} are free"
    if room < planned:
        return Check(
            "server",
            "warning",
            f"{found}, this run wants {megabytes(planned)}",
            "raise its maxmemory, or lower --replay.log_rows",
        )
    if trip_s > SLOW_S:
        return Check(
            "server", "warning", found, "slow: run qherd near it, or send bigger chunks (--actors.chunk_steps)"
        )
    return Check("server", "ok", found)


def round_trip(server: RunInspector) -> float:
    """Seconds of one exchange with the server: the median of some."""
    took = []
    for _ in range(TRIES):
        began = time.perf_counter()
        server.ping()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _shared_memory(config: RunConfig) -> Check:
    """Ray keeps its objects in /dev/shm; containers have 64 MB of it unless they are told."""
    folder = Path("/dev/shm")
    if sys.platform != "linux" or not folder.is_dir():
        return Check("/dev/shm", "ok", "not used on this system")
    free = shutil.disk_usage(folder).free
    if config.mode == "local" and free < RAY_OBJECTS_BYTES:
        return Check(
            "/dev/shm",
            "warning",
            f"{megabytes(free)} are free, Ray's objects want {megabytes(RAY_OBJECTS_BYTES)}",
            "give the container more: docker run --shm-size=512m; Ray uses the slower /tmp otherwise",
        )
    return Check("/dev/shm", "ok", f"{megabytes(free)} are free")


def _ray(config: RunConfig) -> Iterator[Check]:
    """Start Ray as a run would, or join the cluster; then have each node compare its code with this one's."""
    if config.mode == "cluster" and config.ray.address is None:
        yield Check("Ray", "problem", "the cluster mode has no Ray cluster", "give --ray.address (host:port, or auto)")
        return
    began = time.perf_counter()
    with ray_running(config):
        import ray

        nodes = alive_nodes(ray.nodes())  # type: ignore[no-untyped-call]
        took = f"{'up' if config.mode == 'local' else 'joined'} in {time.perf_counter() - began:.1f} s"
        asked = asks(config, ray.cluster_resources())  # type: ignore[no-untyped-call]
        waits = check_room(asked, nodes, config.ray.autoscales)
        each = "; ".join(f"{name}: {_main(node)}" for name, node in list(nodes.items())[:8])
        yield Check("Ray", "warning" if waits else "ok", f"Ray {ray.__version__} {took}; {each}; {asked}", waits)
        yield from _nodes_code()


def compare_code(identity: Identity) -> None:
    """On a node: see ``Identity.check``."""
    identity.check()


def _nodes_code() -> Iterator[Check]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    identity, compare, asked = Identity.here(), ray.remote(compare_code), {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[compare.options(num_cpus=0, scheduling_strategy=here, max_retries=0).remote(identity)] = node[
                "NodeManagerAddress"
            ]
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_S)
    wrong = [f"{asked[call]}: no answer for {NODE_S:g} s" for call in late]
    for call in done:
        try:
            ray.get(call)
        except ray.exceptions.RayError as error:
            wrong.append(f"{asked[call]}: {getattr(error, 'cause', None) or error}")
    if wrong:
        yield Check("nodes", "problem", "; ".join(wrong), "install this qherd on every node")
    else:
        yield Check("nodes", "ok", f"{len(asked)} node(s) run this qherd's code")


def _main(node: Resources) -> str:
    """The resources of a node that people know by name."""
    kept = sorted(name for name in node if not name.startswith(("node:", "memory", "object_store")))
    return shown({name: node[name] for name in kept})
