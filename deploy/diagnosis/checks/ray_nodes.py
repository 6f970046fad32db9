"""Checks of Ray and of the code that each of its nodes runs."""

from __future__ import annotations

import time
from collections.abc import Iterator

from deploy.cluster.placement import Resources, alive_nodes, check_capacity, formatted, resource_request
from deploy.cluster.ray_running import ray_running
from deploy.config.models import RunConfig
from deploy.diagnosis.checks.check import Check
from replay.identity import Identity

NODE_S = 60.0
"""Seconds that a node of the cluster may take to compare its code."""


def ray_checks(config: RunConfig) -> Iterator[Check]:
    """Starts Ray as a run would, or joins the cluster; then has each node compare its code with this one's."""
    if config.mode == "cluster" and config.ray.address is None:
        yield Check("Ray", "problem", "the cluster mode has no Ray cluster", "give --ray.address (host:port, or auto)")
        return
    began = time.perf_counter()
    with ray_running(config):
        import ray

        nodes = alive_nodes(ray.nodes())  # type: ignore[no-untyped-call]
        took = f"{'up' if config.mode == 'local' else 'joined'} in {time.perf_counter() - began:.1f} s"
        request = resource_request(config, ray.cluster_resources())  # type: ignore[no-untyped-call]
        waits = check_capacity(request, nodes, config.ray.autoscales)
        each = "; ".join(f"{name}: {_main_resources(node)}" for name, node in list(nodes.items())[:8])
        yield Check("Ray", "warning" if waits else "ok", f"Ray {ray.__version__} {took}; {each}; {request}", waits)
        yield from _nodes_code()


def compare_code(identity: Identity) -> None:
    """Compares the code, on a node: see ``Identity.check``."""
    identity.check()


def _nodes_code() -> Iterator[Check]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    identity, compare, nodes_by_call = Identity.here(), ray.remote(compare_code), {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            nodes_by_call[compare.options(num_cpus=0, scheduling_strategy=here, max_retries=0).remote(identity)] = node[
                "NodeManagerAddress"
            ]
    done, late = ray.wait(list(nodes_by_call), num_returns=len(nodes_by_call), timeout=NODE_S)
    wrong = [f"{nodes_by_call[call]}: no answer for {NODE_S:g} s" for call in late]
    for call in done:
        try:
            ray.get(call)
        except ray.exceptions.RayError as error:
            wrong.append(f"{nodes_by_call[call]}: {getattr(error, 'cause', None) or error}")
    if wrong:
        yield Check("nodes", "problem", "; ".join(wrong), "install this qherd on every node")
    else:
        yield Check("nodes", "ok", f"{len(nodes_by_call)} node(s) run this qherd's code")


def _main_resources(node: Resources) -> str:
    """Returns a text with the resources of a node that people know by name."""
    kept = sorted(name for name in node if not name.startswith(("node:", "memory", "object_store")))
    return formatted({name: node[name] for name in kept})
