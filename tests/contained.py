"""Finds what a service of docker-compose.yml lacks or has too much of: users, rights, limits, mounts, networks, order.

Each finding begins with the service's name and the key that is wrong. What a service has to be is written down here, by
its name; tests/test_deploy_files.py damages the file in each of these points, and each damage has to be found.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli_runs import ROOT
from compose import seconds

STOP_S = 25.0
"""What qherd takes at the most to end in order (docs/survive.md)."""
QHERD_USER, PROMETHEUS_USER = "10001:10001", "65534:65534"
QHERD_MODES = {"runs": "/srv/runs", "secrets": "/srv/secrets"}
"""Where the image has folders of its user for these volumes (deploy/Dockerfile)."""


@dataclass(frozen=True)
class Answer:
    """What a healthcheck asks, and by which answer of that program it is to tell well from unwell."""

    program: str
    asks: str
    well: str = ""
    unwell: str = "an error"
    code_when_unwell: int = 1


RAY_NODE = Answer("python3", "/opt/qherd/deploy/ray/healthy.py head:6380")


@dataclass(frozen=True)
class Wanted:
    """What a service has to be."""

    least_mb: int
    """Below this it is killed as it works."""
    least_pids: int
    networks: frozenset[str] = frozenset({"qherd"})
    """Those it is in; ``service:NAME`` for that service's own, ``none`` for none."""
    after: frozenset[str] = frozenset()
    secret: str | None = None
    """The one role whose folder it sees."""
    runs: str | None = None
    """Whether it may write (rw) or read (ro) the runs."""
    check: Answer | None = None
    user: str = QHERD_USER
    tmp: bool = True
    """Whether it writes to /tmp, below a root that is read-only."""
    restart: str = "unless-stopped"
    grace_s: float = 10
    ray: bool = False
    """Whether Ray's objects are in its /dev/shm."""
    binds: frozenset[str] = frozenset()


WANTED = {
    "secrets": Wanted(256, 20, frozenset({"none"}), restart="no"),
    "valkey": Wanted(
        768,
        20,
        after=frozenset({"secrets"}),
        secret="server",
        check=Answer("valkey-cli", "--user health -e ping", "PONG", "NOAUTH Authentication required.", 0),
        grace_s=20,
    ),
    "head": Wanted(1024, 1000, after=frozenset({"secrets"}), secret="ray", check=RAY_NODE, grace_s=40, ray=True),
    "worker": Wanted(2048, 1000, after=frozenset({"head"}), secret="ray", check=RAY_NODE, grace_s=40, ray=True),
    "learner": Wanted(
        3072,
        1000,
        after=frozenset({"valkey", "worker", "gpu"}),
        secret="driver",
        runs="rw",
        check=Answer("find", "/runs/lander/metrics.jsonl"),
        restart="on-failure",
        grace_s=STOP_S + 15,
        ray=True,
    ),
    "gpu": Wanted(
        3072, 1000, after=frozenset({"head"}), secret="ray", runs="rw", check=RAY_NODE, grace_s=STOP_S + 15, ray=True
    ),
    "prometheus": Wanted(
        512,
        50,
        frozenset({"qherd", "front"}),
        check=Answer("wget", "http://127.0.0.1:9090/-/ready"),
        user=PROMETHEUS_USER,
        tmp=False,
        grace_s=30,
        binds=frozenset({"/etc/prometheus"}),
    ),
    "discovery": Wanted(
        128,
        20,
        frozenset({"service:prometheus"}),
        frozenset({"prometheus"}),
        runs="ro",
        check=Answer("python3", "urlopen('http://127.0.0.1:9180/targets', timeout=3)"),
    ),
    "exporter": Wanted(
        96,
        20,
        frozenset({"service:prometheus"}),
        frozenset({"valkey", "prometheus"}),
        secret="exporter",
        check=Answer("wget", "http://127.0.0.1:9121/metrics", "redis_up 1", "redis_up 0", 0),
        tmp=False,
    ),
    "grafana": Wanted(
        256,
        50,
        frozenset({"front"}),
        frozenset({"secrets", "prometheus"}),
        secret="grafana",
        check=Answer("wget", "http://127.0.0.1:3000/api/health", '{"database": "ok"}', '{"database": "failing"}', 0),
        grace_s=10,
        binds=frozenset({"/etc/grafana/provisioning", "/etc/grafana/dashboards"}),
    ),
}


def findings(compose: Mapping[str, Any]) -> Iterator[str]:
    """All that is wrong. Healthchecks are run, with programs that answer as told."""
    services: Mapping[str, Any] = compose["services"]
    for name in services.keys() ^ WANTED.keys():
        yield f"{name}: a service of only one of docker-compose.yml and tests/contained.py"
    for name in services.keys() & WANTED.keys():
        for rule in (_rights, _limits, _writes, _networks, _volumes, _order, _ends):
            yield from (f"{name}: {found}" for found in rule(services[name], WANTED[name]))
        yield from (f"{name}: {found}" for found in _depends(services, name))
        yield from (f"{name}: {found}" for found in _check(services[name], WANTED[name].check))
    yield from _places(compose)


def _rights(service: Mapping[str, Any], wanted: Wanted) -> Iterator[str]:
    if service.get("user") != wanted.user:
        yield f"user is {service.get('user')}, not {wanted.user}"
    if service.get("cap_drop") != ["ALL"]:
        yield f"cap_drop is {service.get('cap_drop')}"
    if service.get("security_opt") != ["no-new-privileges:true"]:
        yield f"security_opt is {service.get('security_opt')}"
    given = "cap_add privileged devices pid ipc userns_mode uts cgroup_parent env_file group_add sysctls extends"
    yield from (f"{key} is given" for key in given.split() if key in service)
    if not re.search(r":v?\d", str(service.get("image"))):
        yield f"image {service.get('image')} is not pinned"
    shown = json.dumps(service.get("environment") or {})
    if re.search(r'(?i)"\w*(password|token|secret)"', shown):
        yield "environment has a secret in clear: name a file"


def megabytes(text: object) -> float:
    """A size of compose, such as 512m, in MiB."""
    found = re.fullmatch(r"(\d+)(k|m|g)?b?", str(text))
    assert found, text
    return int(found[1]) * {"k": 2**-10, "m": 1, "g": 2**10, None: 2**-20}[found[2]]


def _limits(service: Mapping[str, Any], wanted: Wanted) -> Iterator[str]:
    limit = megabytes(service.get("mem_limit", "0"))
    least = wanted.least_mb
    command = list(map(str, service.get("command", [])))
    if "--maxmemory" in command:  # buffers come on top
        least = max(least, int(1.5 * megabytes(command[command.index("--maxmemory") + 1])))
    if not least <= limit <= 64 * 1024:
        yield f"mem_limit is {limit:g} MB, which has to be at least {least}"
    if not wanted.least_pids <= int(service.get("pids_limit", 0)) <= 10_000:
        yield f"pids_limit is {service.get('pids_limit')}, which has to be at least {wanted.least_pids}"
    cpus = [word.partition("=")[2] for word in command if word.startswith("--num-cpus=")]
    if wanted.after and cpus not in ([], ["0"], [str(service.get("cpus"))]):
        yield f"cpus is {service.get('cpus')}, and Ray is told {cpus[0]}"
    options = (service.get("logging") or {}).get("options", {})
    if not {"max-size", "max-file"} <= options.keys():
        yield "logging has no bound"
    default = re.search(r"OBJECT_STORE_BYTES:-(\d+)", (ROOT / "deploy/ray/env.sh").read_text())
    assert default is not None
    if wanted.ray and megabytes(service.get("shm_size", "64m")) <= int(default[1]) / 2**20:
        yield "shm_size is not above the size of Ray's object store: it would lie in /tmp"


def _writes(service: Mapping[str, Any], wanted: Wanted) -> Iterator[str]:
    if service.get("read_only") is not True:
        yield "read_only is not set: its root can be written"
    mounts = [str(each) for each in service.get("tmpfs", [])]
    bounded = [each for each in mounts if re.fullmatch(r"/tmp:mode=1777,size=\d+[mg]", each)]
    if len(bounded) != int(wanted.tmp) or len(mounts) > len(bounded):
        yield f"tmpfs is {mounts}, which has to be {'a bounded /tmp' if wanted.tmp else 'none'}"


def _networks(service: Mapping[str, Any], wanted: Wanted) -> Iterator[str]:
    mode = service.get("network_mode")
    within = frozenset(service.get("networks", [] if mode else ["default"])) | ({mode} if mode else set())
    if within != wanted.networks:
        yield f"networks: it is in {', '.join(sorted(map(str, within)))}, not in {', '.join(sorted(wanted.networks))}"
    if bool(service.get("ports")) != ("front" in wanted.networks):
        yield f"ports are {service.get('ports')}: those in the network front are published, and nothing else"
    yield from (f"{key} is given" for key in ("extra_hosts", "dns", "links", "external_links") if key in service)


def _volumes(service: Mapping[str, Any], wanted: Wanted) -> Iterator[str]:
    seen: dict[str, tuple[str, str | None, str]] = {}
    for volume in service.get("volumes", []):
        kind = "bind" if volume["type"] == "bind" else volume["source"]
        key = kind if kind != "bind" else volume["target"]
        role, mode = volume.get("volume", {}).get("subpath"), "ro" if volume.get("read_only") else "rw"
        if key in seen:
            yield f"volumes has {key} twice"
        seen[key] = (volume["target"], role, mode)
        if kind == "bind" and not (volume["source"].startswith("./deploy/") and mode == "ro"):
            yield f"volumes has {volume['source']} of the host"
    made: dict[str, tuple[str, str | None, str]] = {}
    if wanted.secret:
        made["secrets"] = ("/run/secrets", wanted.secret, "ro")
    elif "none" in wanted.networks:  # it makes them
        made["secrets"] = (QHERD_MODES["secrets"], None, "rw")
    if wanted.runs:
        made["runs"] = (QHERD_MODES["runs"], None, wanted.runs)
    if wanted.user == PROMETHEUS_USER:
        made["prometheus"] = ("/prometheus", None, "rw")
    made |= {target: (target, None, "ro") for target in wanted.binds}
    for key in sorted(made.keys() | seen.keys()):
        if made.get(key) != seen.get(key):
            yield f"volumes: {key} is {seen.get(key)}, not {made.get(key)}"


def _order(service: Mapping[str, Any], wanted: Wanted) -> Iterator[str]:
    given = service.get("depends_on", {})
    if set(given) != wanted.after:
        yield f"depends_on is {sorted(given)}, not {sorted(wanted.after)}"


def _depends(services: Mapping[str, Any], name: str) -> Iterator[str]:
    """That each is waited for until it is of use, and that no profile leaves it out."""
    for other, how in services[name].get("depends_on", {}).items():
        if other not in services:
            yield f"depends_on {other}, which there is not"
            continue
        ends = services[other].get("restart") == "no"
        if how.get("condition") != ("service_completed_successfully" if ends else "service_healthy"):
            yield f"depends_on {other} for {how.get('condition')}"
        together = set(services[other].get("profiles", [])) <= set(services[name].get("profiles", []))
        if how.get("required", True) != together:
            yield f"depends_on {other}, {'which starts with it' if together else 'which a profile leaves out'}"


def _ends(service: Mapping[str, Any], wanted: Wanted) -> Iterator[str]:
    if service.get("init") is not True:
        yield "init is not set: nobody waits for orphans"
    if str(service.get("restart")).partition(":")[0] != wanted.restart:
        yield f"restart is {service.get('restart')}, not {wanted.restart}"
    if wanted.check and not wanted.grace_s <= seconds(service.get("stop_grace_period", "0s")) <= 120:
        yield f"stop_grace_period is {service.get('stop_grace_period')}, which has to be at least {wanted.grace_s:g} s"


def _check(service: Mapping[str, Any], answer: Answer | None) -> Iterator[str]:
    check = service.get("healthcheck")
    if answer is None or check is None:
        if answer is not None or check is not None:
            yield f"healthcheck is {check}"
        return
    if check.get("disable") or check["test"][0] not in ("CMD", "CMD-SHELL"):
        yield f"healthcheck is {check['test']}"
        return
    noticed_s = check["retries"] * seconds(check["interval"])
    if not (10 <= noticed_s <= 120 and 10 <= seconds(check["start_period"]) <= 300 and seconds(check["timeout"]) >= 3):
        yield f"healthcheck takes {noticed_s:g} s to notice, from {check['start_period']} on"
    yield from _answers(tuple(check["test"]), answer)


@functools.cache
def _answers(test: tuple[str, ...], answer: Answer) -> list[str]:
    """What is wrong with a check by how it takes each answer."""
    with tempfile.TemporaryDirectory() as folder:
        if answer.program == "find":
            return list(_check_of_a_file(test, answer, Path(folder)))
        found = []
        for text, code, passes in ((answer.well, 0, True), (answer.unwell, answer.code_when_unwell, False)):
            passed, asked = _run(test, answer.program, text, code, Path(folder))
            if passed != passes:
                found.append(
                    f"healthcheck {'fails' if passes else 'passes'} where {answer.program} answers {text!r}, {code}"
                )
            if answer.asks not in asked:
                found.append(f"healthcheck does not ask {answer.asks!r} of {answer.program}")
        return found


def _run(test: tuple[str, ...], program: str, text: str, code: int, folder: Path) -> tuple[bool, str]:
    """Whether a check passes where ``program`` prints ``text`` and ends with ``code``; and what it was called with."""
    stub, asked = folder / program, folder / "asked"
    stub.write_text(f"#!/bin/sh\necho \"$@\" >'{asked}'\necho '{text}'\nexit {code}\n")
    stub.chmod(0o755)
    asked.write_text("")
    (folder / "health_password").write_text("password\n")
    kind, *words = (str(word).replace("/run/secrets", str(folder)) for word in test)
    command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
    command[0] = str(stub) if command[0] == program else command[0]
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, check=False, timeout=20)
    return done.returncode == 0, asked.read_text()


def _check_of_a_file(test: tuple[str, ...], answer: Answer, folder: Path) -> Iterator[str]:
    """A file that was written a moment ago passes, an old one and none do not."""
    file = folder / answer.asks.lstrip("/")
    file.parent.mkdir(parents=True)
    script = [str(word).replace("/srv/", f"{folder}/") for word in test[1:]]
    for age_s, passes in ((None, False), (1, True), (600, False)):
        if age_s is not None:
            file.write_text("{}\n")
            os.utime(file, (time.time() - age_s,) * 2)
        passed = subprocess.run(["sh", "-c", *script], capture_output=True, check=False, timeout=20).returncode == 0
        if passed != passes:
            yield f"healthcheck {'fails' if passes else 'passes'} where its file is {age_s} s old"


def _places(compose: Mapping[str, Any]) -> Iterator[str]:
    """The networks and volumes themselves."""
    internal = {name: bool((each or {}).get("internal")) for name, each in compose["networks"].items()}
    if internal != {"qherd": True, "front": False}:
        yield f"networks: {internal}; qherd leads nowhere else, front takes what is published"
    if any((each or {}).get("external") for each in (*compose["networks"].values(), *compose["volumes"].values())):
        yield "networks or volumes are another project's"
    if set(compose["volumes"]) != {"secrets", "runs", "prometheus"} or any(compose["volumes"].values()):
        yield f"volumes: {compose['volumes']}"
    for variable, value in re.findall(r"^(\w+)=(.*)$", (ROOT / ".env").read_text(), re.M):
        if re.search(r"PASSWORD|TOKEN|SECRET", variable) and value:
            yield f".env has {variable}"
