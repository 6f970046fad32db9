"""What a run asks a Ray cluster for, and whether the cluster's nodes can ever hold it.

All actors ask for the same, so that the exact answer is short: for each node that could take the learner, count how
many actors fit into what is left.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig

Resources = Mapping[str, float]
LEARNER_RESOURCE = "qherd_learner"
"""The Ray resource of the node where learner and evaluator belong; without it Ray places them anywhere."""
LEARNER_SHARES = {"learner": 0.9, "evaluator": 0.1}
SHORT_AFTER_S, REPEAT_AFTER_S = 8.0, 60.0
"""A process starts within a few seconds where there is room for it."""
LEARNER, ACTOR = "LearnerWorker", "ActorWorker"
"""Classes of Ray actors."""
_SLACK = 1e-6
"""Ray counts in ten-thousandths."""


@dataclass(frozen=True)
class ResourceRequest:
    """Resources of the learner, of each of ``count`` actors and of the evaluator, by Ray's names. The evaluator runs on
    the learner's node where that has LEARNER_RESOURCE, else anywhere."""

    learner: Resources
    actor: Resources
    count: int
    evaluator: Resources = field(default_factory=dict)

    def __str__(self) -> str:
        each = "the actor" if self.count == 1 else f"each of {self.count} actors"
        return f"the learner asks for {formatted(self.learner)}, {each} for {formatted(self.actor)}"


def resource_request(config: RunConfig, offered: Resources) -> ResourceRequest:
    """Returns what the run asks of a cluster that offers this in all.

    The learner asks for a CPU, or for a share of LEARNER_RESOURCE where the cluster has it: so no actor gets what the
    learner needs while it is restarted, and a worker node that is lost takes neither learner nor evaluator with it. The
    configuration overrides both.
    """
    learner, actors, has_resource = config.learner, config.actors, LEARNER_RESOURCE in offered
    share = {LEARNER_RESOURCE: LEARNER_SHARES["learner"]} if has_resource else {}
    by_default = 1.0 if config.mode == "cluster" and not has_resource else 0.0
    return ResourceRequest(
        _without_zeros(
            {
                "CPU": by_default if learner.cpus is None else learner.cpus,
                "GPU": _gpus(config, offered) if learner.gpus is None else learner.gpus,
                **share,
                **learner.resources,
            }
        ),
        _without_zeros({"CPU": actors.cpus, **actors.resources}),
        actors.count,
        {LEARNER_RESOURCE: LEARNER_SHARES["evaluator"]} if has_resource else {},
    )


def _gpus(config: RunConfig, offered: Resources) -> float:
    """Returns the learner's GPUs: one where the cluster has any and ``learner.device`` does not exclude it."""
    wanted = config.learner.device
    return 1.0 if wanted.startswith("cuda") or (wanted == "auto" and offered.get("GPU", 0) >= 1) else 0.0


def options(needs: Resources) -> dict[str, Any]:
    """Returns the same as options of a Ray actor."""
    custom = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
    return {"num_cpus": needs.get("CPU", 0), "num_gpus": needs.get("GPU", 0), "resources": custom}


def actors_that_fit(request: ResourceRequest, nodes: Sequence[Resources]) -> int:
    """Returns how many of the actors fit beside the learner on these nodes, at the most ``count``; -1 where the learner
    fits on none of them."""
    most = -1
    for learner_at, node in enumerate(nodes):
        if _times(request.learner, node) >= 1:
            left = {name: node.get(name, 0) - request.learner.get(name, 0) for name in node}
            actors = sum(_times(request.actor, left if at == learner_at else other) for at, other in enumerate(nodes))
            most = max(most, int(min(actors, request.count)))
    return most


def check_capacity(request: ResourceRequest, nodes: Mapping[str, Resources], autoscales: bool) -> str:
    """Returns "" where the run fits, else what it has to wait for.

    Raises:
        ConfigError: it does not fit, and no node will be added.
    """
    room = actors_that_fit(request, list(nodes.values()))
    if room == request.count:
        return ""
    what = f"{request}; {_cluster(nodes, request)}"
    if autoscales:
        return f"waiting for the cluster to add nodes: {what}"
    fits = f"the learner and {room} actor(s) fit" if room >= 0 else "no node can take the learner"
    raise ConfigError(
        f"this run does not fit the Ray cluster: {what}: {fits}. Ask for less (--actors.count, --actors.cpus, "
        "--actors.resources, --learner.cpus, --learner.gpus, --learner.resources), add nodes, or give --ray.autoscales "
        "where the cluster adds them when they are asked for"
    )


class CapacityWatch:
    """Shows what a run that should have started by now waits for: other work may have what it needs."""

    def __init__(
        self, request: ResourceRequest, notify: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.request, self._notify, self._clock = request, notify, clock
        self._since_s: float | None = None
        self._last_notice = ("", -math.inf)

    def short(
        self, learner: bool, actors: int, free: Callable[[], Resources], queued: Callable[[], Counter[str]]
    ) -> bool:
        """Returns whether resources are what keeps the learner, if it is missing, and so many actors from starting.
        Shows it after a while, when something else is short, and again every minute.

        ``free()``: what nobody has taken, over all nodes. ``queued()``: how many of this run's Ray actors have no
        worker process yet, by their class; one that has it has its resources, and is starting.
        """
        now_s = self._clock()
        if not (learner or actors):
            self._since_s = None
            return False
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s < SHORT_AFTER_S:
            return False
        waiting, left = queued(), free()
        learner, actors = learner and waiting[LEARNER] > 0, min(actors, waiting[ACTOR])
        # there may be room for them that Ray has not given them yet
        no_learner = learner and _times(self.request.learner, left) < 1
        no_actors = bool(actors) and _times(self.request.actor, left) < 1
        short = [*(["the learner"] if no_learner else []), *([f"{actors} actor(s)"] if no_actors else [])]
        if not short:
            return False
        what = " and ".join(short)
        if what != self._last_notice[0] or now_s - self._last_notice[1] >= REPEAT_AFTER_S:
            self._last_notice = what, now_s
            named = formatted({name: left.get(name, 0) for name in _names(self.request)})
            self._notify(f"waiting for room for {what}: {self.request}; free in the whole cluster: {named}")
        return True


def without_worker(actors: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Counts the Ray actors that are being created and have no worker process yet, by their class: one that queues at a
    node has that node's id already, and an address only once its resources and a process were given to it."""
    return Counter(each["ActorClassName"] for each in actors if not each["Address"]["IPAddress"])


def formatted(resources: Resources) -> str:
    """Returns a text such as ``1 CPU, 1 GPU, 0.5 fast_disk``."""
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"


def _cluster(nodes: Mapping[str, Resources], request: ResourceRequest) -> str:
    """Returns a text with the nodes by what matters here, alike ones together."""
    kinds: dict[str, list[str]] = {}
    for name, node in nodes.items():
        kinds.setdefault(formatted({each: node.get(each, 0) for each in _names(request)}), []).append(name)
    each = [f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''} with {what}" for what, names in kinds.items()]
    return f"it has {len(nodes)} node(s), {'; '.join(each)}" if nodes else "it has no nodes"


def _names(request: ResourceRequest) -> list[str]:
    return list(dict.fromkeys(["CPU", *request.learner, *request.actor]))


def _times(needs: Resources, node: Resources) -> float:
    """Returns how often ``needs`` fits into a node."""
    each = [math.floor((node.get(name, 0) + _SLACK) / amount) for name, amount in needs.items()]
    return min(each, default=math.inf)


def _without_zeros(needs: Mapping[str, float]) -> Resources:
    return {name: amount for name, amount in needs.items() if amount}


def alive_nodes(nodes: Iterable[Mapping[str, Any]]) -> dict[str, Resources]:
    """Returns resources by address, of what ``ray.nodes()`` returns."""
    alive = [node for node in nodes if node["Alive"]]
    return {f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}": node["Resources"] for node in alive}
