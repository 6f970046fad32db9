"""What a run asks a cluster for, and whether it fits: hand-worked clusters, an oracle, and the words for it."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.cluster.placement import (
    LEARNER_RESOURCE,
    CapacityWatch,
    ResourceRequest,
    Resources,
    actors_that_fit,
    alive_nodes,
    check_capacity,
    options,
    resource_request,
    without_worker,
)
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig


def config(mode: str = "cluster", **values: Any) -> RunConfig:
    return RunConfig.model_validate({"mode": mode, **values})


def test_what_is_asked_for() -> None:
    """One machine: nothing. A cluster: a CPU for the learner, and a GPU where there is one; options win over both."""
    assert resource_request(config("local"), {"CPU": 2}) == ResourceRequest({}, {}, 2)
    assert resource_request(config(), {"GPU": 1}) == ResourceRequest({"CPU": 1, "GPU": 1}, {}, 2)
    given_ones = config(
        learner={"cpus": 2, "gpus": 0.5, "resources": {"big": 1}},
        actors={"count": 3, "cpus": 1, "resources": {"simulator": 0.25}},
    )
    request = resource_request(given_ones, {"GPU": 1})
    assert request == ResourceRequest({"CPU": 2, "GPU": 0.5, "big": 1}, {"CPU": 1, "simulator": 0.25}, 3)
    assert options(request.learner) == {"num_cpus": 2, "num_gpus": 0.5, "resources": {"big": 1}}
    assert resource_request(config(learner={"gpus": 0}), {"GPU": 1}).learner == {"CPU": 1}


def test_where_the_cluster_has_a_seat_for_the_learner_it_asks_for_that() -> None:
    """Instead of a CPU, and the evaluator with it; what the configuration says comes on top."""
    offered = {"CPU": 8, LEARNER_RESOURCE: 1}
    seated = ResourceRequest({LEARNER_RESOURCE: 0.9}, {}, 2, {LEARNER_RESOURCE: 0.1})
    assert resource_request(config(), offered) == seated
    assert resource_request(config(learner={"cpus": 3}), offered).learner == {"CPU": 3, LEARNER_RESOURCE: 0.9}
    assert check_capacity(seated, {"a": {"CPU": 4}, "b": {LEARNER_RESOURCE: 1}}, autoscales=False) == ""


LEARNER, ACTOR = {"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "room"),
    [
        ([{"CPU": 4}, {"CPU": 4, "GPU": 1}], 7),  # 4 and, beside the learner, 3
        ([{"CPU": 8}], -1),  # no GPU anywhere
        ([{"CPU": 1, "GPU": 1}], 0),  # the learner has it all
        ([{"CPU": 1.5, "GPU": 1}, {"CPU": 1.5}], 1),  # halves of two nodes are no CPU
        ([{"CPU": 4, "GPU": 1}, {"CPU": 100}], 16),  # no more than are wanted
        ([], -1),
    ],
)
def test_how_many_fit(nodes: list[Resources], room: int) -> None:
    assert actors_that_fit(ResourceRequest(LEARNER, ACTOR, 16), nodes) == room


def test_the_learner_takes_the_seat_that_costs_least() -> None:
    """On the GPU's own node it takes a CPU, of which the actors need two: 1 + 2 fit; on the other it would be 2 + 1."""
    assert actors_that_fit(ResourceRequest({"CPU": 1}, {"CPU": 2}, 9), [{"CPU": 3}, {"CPU": 4}]) == 3


def test_what_asks_for_nothing_always_fits() -> None:
    assert actors_that_fit(ResourceRequest({}, {}, 64), [{"CPU": 2}]) == 64


amounts = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])
kinds = st.fixed_dictionaries({"CPU": amounts, "X": amounts})


@settings(max_examples=200, deadline=None)
@given(kinds, kinds.filter(lambda needs: any(needs.values())), st.lists(kinds, max_size=3), st.integers(1, 4))
def test_an_oracle_that_tries_every_placement_agrees(
    learner: Resources, actor: Resources, nodes: list[Resources], count: int
) -> None:
    def fits(actors: int) -> bool:
        for seats in product(range(len(nodes)), repeat=actors + 1):
            used = [dict.fromkeys(("CPU", "X"), 0.0) for _ in nodes]
            for seat, needs in zip(seats, [learner, *[actor] * actors], strict=True):
                for name, amount in needs.items():
                    used[seat][name] += amount
            if all(taken[name] <= node[name] for taken, node in zip(used, nodes, strict=True) for name in taken):
                return True
        return False

    best = max((actors for actors in range(count + 1) if fits(actors)), default=-1)
    some_learner, some_actor = ({name: n for name, n in needs.items() if n} for needs in (learner, actor))
    assert actors_that_fit(ResourceRequest(some_learner, some_actor, count), nodes) == best


def test_what_can_never_fit_is_refused_with_both_sides_numbers() -> None:
    nodes = {"10.0.0.1": {"CPU": 4.0}, "10.0.0.2": {"CPU": 2.0, "GPU": 1.0}, "10.0.0.3": {"CPU": 4.0}}
    with pytest.raises(ConfigError) as refused:
        check_capacity(ResourceRequest(LEARNER, ACTOR, 16), nodes, autoscales=False)
    assert str(refused.value).startswith(
        "this run does not fit the Ray cluster: the learner asks for 1 CPU, 1 GPU, each of 16 actors for 1 CPU; it has "
        "3 node(s), 10.0.0.1, 10.0.0.3 with 4 CPU, 0 GPU; 10.0.0.2 with 2 CPU, 1 GPU: the learner and 9 actor(s) fit."
    )
    with pytest.raises(ConfigError, match="no node can take the learner"):
        check_capacity(ResourceRequest({"GPU": 2}, ACTOR, 1), nodes, autoscales=False)


def test_what_will_fit_once_nodes_are_added_is_waited_for() -> None:
    assert check_capacity(ResourceRequest(LEARNER, ACTOR, 1), {"a": {"CPU": 2, "GPU": 1}}, autoscales=False) == ""
    told = check_capacity(ResourceRequest(LEARNER, ACTOR, 2), {"a": {"CPU": 2, "GPU": 1}}, autoscales=True)
    assert told.startswith("waiting for the cluster to add nodes: the learner asks for 1 CPU, 1 GPU")


def test_a_run_that_waits_for_room_says_so() -> None:
    """After a while, with what is asked for and what is free; again after a minute; and not where there is room, since
    then it is starting."""
    now, said, free = [0.0], list[str](), {"CPU": 0.5, "GPU": 1.0}
    watch = CapacityWatch(ResourceRequest(LEARNER, ACTOR, 3), said.append, clock=lambda: now[0])

    def at(seconds: float, learner: bool = False, actors: int = 2) -> bool:
        now[0] = seconds
        queued = Counter({"LearnerWorker": int(learner), "ActorWorker": actors, "Another": 7})
        return watch.short(learner, actors, lambda: free, lambda: queued)

    assert [at(second) for second in (0, 5, 9, 30)] == [False, False, True, True]
    assert said == [
        "waiting for room for 2 actor(s): the learner asks for 1 CPU, 1 GPU, each of 3 actors for 1 CPU; free in the "
        "whole cluster: 0.5 CPU, 1 GPU"
    ]
    assert at(70, learner=True)
    assert said[1].startswith("waiting for room for the learner and 2 actor(s)")
    free |= {"CPU": 1.0, "GPU": 0.0}
    assert at(71, learner=True)
    assert said[2].startswith("waiting for room for the learner: "), (
        "actors have room, and what is short is said at once"
    )
    assert at(130, learner=True)
    assert len(said) == 3
    assert at(131, learner=True)
    assert said[3] == said[2]
    free["GPU"] = 1.0
    assert not at(200, learner=True)
    assert not at(201, actors=0)
    free["CPU"] = 0.0
    assert not at(202), "what is missing now has only begun to start"
    assert len(said) == 4


def test_what_has_its_worker_is_starting_and_waits_for_no_room() -> None:
    """What is free is what the run itself has left: the learner has taken the cluster's last CPU, and is starting."""
    now, said, queued = [0.0], list[str](), Counter[str]()
    watch = CapacityWatch(ResourceRequest({"CPU": 1}, {"CPU": 1}, 3), said.append, clock=lambda: now[0])

    def at(seconds: float) -> bool:
        now[0] = seconds
        return watch.short(True, 3, lambda: {"CPU": 0.0}, lambda: queued)

    assert [at(second) for second in (0, 9, 60, 200)] == [False] * 4
    assert said == []
    queued["ActorWorker"] = 1
    assert at(201)
    assert said[0].startswith("waiting for room for 1 actor(s): ")


def test_only_what_has_no_worker_is_queued() -> None:
    """Where it queues is a node, too."""
    made = [("ActorWorker", "10.0.0.1"), ("ActorWorker", ""), ("LearnerWorker", ""), ("ActorWorker", "")]
    actors = [{"ActorClassName": name, "Address": {"NodeID": "ab" * 28, "IPAddress": ip}} for name, ip in made]
    assert without_worker(actors) == {"ActorWorker": 2, "LearnerWorker": 1}


def test_dead_nodes_do_not_count() -> None:
    nodes = [
        {"Alive": alive, "NodeManagerAddress": "10.0.0.1", "NodeID": "abcdef0123", "Resources": {"CPU": 1.0}}
        for alive in (True, False)
    ]
    assert alive_nodes(nodes) == {"10.0.0.1/abcdef": {"CPU": 1.0}}
