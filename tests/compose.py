"""docker-compose.yml without an engine: each service's own command, environment, volumes and health check as processes
on a node of its own (nodes.py), in the order that depends_on asks for.

What an engine would do besides, and this does not: users, capabilities, limits, read-only roots, published ports; these
are judged by contained.py.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cli_runs import ROOT
from nodes import PATH, Network, Node, Program

from deploy.server.binary import find_server

FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
ENTRYPOINTS = {"prom/prometheus": ["prometheus"], "oliver006/redis_exporter": ["prometheus-redis-exporter"]}
"""What stands in for an image's own entry point: Debian's package of the same program."""
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::?([-?])([^}]*))?\})")


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """``${NAME}``, ``${NAME:-default}`` and ``$$`` in all texts of a YAML value."""
    if isinstance(value, dict):
        return {key: interpolate(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolate(each, variables) for each in value]
    if not isinstance(value, str):
        return value

    def put(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if name is None:
            return "$"
        if variables.get(name):
            return variables[name]
        if kind != "-":
            raise KeyError(f"{name} is set nowhere ({match[0]})")
        return str(rest)

    return _VARIABLE.sub(put, value)


def load(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file with its variables in place."""
    loaded: dict[str, Any] = interpolate(yaml.safe_load(FILE.read_text()), variables)
    return loaded


def image_environment() -> dict[str, str]:
    """ENV of the Dockerfile's base target, beside paths that only the image has."""
    text = DOCKERFILE.read_text().partition(" AS base")[2].partition("WORKDIR")[0].replace("\\\n", " ")
    pairs = dict(re.findall(r"(\w+)=(\S+)", text.partition("\nENV ")[2]))
    return {name: value for name, value in pairs.items() if name not in ("PATH", "HOME")}


def seconds(text: str) -> float:
    """A duration of compose, such as 1m30s."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", text))


def order(services: Mapping[str, Any]) -> list[str]:
    """Services, each after what it depends on."""
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...] = ()) -> None:
        assert name not in path, f"{path} depend on each other"
        for other, wanted in services[name].get("depends_on", {}).items():
            if other in services or wanted.get("required", True):
                visit(other, (*path, name))
        if name not in done:
            done.append(name)

    for name in services:
        visit(name)
    return done


@dataclass
class Container:
    """A service, or one of its replicas."""

    name: str
    service: dict[str, Any]
    node: Node
    env: dict[str, str]
    volumes: Sequence[str]
    program: Program | None = None
    healthy_s: float | None = None

    def start(self) -> None:
        image = self.service["image"].partition(":")[0]
        if self.volumes:  # an engine mounts at the start: only then are a volume's sub-paths there
            self.node.kill()
            self.node.mounts = [*self.node.mounts, *self.volumes]
            self.node.boot()
        command = [*ENTRYPOINTS.get(image, []), *map(str, self.service.get("command", []))]
        self.program = self.node.start(*command, env=self.env, cwd=Path(self.service.get("working_dir", "/srv")))

    def health(self) -> tuple[bool, str]:
        """Run the service's own check once."""
        check = self.service["healthcheck"]
        kind, *rest = check["test"]
        command = ["sh", "-c", *rest] if kind == "CMD-SHELL" else rest
        # an engine's timeout is for an idle machine: a start of Python takes 5 s where two cores are shared by ten
        done = self.node.run(*command, env=self.env, timeout_s=3 * seconds(check["timeout"]))
        return done.returncode == 0, done.stdout + done.stderr

    def await_health(self) -> None:
        """Fails where the program ends or the service would be called unhealthy."""
        check = self.service["healthcheck"]
        assert self.program is not None
        most_s = seconds(check["start_period"]) + check["retries"] * seconds(check["interval"])
        started, said = time.monotonic(), ""

        def healthy() -> bool:
            nonlocal said
            good, said = self.health()
            return good

        try:
            self.program.until(healthy, f"health of {self.name}", most_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n--- its check said:\n{said}") from None
        self.healthy_s = time.monotonic() - started

    def stop(self) -> int:
        """As an engine does: SIGTERM, and SIGKILL after the grace period, which is a failure."""
        assert self.program is not None
        if self.program.process.poll() is None:
            self.program.signal(signal.SIGTERM)
        return self.program.finish(seconds(self.service["stop_grace_period"]))


class Compose:
    """All services of the profiles, but those ``without`` a program on this machine."""

    def __init__(
        self,
        net: Network,
        folder: Path,
        variables: Mapping[str, str],
        profiles: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> None:
        self.net, self.folder = net, folder
        self.services = {
            name: service
            for name, service in load(variables)["services"].items()
            if set(service.get("profiles", profiles or [""])) & set(profiles or [""]) and name not in without
        }
        self.containers: dict[str, list[Container]] = {}
        self._shims = folder / "bin"
        self._shims.mkdir()
        (self._shims / "valkey-server").symlink_to(find_server())
        (self._shims / "valkey-cli").symlink_to(shutil.which("redis-cli") or "/usr/bin/redis-cli")
        for name in load(variables)["volumes"]:
            (folder / "volumes" / name).mkdir(parents=True)

    def create(self) -> None:
        """A node for each container; nothing runs yet."""
        for name in order(self.services):
            service = self.services[name]
            count = int(service.get("scale", 1))
            made = [self._create(name if count == 1 else f"{name}-{i + 1}", service) for i in range(count)]
            self.containers[name] = made

    def _create(self, name: str, service: dict[str, Any]) -> Container:
        mounts = [
            "mount -t tmpfs tmpfs /srv; mkdir -p /srv/runs; mount -t tmpfs tmpfs /run",
            f"mount -t tmpfs tmpfs /opt; mkdir -p /opt/qherd; mount --bind {ROOT} /opt/qherd",
        ]
        mode = service.get("network_mode", "")
        if mode.startswith("service:"):
            node = self.net.join(name, mode.partition(":")[2], mounts)
        else:
            node = self.net.add(name, mounts)
        env = image_environment() if service["image"].startswith("qherd") else {}
        env |= {key: str(value) for key, value in (service.get("environment") or {}).items() if value is not None}
        return Container(name, service, node, {**env, "PATH": f"{self._shims}:{PATH}"}, list(self._volumes(service)))

    def _volumes(self, service: Mapping[str, Any]) -> Iterator[str]:
        for volume in service.get("volumes", []):
            source = ROOT / volume["source"] if volume["type"] == "bind" else self._volume(volume)
            target, options = volume["target"], ",ro" if volume.get("read_only") else ""
            yield f"mkdir -p {target}; mount --bind {source} {target}; mount -o remount,bind{options} {target}"

    def _volume(self, volume: Mapping[str, Any]) -> Path:
        return self.folder / "volumes" / str(volume["source"]) / str(volume.get("volume", {}).get("subpath", ""))

    def up(self) -> None:
        """Start everything, each when what it depends on has got where it asks for."""
        for name, service in self.services.items():
            assert service is not None, name
        for name in order(self.services):
            for other, wanted in self.services[name].get("depends_on", {}).items():
                for container in self.containers.get(other, []):  # not there: not of the profile, and not required
                    self._await(container, wanted["condition"])
            for container in self.containers[name]:
                container.start()

    def _await(self, container: Container, condition: str) -> None:
        if condition == "service_completed_successfully":
            assert container.program is not None
            assert container.program.finish(60) == 0, container.program.out
        elif container.healthy_s is None:
            assert condition == "service_healthy"
            container.await_health()

    def down(self) -> dict[str, int]:
        """Stop everything, what others depend on last; exit codes."""
        return {
            container.name: container.stop()
            for name in reversed(order(self.services))
            for container in self.containers[name]
            if "stop_grace_period" in container.service
        }
