"""Damages docker-compose.yml, one point at a time: what tests/contained.py has to find."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from typing import Any

from compose import load
from contained import WANTED, Wanted

GONE = object()
"""In place of a value: the key is taken away."""
SOCKET = {"type": "bind", "source": "/var/run/docker.sock", "target": "/var/run/docker.sock"}
EVERY_SERVICE: dict[str, list[Any]] = {
    "user": ["0:0", "1000:1000", GONE],
    "cap_drop": [[], GONE],
    "cap_add": [["SYS_ADMIN"]],
    "privileged": [True],
    "pid": ["host"],
    "ipc": ["host"],
    "devices": [["/dev/kmsg:/dev/kmsg"]],
    "env_file": [["secrets.env"]],
    "environment": [{"ADMIN_PASSWORD": "hunter2"}],
    "security_opt": [GONE, ["no-new-privileges:true", "seccomp:unconfined"]],
    "image": ["qherd:latest", "qherd"],
    "read_only": [False, GONE],
    "mem_limit": ["64m", "2048g", GONE],
    "pids_limit": [5, -1, GONE],
    "logging": [GONE, {"driver": "json-file"}],
    "init": [False, GONE],
    "restart": ["always", GONE],
    "tmpfs": [GONE, ["/tmp"], ["/tmp:mode=1777,size=1g", "/etc:size=1m"]],
    "networks": [GONE, ["default"], ["front"], ["qherd"]],
    "network_mode": ["host"],
    "ports": [GONE, ["127.0.0.1:7000:7000"]],
    "extra_hosts": [["valkey:192.0.2.1"]],
    "depends_on": [GONE, {"grafana": {"condition": "service_healthy"}}],
    "volumes": [GONE, [SOCKET]],
    "stop_grace_period": ["1s", GONE],
    "shm_size": ["64m", GONE],
    "healthcheck": [GONE, {"disable": True, "test": ["NONE"]}],
    "healthcheck.test": [["CMD", "true"], ["CMD-SHELL", "exit 0"], "or true", "another question"],
    "healthcheck.retries": [0, 100],
    "healthcheck.timeout": ["1s"],
    "healthcheck.start_period": ["0s", "1h"],
}
"""What becomes of each key of each service, where that takes anything from it."""
FOUND_AS = {"network_mode": "networks"}
"""By which key a damage is named, where not by its own."""
ELSEWHERE = {"6380": "1", "9090": "1", "9180": "1", "9121": "1", "3000": "1", "--user": "--nobody", "-mmin": "-mtime"}
"""A healthcheck with these words replaced asks something else."""


def all_damages() -> Iterator[tuple[str, str, str, Any]]:
    """The service, the key that is to be found, and what becomes of which path of the file."""
    for name, service in load({})["services"].items():
        for key, values in EVERY_SERVICE.items():
            first = key.partition(".")[0]
            for value in values:
                if _matters(service, WANTED[name], first, value):
                    yield name, FOUND_AS.get(first, first), f"services.{name}.{key}", value
        yield from _of_volumes(name, service)
        for other, how in service.get("depends_on", {}).items():
            at = f"services.{name}.depends_on.{other}"
            yield name, "depends_on", at, GONE
            yield name, "depends_on", f"{at}.condition", "service_started"
            yield name, "depends_on", f"{at}.required", not how.get("required", True)
    yield from _of_single_services()
    yield from _of_networks_and_volumes()


def _of_volumes(name: str, service: dict[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    volumes = service.get("volumes", [])
    yield name, "volumes", f"services.{name}.volumes", [*volumes, SOCKET]
    for index, volume in enumerate(volumes):
        at = f"services.{name}.volumes.{index}"
        yield name, "volumes", at, GONE
        yield name, "volumes", f"{at}.target", "/elsewhere"
        yield name, "volumes", f"{at}.read_only", not volume.get("read_only")
        if "volume" in volume:
            yield name, "volumes", f"{at}.volume", GONE
            yield name, "volumes", f"{at}.volume.subpath", "exporter2"


def _of_single_services() -> Iterator[tuple[str, str, str, Any]]:
    for name in ("worker", "gpu"):
        yield name, "cpus", f"services.{name}.command", ["worker.sh", "head:6380", "--num-cpus=64"]
    yield "valkey", "mem_limit", "services.valkey.command", ["valkey-server", "--maxmemory", "1gb"]
    yield "stranger", "", "services.stranger", {"image": "a:1"}
    yield "worker", "", "services.worker", GONE


def _of_networks_and_volumes() -> Iterator[tuple[str, str, str, Any]]:
    yield "networks", "", "networks.qherd", {}
    yield "networks", "", "networks.front", {"internal": True}
    yield "networks", "", "networks.third", {}
    yield "networks or volumes", "", "networks.front", {"external": True}
    yield "networks or volumes", "", "volumes.runs", {"external": True}
    yield "volumes", "", "volumes.runs", GONE
    yield "volumes", "", "volumes.runs", {"driver_opts": {"type": "none", "o": "bind", "device": "/"}}


def _matters(service: dict[str, Any], wanted: Wanted, key: str, value: Any) -> bool:
    """Whether this takes anything from the service, or gives it too much."""
    if value is GONE:
        return key in service and (key != "shm_size" or wanted.ray)
    relevant: dict[str, bool] = {
        "healthcheck": wanted.check is not None,
        "stop_grace_period": wanted.check is not None,
        "networks": value != service.get("networks"),
        "shm_size": wanted.ray,
        "ports": "ports" not in service,
    }
    return relevant.get(key, True)


def damaged(compose: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the file with another value at ``path``."""
    copied = copy.deepcopy(compose)
    at: Any = copied
    *parents, last = path.split(".")
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
    index: Any = int(last) if isinstance(at, list) else last
    if value is GONE:
        del at[index]
    elif value == "or true":
        kind, *words = at[index]
        at[index] = ["CMD-SHELL", f"{shlex.join(words) if kind == 'CMD' else words[0]} || true"]
    elif value == "another question":
        at[index] = [re.sub("|".join(ELSEWHERE), lambda found: ELSEWHERE[found[0]], word) for word in at[index]]
    else:
        at[index] = value
    return copied
