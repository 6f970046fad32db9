"""The learner's supervisor with handles of its own making. A real learner is killed in test_survive."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from fake_ray import Call, FakeRay, Method

from actors.supervision import calls, departures
from actors.supervision.restarts import CrashLoopError, NotNowError, Restarts
from deploy.config.errors import RunFailedError
from deploy.sessions import learner_supervisor
from deploy.sessions.learner_supervisor import READY_S, LearnerSupervisor
from learner.report import Diverged, Resumed

DIED = ray.exceptions.ActorDiedError()
RESUMED = Resumed(7, 500, {0: 3})


class Handle:
    """A learner's handle."""

    def __init__(self) -> None:
        self.train, self.resumed = Method(), Method()


class Learners:
    """A supervisor with the learners that it started, in their order."""

    def __init__(self, fake: FakeRay, restarts: int = 2) -> None:
        self.fake, self.started, self.notices = fake, list[Handle](), list[str]()
        self.blocked = 0
        budget = Restarts("the learner", restarts, fake.monotonic, lambda: 1.0)
        self.supervisor = LearnerSupervisor(self.start, budget, self.notices.append)

    def start(self) -> Handle:
        if self.blocked:
            self.blocked -= 1
            raise NotNowError("the disk is full")
        self.started.append(Handle())
        return self.started[-1]

    @property
    def slices(self) -> list[Call]:
        return self.started[-1].train.calls

    def tick(self) -> Any:
        return self.supervisor.tick({}, {})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    made = FakeRay()
    for module in (calls, departures, learner_supervisor):
        monkeypatch.setattr(module, "ray", made)
    monkeypatch.setattr(learner_supervisor, "time", made)
    return made


def test_two_slices_are_in_flight_and_the_first_report_has_where_it_goes_on(fake: FakeRay) -> None:
    tested = Learners(fake)
    assert (len(tested.slices), tested.supervisor.starting) == (2, True)
    tested.started[0].resumed.calls[0].finish(RESUMED)
    tested.slices[0].finish("first")
    assert tested.tick() == ("first", RESUMED)
    assert (len(tested.slices), tested.supervisor.starting) == (3, False)
    for call in tested.slices:
        call.finish("next")
    assert tested.tick() == ("next", None), "one report a tick: each has notices of its own"
    assert len(tested.slices) == 4
    assert len(tested.started[0].resumed.calls) == 1


def test_a_dead_learner_restarts_after_its_pause(fake: FakeRay) -> None:
    """Its calls are forgotten; the one that takes its place reports where it goes on; what cannot start is tried
    again."""
    tested = Learners(fake)
    tested.started[0].resumed.calls[0].finish(None)
    tested.slices[0].finish("report")
    tested.tick()
    for call in tested.slices:
        if not call.done:
            call.finish(DIED)
    assert tested.tick() is None
    assert (fake.killed, tested.supervisor.handle, tested.supervisor.has_process) == (tested.started, None, False)
    assert tested.notices[0].startswith("the learner died (ActorDiedError")
    assert tested.notices[0].endswith("; it restarts from its newest checkpoint in 0.5 s")
    tested.blocked = 1
    for _ in range(6):  # a pause of 0.5 s, and again after the start that was not possible
        assert tested.tick() is None
    assert len(tested.started) == 2
    tested.started[1].resumed.calls[0].finish(RESUMED)
    tested.slices[0].finish("again")
    assert tested.tick() == ("again", RESUMED)
    assert tested.supervisor.restarts.reasons == {"ActorDiedError": 1}


def test_a_learner_that_does_not_answer_is_killed(fake: FakeRay) -> None:
    """After so many seconds of ticks; a report, or a cluster without room, begins the count anew."""
    tested = Learners(fake)

    def wait(seconds: float) -> None:
        for _ in range(round(seconds)):
            fake.now += 1.0
            assert tested.tick() is None

    wait(READY_S - 1)
    tested.supervisor.reset_silence()
    wait(READY_S - 1)
    tested.started[0].resumed.calls[0].finish(None)
    tested.slices[0].finish("report")
    assert tested.tick() == ("report", None)
    wait(READY_S)
    assert fake.killed == []
    wait(1)
    assert fake.killed == tested.started
    assert "RuntimeError: it has not answered for 120 s" in tested.notices[0]


def test_what_another_learner_would_meet_too_ends_the_run(fake: FakeRay) -> None:
    tested = Learners(fake)
    raised = ray.exceptions.RayTaskError("train", "Traceback ...", Diverged("the loss"))  # type: ignore[no-untyped-call]
    tested.slices[0].finish(raised)
    with pytest.raises(RunFailedError, match="the learner failed: Diverged: the loss"):
        tested.tick()


def test_a_crash_loop_ends_the_run(fake: FakeRay) -> None:
    tested = Learners(fake, restarts=0)
    tested.slices[0].finish(DIED)
    with pytest.raises(CrashLoopError, match="the learner died 1 times"):
        tested.tick()


@pytest.mark.parametrize("answer", [RESUMED, None, DIED], ids=["goes on", "begins anew", "dead"])
def test_the_start_of_a_resumed_run_waits_for_its_learner(fake: FakeRay, answer: Any) -> None:
    """Where it cannot go on nothing is tried again: the run's start has failed."""
    tested = Learners(fake)
    tested.started[0].resumed.calls[0].finish(answer)
    if answer is DIED:
        with pytest.raises(RunFailedError, match="the learner failed: ActorDiedError"):
            tested.supervisor.wait_until_resumed(lambda: False)
        return
    assert tested.supervisor.wait_until_resumed(lambda: False) == answer
    assert not tested.supervisor.starting
    tested.slices[0].finish("report")
    assert tested.tick() == ("report", None)
