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

from deploy.config.models import ConfigError, RunConfig

Resources = Mapping[str, float]
SEAT = "qherd_learner"
"""The Ray resource of the node where learner and evaluator belong; without it they are where Ray puts them."""
SEAT_SHARE = {"learner": 0.9, "evaluator": 0.1}
ROOM_AFTER_S, SAY_AGAIN_S = 8.0, 60.0
"""A process starts within a few seconds where there is room for it."""
LEARNER, ACTOR = "LearnerWorker", "ActorWorker"
"""Classes of Ray actors."""
_SLACK = 1e-6
"""Ray counts in ten-thousandths."""


@dataclass(frozen=True)
class Asks:
    """What the learner and each of ``count`` actors ask for, by the names that Ray has for it, and the evaluator, which
    goes where the learner goes or anywhere."""

    learner: Resources
    actor: Resources
    count: int
    evaluator: Resources = field(default_factory=dict)

    def __str__(self) -> str:
        each = "the actor" if self.count == 1 else f"each of {self.count} actors"
        return f"the learner asks for {shown(self.learner)}, {each} for {shown(self.actor)}"


def asks(config: RunConfig, offered: Resources) -> Asks:
    """What the run asks for of a cluster that offers this in all.

    A CPU for the learner, or its seat where the cluster has one: no actor takes its place there while it is restarted,
    and a worker node that is lost takes neither learner nor evaluator with it. The configuration wins over both.
    """
    learner, actors, seated = config.learner, config.actors, SEAT in offered
    seat = {SEAT: SEAT_SHARE["learner"]} if seated else {}
    by_default = 1.0 if config.mode == "cluster" and not seated else 0.0
    return Asks(
        _without_zeros(
            {
                "CPU": by_default if learner.cpus is None else learner.cpus,
                "GPU": _gpus(config, offered) if learner.gpus is None else learner.gpus,
                **seat,
                **learner.resources,
            }
        ),
        _without_zeros({"CPU": actors.cpus, **actors.resources}),
        actors.count,
        {SEAT: SEAT_SHARE["evaluator"]} if seated else {},
    )


def _gpus(config: RunConfig, offered: Resources) -> float:
    """GPUs that the learner asks for: one where the cluster has any and the config does not say otherwise."""
    wanted = config.learner.device
    return 1.0 if wanted.startswith("cuda") or (wanted == "auto" and offered.get("GPU", 0) >= 1) else 0.0


def options(needs: Resources) -> dict[str, Any]:
    """The same as the options of a Ray actor."""
    custom = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
    return {"num_cpus": needs.get("CPU", 0), "num_gpus": needs.get("GPU", 0), "resources": custom}


def room_for(asked: Asks, nodes: Sequence[Resources]) -> int:
    """How many of the actors fit beside the learner on these nodes, at the most ``count``; -1 where the learner fits on
    none of them."""
    most = -1
    for seat, node in enumerate(nodes):
        if _times(asked.learner, node) >= 1:
            left = {name: node.get(name, 0) - asked.learner.get(name, 0) for name in node}
            actors = sum(_times(asked.actor, left if at == seat else other) for at, other in enumerate(nodes))
            most = max(most, int(min(actors, asked.count)))
    return most


def check_room(asked: Asks, nodes: Mapping[str, Resources], autoscales: bool) -> str:
    """Empty where the run fits; else what the run then waits for. Raises ConfigError where no node will be added."""
    room = room_for(asked, list(nodes.values()))
    if room == asked.count:
        return ""
    what = f"{asked}; {_cluster(nodes, asked)}"
    if autoscales:
        return f"waiting for the cluster to add nodes: {what}"
    fits = f"the learner and {room} actor(s) fit" if room >= 0 else "no node can take the learner"
    raise ConfigError(
        f"this run does not fit the Ray cluster: {what}: {fits}. Ask for less (--actors.count, --actors.cpus, "
        "--actors.resources, --learner.cpus, --learner.gpus, --learner.resources), add nodes, or give --ray.autoscales "
        "where the cluster adds them when they are asked for"
    )


class RoomWatch:
    """Says what a run that should have started by now waits for: other work may have what it needs."""

    def __init__(self, asked: Asks, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.asked, self._say, self._clock = asked, say, clock
        self._since_s: float | None = None
        self._said = ("", -math.inf)

    def short(
        self, learner: bool, actors: int, free: Callable[[], Resources], queued: Callable[[], Counter[str]]
    ) -> bool:
        """Whether resources are what keeps the learner, if it is missing, and so many actors from starting; says so
        after a while, when something else is short, and again every minute.

        ``free()``: what nobody has taken, over all nodes. ``queued()``: how many of this run's Ray actors have no
        worker process yet, by their class; one that has it has its resources, and is starting.
        """
        now_s = self._clock()
        if not (learner or actors):
            self._since_s = None
            return False
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s < ROOM_AFTER_S:
            return False
        waiting, left = queued(), free()
        learner, actors = learner and waiting[LEARNER] > 0, min(actors, waiting[ACTOR])
        # there may be room for them that Ray has not given them yet
        no_learner = learner and _times(self.asked.learner, left) < 1
        no_actors = bool(actors) and _times(self.asked.actor, left) < 1
        short = [*(["the learner"] if no_learner else []), *([f"{actors} actor(s)"] if no_actors else [])]
        if not short:
            return False
        what = " and ".join(short)
        if what != self._said[0] or now_s - self._said[1] >= SAY_AGAIN_S:
            self._said = what, now_s
            named = shown({name: left.get(name, 0) for name in _names(self.asked)})
            self._say(f"waiting for room for {what}: {self.asked}; free in the whole cluster: {named}")
        return True


def without_worker(actors: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many of the Ray actors that are being created have no worker process yet, by their class: one that queues at
    a node has that node's id already, and an address only once its resources and a process were given to it."""
    return Counter(each["ActorClassName"] for each in actors if not each["Address"]["IPAddress"])


def shown(resources: Resources) -> str:
    """1 CPU, 1 GPU, 0.5 fast_disk."""
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"


def _cluster(nodes: Mapping[str, Resources], asked: Asks) -> str:
    """The nodes by what matters here, alike ones together."""
    kinds: dict[str, list[str]] = {}
    for name, node in nodes.items():
        kinds.setdefault(shown({each: node.get(each, 0) for each in _names(asked)}), []).append(name)
    each = [f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''} with {what}" for what, names in kinds.items()]
    return f"it has {len(nodes)} node(s), {'; '.join(each)}" if nodes else "it has no nodes"


def _names(asked: Asks) -> list[str]:
    return list(dict.fromkeys(["CPU", *asked.learner, *asked.actor]))


def _times(needs: Resources, node: Resources) -> float:
    """How often ``needs`` fits into a node."""
    each = [math.floor((node.get(name, 0) + _SLACK) / amount) for name, amount in needs.items()]
    return min(each, default=math.inf)


def _without_zeros(needs: Mapping[str, float]) -> Resources:
    return {name: amount for name, amount in needs.items() if amount}


def alive_nodes(nodes: Iterable[Mapping[str, Any]]) -> dict[str, Resources]:
    """Resources by address, of what ``ray.nodes()`` says."""
    alive = [node for node in nodes if node["Alive"]]
    return {f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}": node["Resources"] for node in alive}
