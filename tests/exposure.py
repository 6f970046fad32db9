"""Finds what deployment files would leave open: a port that is published, or a server that asks for no secret."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

SECRET_OF = {
    "valkey": ("--aclfile", "--requirepass"),
    "redis": ("--aclfile", "--requirepass"),
    "grafana": ("GF_SECURITY_ADMIN_PASSWORD__FILE",),
}
"""By a word in the image's last name: one of these has to be in the command or the environment."""
NO_SECRET = ("prometheus", "redis_exporter")
"""These have none: they may be published on loopback, or watched behind a network policy."""


def in_compose(services: Mapping[str, Any]) -> Iterator[str]:
    """Findings in docker-compose.yml's services."""
    for name, service in services.items():
        for port in map(str, service.get("ports", [])):
            if not port.startswith(("127.0.0.1:", "[::1]:")):
                yield f"{name} publishes {port} beyond loopback"
        if service.get("network_mode") == "host":
            yield f"{name} is in the host's network"
        shown = " ".join([*map(str, service.get("command", [])), *(service.get("environment") or {})])
        yield from _without_secret(name, service["image"], shown, bool(service.get("ports")))


def in_manifests(manifests: list[dict[str, Any]]) -> Iterator[str]:
    """Findings in Kubernetes manifests."""
    kinds = {manifest["kind"] for manifest in manifests}
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        if manifest["kind"] == "Service" and manifest["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"{name} is of type {manifest['spec']['type']}"
        if manifest["kind"] == "Ingress":
            yield f"{name} publishes"
        if manifest["kind"] in ("RayJob", "RayCluster"):
            cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
            if cluster.get("authOptions") != {"mode": "token"}:
                yield f"{name} has no token: whoever reaches it can run code"
            if cluster["headGroupSpec"].get("serviceType", "ClusterIP") != "ClusterIP":
                yield f"{name} publishes its head"
        for pod in pods(manifest):
            if pod["spec"].get("hostNetwork"):
                yield f"{name} is in the host's network"
            for container in pod["spec"]["containers"]:
                shown = " ".join([*container.get("args", []), *(each["name"] for each in container.get("env", []))])
                yield from _without_secret(f"{name}/{container['name']}", container["image"], shown, False)
                yield from (
                    f"{name} has the host port {port['hostPort']}"
                    for port in container.get("ports", ())
                    if "hostPort" in port
                )
    if "Deployment" in kinds and "NetworkPolicy" not in kinds:
        yield "no network policy"


def in_dockerfile(text: str) -> Iterator[str]:
    """Findings in a Dockerfile."""
    if re.search(r"^EXPOSE\b", text, re.M):
        yield "EXPOSE: compose and Kubernetes say what is published"
    if "RAY_AUTH_MODE=token" not in text:
        yield "the image starts Ray without a token"
    users = re.findall(r"^USER (\S+)", text, re.M)
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield "the image's user is root, or no number"


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod templates in a manifest."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "RayJob":
        yield spec["submitterPodTemplate"]
        yield spec["rayClusterSpec"]["headGroupSpec"]["template"]
        yield from (group["template"] for group in spec["rayClusterSpec"]["workerGroupSpecs"])
    elif "template" in spec:
        yield spec["template"]


def _without_secret(name: str, image: str, shown: str, published: bool) -> Iterator[str]:
    last = image.rpartition("/")[2].partition(":")[0]
    if last in NO_SECRET or last == "qherd":
        return
    wanted = SECRET_OF.get(last)
    if wanted is None and published:
        yield f"{name} publishes {image}, of which nothing is known here: add to SECRET_OF what guards it"
    elif wanted and not any(word in shown for word in wanted):
        yield f"{name} serves without a secret: give {image} one of {', '.join(wanted)}"
