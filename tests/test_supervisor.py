"""The supervisor with handles of its own making: calls in flight, restarts, budgets and an orderly end.

A real actor is killed in test_known_answer.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import ray
from fake_ray import Call, FakeRay, Method
from made_metrics import learner_metrics

from actors.config import ActorConfig, EvalConfig
from actors.episodes import Episodes
from actors.evaluator import EvaluationResult
from actors.heartbeat import Heartbeat, Work
from actors.supervision import actor_slot, actor_supervisor, calls, departures, evaluator_supervisor
from actors.supervision.actor_supervisor import ActorSupervisor
from actors.supervision.evaluator_supervisor import POLICY_S, SENT_S, EvaluatorSupervisor
from actors.supervision.rebuilds import RebuildNotices
from actors.supervision.restarts import CrashLoopError, NotNowError, Restarts, cause
from actors.supervision.stall import StallDetector
from replay.chunk import Counters
from replay.chunk_log.protocol import UnusableServer
from replay.metrics import LimiterMetrics, ReplayMetrics

DIED = ray.exceptions.ActorDiedError()


class Handle:
    """An actor's handle, for any of the methods that are called."""

    def __init__(self) -> None:
        self.collect, self.flush, self.screen, self.set_slot_count, self.close, self.holdout = (
            Method() for _ in range(6)
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    made = FakeRay()
    for module in (actor_supervisor, calls, departures, evaluator_supervisor):
        monkeypatch.setattr(module, "ray", made)
    return made


class Herd:
    """A supervisor with its handles in the order they were started."""

    def __init__(self, fake: FakeRay, slots: int = 2, restarts: int = 3) -> None:
        self.started: list[tuple[int, Handle]] = []
        self.said: list[str] = []
        self.failures: list[Exception] = []
        config = ActorConfig(count=slots, restarts=restarts, step_timeout_s=10.0, flush_s=2.0)
        self.supervisor = ActorSupervisor(
            self.start, config, "Bridge-v0", self.said.append, jitter=lambda: 1.0, clock=fake.monotonic
        )

    def start(self, slot: int) -> Handle:
        if self.failures:
            raise self.failures.pop()
        self.started.append((slot, Handle()))
        return self.started[-1][1]


def test_two_calls_are_in_flight(fake: FakeRay) -> None:
    """An answered call is replaced by another, an open one is left alone; tick never waits."""
    herd = Herd(fake)
    (_, first), (_, second) = herd.started
    assert [len(handle.collect.calls) for handle in (first, second)] == [2, 2]
    assert herd.supervisor.alive == 0
    first.collect.calls[0].finish()
    herd.supervisor.tick()
    assert [len(handle.collect.calls) for handle in (first, second)] == [3, 2]
    assert herd.supervisor.alive == 1
    for call in first.collect.calls:
        call.finish()
    herd.supervisor.tick()
    assert len(first.collect.calls) == 5
    assert set(fake.waits) == {0}


def test_a_dead_actor_restarts_after_a_pause(fake: FakeRay) -> None:
    """Its slot only, as a new actor, with the old one killed for good; the text says who died of what."""
    herd = Herd(fake)
    for _, handle in herd.started:
        handle.collect.calls[0].finish()
    herd.supervisor.tick()
    herd.started[1][1].collect.calls[1].finish(DIED)
    herd.supervisor.tick()
    assert herd.supervisor.alive == 1
    assert fake.killed == [herd.started[1][1]]
    assert "actor 1 died" in herd.said[0]
    herd.supervisor.tick()
    assert len(herd.started) == 2
    fake.now += 1
    herd.supervisor.tick()
    assert [slot for slot, _ in herd.started] == [0, 1, 1]
    assert herd.supervisor.restarts == 1
    assert herd.supervisor.alive == 1
    herd.started[2][1].collect.calls[0].finish()
    herd.supervisor.tick()
    assert herd.supervisor.alive == 2


def heartbeat(incarnation: int, rows: int) -> Heartbeat:
    return Heartbeat(Counters(rows=rows), (), Work(), incarnation)


def test_what_a_dead_actor_had_made_is_told_by_incarnation(fake: FakeRay) -> None:
    """As its last heartbeat counted it; of one that never answered nothing is known; the newest few are kept."""
    herd = Herd(fake, restarts=1000)
    herd.started[0][1].collect.calls[0].finish(heartbeat(1, 96))
    herd.supervisor.tick()
    herd.started[0][1].collect.calls[-1].finish(heartbeat(1, 128))
    herd.supervisor.tick()
    assert herd.supervisor.died == {}
    for _, handle in herd.started[:2]:
        handle.collect.calls[-1].finish(DIED)
    herd.supervisor.tick()
    assert herd.supervisor.died == {0: {1: 128}}
    for incarnation in range(2, 20):
        quiet(herd, fake, 60, tick_s=20)
        newest = next(handle for slot, handle in reversed(herd.started) if slot == 0)
        newest.collect.calls[0].finish(heartbeat(incarnation, 10 * incarnation))
        herd.supervisor.tick()
        newest.collect.calls[-1].finish(DIED)
        herd.supervisor.tick()
    assert herd.supervisor.died == {0: {incarnation: 10 * incarnation for incarnation in range(12, 20)}}


def test_both_calls_of_a_dead_actor_are_one_death(fake: FakeRay) -> None:
    herd = Herd(fake, slots=1)
    for call in herd.started[0][1].collect.calls:
        call.finish(DIED)
    herd.supervisor.tick()
    herd.supervisor.tick()
    assert herd.supervisor.restarts == 1
    assert len(herd.said) == 1


def test_a_crash_loop_ends_the_run_loudly(fake: FakeRay) -> None:
    """Beyond its budget, with the reason; the pauses grow meanwhile."""
    herd = Herd(fake, slots=1, restarts=2)
    for pause_s in (0.5, 1.0):
        herd.started[-1][1].collect.calls[0].finish(DIED)
        herd.supervisor.tick()
        count = len(herd.started)
        fake.now += pause_s - 0.01
        herd.supervisor.tick()
        assert len(herd.started) == count
        fake.now += 0.02
        herd.supervisor.tick()
        assert len(herd.started) == count + 1
    herd.started[-1][1].collect.calls[0].finish(ray.exceptions.RayError("the moon"))
    with pytest.raises(CrashLoopError, match=r"actor 0 died 3 times .*actors\.restarts allows 2.*the moon"):
        herd.supervisor.tick()


def test_old_deaths_are_forgotten(fake: FakeRay) -> None:
    """The budget is per ten minutes, the total is not."""
    restarts = Restarts("actor 0", 1, clock=fake.monotonic, jitter=lambda: 1.0)
    for _ in range(5):
        assert restarts.died(DIED) == 0.5
        fake.now += 601
    assert restarts.total == 5
    restarts.died(DIED)
    with pytest.raises(CrashLoopError):
        restarts.died(DIED)


def test_what_they_died_of_is_counted(fake: FakeRay) -> None:
    """Over all slots, by the name of the error's type; what was raised in the actor counts, not Ray's wrapping."""
    herd = Herd(fake)
    for slot, error in ((0, DIED), (1, raised_in_an_actor(ValueError("the moon"))), (1, DIED)):
        next(handle for at, handle in reversed(herd.started) if at == slot).collect.calls[0].finish(error)
        herd.supervisor.tick()
        fake.now += 10
        herd.supervisor.tick()
    assert herd.supervisor.restart_reasons == {"ActorDiedError": 2, "ValueError": 1}


def test_what_has_been_spent_is_handed_on(fake: FakeRay) -> None:
    """Another process's clock counts from elsewhere; the window goes on all the same."""
    spent = Restarts("lane 0", 2, clock=fake.monotonic)
    for _ in range(2):
        spent.died(DIED)
        fake.now += 100
    state = json.loads(json.dumps(spent.state()))
    assert state == {"ages_s": [200, 100], "total": 2, "reasons": {"ActorDiedError": 2}}
    clock = Ticking()
    again = Restarts("lane 0", 2, clock=clock)
    again.restore(state)
    assert again.state() == state
    clock.now += 401
    again.died(DIED)
    assert again.total == 3
    with pytest.raises(CrashLoopError):
        again.died(DIED)


def test_waits_are_spread() -> None:
    """By half in both directions; what died together does not come back together."""
    waits = [Restarts("actor 0", 1).died(DIED) for _ in range(200)]
    assert 0.25 <= min(waits) < 0.3
    assert 0.7 < max(waits) <= 0.75


def quiet(herd: Herd, fake: FakeRay, seconds: float, tick_s: float = 0.25) -> None:
    """Tick for so long while nobody answers."""
    for _ in range(round(seconds / tick_s)):
        fake.now += tick_s
        herd.supervisor.tick()


LIMIT_S = actor_slot.COLLECT_S + 2.0 + 20.0 + 10.0
"""collect's own seconds, flush_s, four calls on the log, step_timeout_s."""


def test_an_actor_that_hangs_is_killed_and_restarted(fake: FakeRay) -> None:
    """Only that one, no sooner than all that it may wait for is over; the text names the environment, the option and
    where it was."""
    herd = Herd(fake, slots=2)
    (_, hangs), (_, works) = herd.started
    hangs.collect.calls[0].finish(Heartbeat(Counters(env_steps=812), ()))
    for _ in range(int(LIMIT_S)):
        works.collect.calls[-1].finish()
        quiet(herd, fake, 1.0)
    assert herd.said == []
    assert fake.killed == []
    works.collect.calls[-1].finish()
    quiet(herd, fake, 1.0)
    assert fake.killed == [hangs]
    (line,) = herd.said
    assert line.startswith("actor 0 died (HangError: no answer for 33 s: Bridge-v0 hangs in a step")
    assert "actors.step_timeout_s (10 s); raise that option" in line
    assert "last heard of at env step 812" in line
    quiet(herd, fake, 1.0)
    assert [slot for slot, _ in herd.started] == [0, 1, 0]
    assert herd.supervisor.restart_reasons == {"HangError": 1}


def test_an_actor_that_answers_late_is_left_alone(fake: FakeRay) -> None:
    """Its silence is counted anew from each answer."""
    herd = Herd(fake, slots=1)
    for _ in range(5):
        quiet(herd, fake, LIMIT_S - 1)
        herd.started[0][1].collect.calls[-1].finish()
        quiet(herd, fake, 0.25)
    assert fake.killed == []


def test_the_first_answer_may_take_longer(fake: FakeRay) -> None:
    """A cluster has to find a node, and 16 environments may take a minute each; also a restarted actor has that time.
    It is told who is still starting; and it is not for ever."""
    herd, start_s = Herd(fake, slots=1, restarts=1), 300 + 16 * 60
    quiet(herd, fake, start_s + LIMIT_S)
    assert fake.killed == []
    assert re.fullmatch(r"actors 0 are still making their 16 environments each, for 3\d s now", herd.said[0])
    assert start_s / 60 < len(herd.said) < start_s / 25
    quiet(herd, fake, 2)
    assert len(fake.killed) == 1
    assert "never heard of" in herd.said[-1]
    quiet(herd, fake, start_s + LIMIT_S - 2)
    assert len(fake.killed) == 1


def test_a_driver_that_was_stopped_blames_nobody(fake: FakeRay) -> None:
    """An hour between two ticks is this process's own, whatever the actors did; the answers may not be in yet."""
    herd = Herd(fake, slots=1)
    herd.started[0][1].collect.calls[0].finish()
    herd.supervisor.tick()
    for _ in range(5):
        fake.now += 3600
        herd.supervisor.tick()
    assert fake.killed == []
    quiet(herd, fake, LIMIT_S)
    assert len(fake.killed) == 1


def test_rebuilt_environments_are_said_and_counted(fake: FakeRay) -> None:
    herd = Herd(fake)
    lines = ("lane 3: RuntimeError: the bridge is down, after env step 812 of it", "lane 4: OSError: gone, after ...")
    herd.started[1][1].collect.calls[0].finish(Heartbeat(Counters(), lines))
    herd.supervisor.tick()
    assert herd.said == [f"actor 1: its environment was made anew: {line}" for line in lines]
    assert herd.supervisor.rebuilds == 2
    assert herd.supervisor.restarts == 0


def test_a_flood_of_rebuilt_environments_does_not_fill_the_terminal() -> None:
    """Five lines a minute, one of them about those that were not said."""
    said: list[str] = []
    clock = Ticking()
    rebuilt = RebuildNotices(said.append, clock)
    for n in range(1000):
        rebuilt.record("actor 2", (f"lane {n}",))
        rebuilt.catch_up()
    text = "actor 2: its environment was made anew: lane"
    assert said == [f"{text} {n}" for n in range(5)]
    clock.now += 61
    rebuilt.catch_up()
    rebuilt.record("actor 2", ("lane 7",))
    rebuilt.catch_up()
    assert said[5:] == ["995 more environments were made anew meanwhile", f"{text} 7"]
    assert rebuilt.total == 1001


def test_a_server_that_is_away_delays_a_restart(fake: FakeRay) -> None:
    """The next incarnation's number depends on it; that is no death of the actor's."""
    herd = Herd(fake, slots=1, restarts=1)
    herd.started[0][1].collect.calls[0].finish(DIED)
    herd.supervisor.tick()
    herd.failures = [NotNowError("frozen")] * 20
    for _ in range(100):
        fake.now += 0.5
        herd.supervisor.tick()
    assert len(herd.started) == 2
    assert herd.supervisor.restarts == 1
    herd.started[1][1].collect.calls[0].finish()
    herd.supervisor.tick()
    assert herd.supervisor.alive == 1


def test_a_server_that_refuses_ends_the_run(fake: FakeRay) -> None:
    herd = Herd(fake, slots=1)
    herd.started[0][1].collect.calls[0].finish(DIED)
    herd.supervisor.tick()
    fake.now += 10
    herd.failures = [UnusableServer("NOAUTH")]
    with pytest.raises(UnusableServer):
        herd.supervisor.tick()


def test_an_actor_that_raises_closes_its_environments_before_it_ends(fake: FakeRay) -> None:
    """Its process lives; the one that takes its place does not wait for that."""
    herd = Herd(fake, slots=1)
    raises = herd.started[0][1]
    raises.collect.calls[0].finish(raised_in_an_actor(ValueError("a reward of nan")))
    herd.supervisor.tick()
    assert len(raises.close.calls) == 1
    assert fake.killed == []
    fake.now += 1
    herd.supervisor.tick()
    assert len(herd.started) == 2
    raises.close.calls[0].finish(["Bridge-v0: close() raised OSError: gone"])
    herd.supervisor.tick()
    assert fake.killed == [raises]
    assert herd.said[1:] == ["actor 0: Bridge-v0: close() raised OSError: gone"]


def test_stop_flushes_the_living_and_kills_all(fake: FakeRay) -> None:
    """Within one deadline; the dead are not asked, no new calls are made."""
    herd = Herd(fake)
    herd.started[1][1].collect.calls[0].finish(DIED)
    herd.supervisor.tick()
    calls = len(herd.started[0][1].collect.calls)
    fake.waits.clear()
    herd.supervisor.stop(8.0)
    assert len(herd.started[0][1].flush.calls) == 1
    assert herd.started[0][1].flush.calls[0].argument <= 8
    assert herd.started[1][1].flush.calls == []
    assert fake.waits == [8.0]
    assert fake.killed == [herd.started[1][1]]
    assert [len(handle.close.calls) for _, handle in herd.started] == [1, 0]
    herd.started[0][1].close.calls[0].finish(["Bridge-v0: close() raised OSError: gone"])
    herd.supervisor.end(2.0)
    assert fake.waits[:2] == [8.0, 2.0]
    assert herd.said[-1] == "actor 0: Bridge-v0: close() raised OSError: gone"
    assert set(fake.killed) == {handle for _, handle in herd.started}
    assert len(herd.started[0][1].collect.calls) == calls


class Screens:
    """A supervisor of evaluators with those that it started, and candidates named by number."""

    def __init__(self, fake: FakeRay, share: float = 0.1, restarts: int = 1) -> None:
        self.started: list[Handle] = []
        self.failures: list[Exception] = []
        self.candidates, self.said = 0, list[str]()
        config = EvalConfig(cpu_share=share, timeout_s=60)
        self.screening = EvaluatorSupervisor(
            self.start, self.candidate, config, restarts, self.said.append, clock=fake.monotonic
        )

    def start(self) -> Handle:
        if self.failures:
            raise self.failures.pop()
        self.started.append(Handle())
        return self.started[-1]

    def candidate(self) -> Call:
        self.candidates += 1
        policy = Call(f"policy {self.candidates}")
        policy.finish(policy.argument)
        return policy

    @property
    def calls(self) -> list[Call]:
        return self.started[-1].screen.calls

    @property
    def played(self) -> list[str]:
        return [call.argument.answer for call in self.calls]

    def judged(self) -> tuple[EvaluationResult, str]:
        """A verdict that is due, and the policy it is about."""
        result = self.screening.tick(learning=True)
        assert result is not None
        return result[0], result[1].answer


def verdict(seconds: float, *, confirmed: bool = False, confirming: float = 0.0) -> EvaluationResult:
    episodes = Episodes(np.zeros(2), np.ones(2, np.int64))
    return EvaluationResult(1, 1, episodes, episodes if confirmed else None, False, seconds, confirming)


def test_nothing_is_screened_before_something_was_learned(fake: FakeRay) -> None:
    tested = Screens(fake)
    assert tested.screening.tick(learning=False) is None
    assert tested.calls == []
    tested.screening.tick(learning=True)
    tested.screening.tick(learning=True)
    assert tested.played == ["policy 1"]


def test_screening_keeps_to_its_share(fake: FakeRay) -> None:
    """A screen of 2 CPU seconds at a share of 10 %: the next starts 18 s later."""
    tested = Screens(fake, share=0.1)
    tested.screening.tick(learning=True)
    given = verdict(2.0)
    fake.now += 2.0
    tested.calls[0].finish(given)
    assert tested.judged() == (given, "policy 1")
    fake.now += 17.9
    assert tested.screening.tick(learning=True) is None
    assert len(tested.calls) == 1
    fake.now += 0.2
    tested.screening.tick(learning=True)
    assert tested.played == ["policy 1", "policy 2"]


def test_confirmations_are_paid_for_too(fake: FakeRay) -> None:
    """The newest one is taken in advance: after the first one of 3 s the next screen waits for the screen's share
    alone; after the second for the first one's, too. So the share is held over the run, but for one confirmation."""
    tested, asked, spent = Screens(fake, share=0.1), list[float](), 0.0
    for _ in range(8):
        while tested.screening.tick(learning=True) is None and not (tested.calls and not tested.calls[-1].done):
            fake.now += 0.1
        asked.append(fake.now)
        tested.calls[-1].finish(verdict(3.5, confirmed=True, confirming=3.0))
        tested.judged()
        spent += 3.5
    assert np.diff(asked).round() == pytest.approx([5] + [35] * 6, abs=1.1)
    assert spent - 3.5 - 3.0 == pytest.approx(0.1 * (fake.now - asked[0]), abs=0.1), "the last one is yet to be paid"


def test_a_verdict_comes_with_the_policy_it_is_about(fake: FakeRay) -> None:
    """The next candidate may be asked for at once: it must not be taken for the judged one."""
    tested = Screens(fake, share=1.0)
    for number in (1, 2, 3):
        tested.screening.tick(learning=True)
        given = verdict(5.0, confirmed=True)
        fake.now += 5.0
        tested.calls[-1].finish(given)
        assert tested.judged() == (given, f"policy {number}")


def test_a_dead_evaluator_restarts_within_its_budget_and_then_seldom(fake: FakeRay) -> None:
    """A run does not end because it cannot be evaluated; it says so, and tries again ten minutes later."""
    tested = Screens(fake, restarts=1)
    tested.screening.tick(learning=True)
    tested.calls[0].finish(DIED)
    assert tested.screening.tick(learning=True) is None
    assert tested.screening.restarts == 1
    fake.now += 10
    tested.failures = [NotNowError("the disk is full")]
    tested.screening.tick(learning=True)
    assert len(tested.started) == 1, "its number cannot be written down"
    fake.now += 1
    tested.screening.tick(learning=True)
    assert len(tested.started) == 2
    assert tested.screening.failing == ""
    tested.calls[0].finish(DIED)
    assert tested.screening.tick(learning=True) is None
    assert "the evaluator died 2 times" in tested.screening.failing
    assert "the run goes on, and is evaluated again in 10 minutes" in tested.said[-1]
    fake.now += 599
    tested.screening.tick(learning=True)
    assert len(tested.started) == 2
    fake.now += 2
    tested.screening.tick(learning=True)
    assert len(tested.started) == 3
    tested.calls[0].finish(verdict(0.0))
    assert tested.screening.tick(learning=True) is not None
    assert (tested.screening.failing, tested.screening.restarts) == ("", 2)


def test_an_evaluation_that_hangs_is_given_up(fake: FakeRay) -> None:
    """Its evaluator is killed and another one plays the next policy; one that hangs again is the last."""
    tested = Screens(fake, restarts=1)
    tested.screening.tick(learning=True)
    fake.now += 60
    assert tested.screening.tick(learning=True) is None
    assert fake.killed == []
    fake.now += 1
    assert tested.screening.tick(learning=True) is None
    assert fake.killed == tested.started
    assert "no verdict for 60 s (eval.timeout_s); raise that option, or lower eval.screen_episodes" in tested.said[0]
    fake.now += 1
    tested.screening.tick(learning=True)
    assert (len(tested.started), tested.played) == (2, ["policy 2"])
    fake.now += 61
    assert tested.screening.tick(learning=True) is None
    assert "2 times in a row: the run goes on and is not evaluated any more" in tested.said[-1]
    fake.now += 1e6
    assert tested.screening.tick(learning=True) is None
    assert (len(tested.started), "no verdict" in tested.screening.failing) == (2, True)


def test_environments_that_were_made_anew_in_an_evaluation_are_told_and_counted(fake: FakeRay) -> None:
    tested = Screens(fake)
    tested.screening.tick(learning=True)
    tested.calls[0].finish(verdict(0.0)._replace(remade=("environment 3: OSError: gone",)))
    tested.screening.tick(learning=True)
    assert tested.said == ["the evaluator: its environment was made anew: environment 3: OSError: gone"]
    assert tested.screening.rebuilds == 1


def test_the_evaluator_stops_what_it_plays_and_closes(fake: FakeRay) -> None:
    tested = Screens(fake)
    tested.screening.tick(learning=True)
    tested.screening.stop()
    assert fake.cancelled == tested.calls
    assert len(tested.started[0].close.calls) == 1
    assert fake.killed == []
    tested.screening.end(1.0)
    assert fake.killed == tested.started
    assert tested.said == ["the evaluator had no time to close its environments"]


@pytest.mark.parametrize("end", ["holdout", "stop"])
@pytest.mark.parametrize("owed", [True, False])
def test_no_call_is_cancelled_before_ray_has_sent_it(fake: FakeRay, end: str, owed: bool) -> None:
    """Its actor would run nothing that comes after it: neither the hold-out nor close()."""
    tested = Screens(fake)
    policy = Call("policy")
    tested.screening._candidate = lambda: policy
    tested.screening.tick(learning=True)
    (call,) = tested.calls
    if not owed:
        policy.finish("policy")
    fake.waits.clear()
    if end == "holdout":
        assert tested.screening.holdout(b"best", 8.0) is tested.started[0].holdout.calls[0]
    tested.screening.stop()
    assert fake.waits == ([POLICY_S] if owed else [POLICY_S, SENT_S])
    assert fake.cancelled == ([] if owed else [call])
    assert len(tested.started[0].close.calls) == 1


def test_a_screen_that_is_over_is_not_cancelled(fake: FakeRay) -> None:
    tested = Screens(fake)
    tested.screening.tick(learning=True)
    tested.calls[0].finish(verdict(1.0))
    tested.screening.stop()
    assert fake.cancelled == []


def test_a_policy_that_a_dead_learner_owes_is_not_the_evaluators_death(fake: FakeRay) -> None:
    """Its call fails with the learner's error; the evaluator goes on with the next policy."""
    tested = Screens(fake, restarts=0)
    policy = Call(None)
    tested.screening._candidate = lambda: policy
    tested.screening.tick(learning=True)
    for call in (policy, tested.calls[0]):
        call.finish(DIED)
    assert tested.screening.tick(learning=False) is None
    assert (tested.screening.restarts, fake.killed, tested.said) == (0, [], [])


def raised_in_an_actor(error: Exception) -> ray.exceptions.RayTaskError:
    return ray.exceptions.RayTaskError("collect", "Traceback ...\n  many lines", error)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (raised_in_an_actor(ValueError("the moon\nand more")), "ValueError: the moon"),
        (raised_in_an_actor(KeyError()), "KeyError: KeyError"),
    ],
    ids=["message", "none"],
)
def test_the_reason_of_a_death_is_one_line(error: Exception, text: str) -> None:
    """The error that was raised in the actor, not Ray's wrapping."""
    assert cause(error) == text


class Ticking:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def reported(**values: int) -> tuple[ReplayMetrics, LimiterMetrics]:
    metrics = learner_metrics(**values)
    return metrics.replay, metrics.limiter


@pytest.mark.parametrize(
    ("metrics", "too_long"),
    [
        ({"env_steps": 7, "credit_rows": 16}, True),
        ({"env_steps": 7, "credit_rows": 0}, False),
        ({"env_steps": 7, "credit_rows": 16, "servers_down": 1}, False),
    ],
    ids=["nothing comes in", "nobody has credit", "a server is away"],
)
def test_silence_is_noticed_and_nothing_else_is(metrics: dict[str, int], too_long: bool) -> None:
    """The learner reports four times a second; after 11 s of the same metrics, where 10 are allowed."""
    clock = Ticking()
    detector = StallDetector(10.0, clock)
    assert not detector.stalled(*reported(env_steps=7, credit_rows=16))
    for _ in range(44):
        clock.now += 0.25
        stalled = detector.stalled(*reported(**metrics))
        assert not stalled or clock.now > 110.0
    assert stalled is too_long


def test_silence_of_another_learner_is_counted_anew() -> None:
    """One that was restarted goes on with the same metrics; its start is not the actors' silence."""
    clock = Ticking()
    detector, metrics = StallDetector(10.0, clock), reported(env_steps=7, credit_rows=16)
    assert not detector.stalled(*metrics)
    clock.now += 60.0
    detector.reset()
    assert not detector.stalled(*metrics)
    clock.now += 10.5
    assert detector.stalled(*metrics)


def test_silence_is_counted_anew_after_each_env_step() -> None:
    clock = Ticking()
    detector = StallDetector(10.0, clock)
    for env_steps in range(5):
        clock.now += 9.0
        assert not detector.stalled(*reported(env_steps=env_steps, credit_rows=16))
    clock.now += 10.5
    assert detector.stalled(*reported(env_steps=4, credit_rows=16))


# -- another number of slots while they work


LADDER = {slot: (0.4 / (slot + 1),) for slot in range(3)}


def answer_places(herd: Herd, slots: int) -> None:
    """The newest actor of each slot says what it explores with."""
    for slot in range(slots):
        newest = next(handle for at, handle in reversed(herd.started) if at == slot)
        if newest.set_slot_count.calls and not newest.set_slot_count.calls[-1].done:
            newest.set_slot_count.calls[-1].finish(LADDER[slot])


def test_more_slots_start_and_all_move_on_the_ladder(fake: FakeRay) -> None:
    """The old ones are told of the new number, the new ones start under it; it is settled when all have said where they
    are."""
    herd = Herd(fake, slots=1)
    herd.supervisor.tick()
    assert herd.started[0][1].set_slot_count.calls == [], "nothing is told where nothing changes"
    herd.supervisor.scale(3)
    assert herd.supervisor.ladder_if_scaled() is None
    herd.supervisor.tick()
    assert [slot for slot, _ in herd.started] == [0, 1, 2]
    assert "actor 2 has not answered yet" in herd.supervisor.status_line()
    assert herd.supervisor.starting == 3
    herd.supervisor.tick()
    assert [call.argument for _, handle in herd.started for call in handle.set_slot_count.calls] == [3, 3, 3]
    answer_places(herd, 2)
    assert herd.supervisor.ladder_if_scaled() is None
    answer_places(herd, 3)
    assert herd.supervisor.ladder_if_scaled() == LADDER


def test_slots_that_are_no_more_flush_and_end(fake: FakeRay) -> None:
    """No further call of them, no restart; what they did still counts."""
    herd = Herd(fake, slots=3)
    for _, handle in herd.started:
        handle.collect.calls[0].finish(Heartbeat(Counters(), (), Work(seconds=5.0, fetches=1)))
    herd.started[2][1].collect.calls[1].finish(DIED)
    herd.supervisor.tick()
    herd.supervisor.scale(1)
    _, (_, leaves), (_, dead) = herd.started
    assert len(leaves.flush.calls) == 1
    assert dead.flush.calls == []
    leaves.collect.calls[-1].finish(DIED)
    herd.supervisor.tick()
    answer_places(herd, 1)
    assert herd.supervisor.ladder_if_scaled() is None, "it is still flushing"
    leaves.flush.calls[0].finish(True)
    herd.supervisor.tick()
    assert herd.supervisor.ladder_if_scaled() is None, "it is still closing its environments"
    leaves.close.calls[0].finish([])
    herd.supervisor.tick()
    assert herd.supervisor.ladder_if_scaled() == {0: LADDER[0]}
    assert fake.killed == [dead, leaves]
    assert herd.said[-1] == "actor 1 has left"
    fake.now += 100
    herd.supervisor.tick()
    assert len(herd.started) == 3
    assert (herd.supervisor.alive, herd.supervisor.restarts) == (1, 1)
    assert herd.supervisor.restart_reasons == {"ActorDiedError": 1}
    assert herd.supervisor.work == Work(seconds=15.0, fetches=3)


def test_one_that_does_not_flush_is_ended_all_the_same(fake: FakeRay) -> None:
    """And what it had made is told, since it may not have been stored."""
    herd = Herd(fake, slots=2)
    herd.started[1][1].collect.calls[0].finish(heartbeat(3, 64))
    herd.supervisor.tick()
    herd.supervisor.scale(1)
    leaves = herd.started[1][1]
    fake.now += 19
    herd.supervisor.tick()
    assert fake.killed == []
    fake.now += 2
    herd.supervisor.tick()
    assert fake.killed == [leaves]
    assert herd.said == [
        "actor 1 has left; what it had in hand is lost",
        "actor 1 had no time to close its environments",
    ]
    assert herd.supervisor.died == {1: {3: 64}}


def test_one_that_dies_meanwhile_is_placed_when_it_is_back(fake: FakeRay) -> None:
    herd = Herd(fake, slots=2)
    herd.supervisor.scale(2)
    herd.supervisor.tick()
    for _, handle in herd.started:
        handle.set_slot_count.calls[0].finish(DIED)
        handle.collect.calls[0].finish(DIED)
    herd.supervisor.tick()
    assert herd.supervisor.ladder_if_scaled() is None
    fake.now += 1
    for _ in range(2):
        herd.supervisor.tick()
    answer_places(herd, 2)
    assert herd.supervisor.ladder_if_scaled() == {0: LADDER[0], 1: LADDER[1]}


def test_a_new_slot_that_cannot_start_yet_is_tried_again(fake: FakeRay) -> None:
    herd = Herd(fake, slots=1)
    herd.supervisor.scale(2)
    herd.failures = [NotNowError("the server is away")]
    herd.supervisor.tick()
    assert len(herd.started) == 1
    assert "actor 1 is about to start" in herd.supervisor.status_line()
    herd.supervisor.stop(1.0)  # a slot without an actor has none to end
    fake.now += 1
    herd.supervisor.tick()
    assert [slot for slot, _ in herd.started] == [0, 1]


def test_the_end_waits_for_those_who_are_leaving(fake: FakeRay) -> None:
    herd = Herd(fake, slots=2)
    herd.supervisor.scale(1)
    herd.supervisor.stop(4.0)
    assert fake.killed == []
    herd.supervisor.end(1.0)
    assert len(fake.killed) == 2
    assert set(fake.killed) == {handle for _, handle in herd.started}


def test_those_without_room_are_not_taken_for_hanging(fake: FakeRay) -> None:
    """The cluster may have a node for them in an hour."""
    herd = Herd(fake, slots=1)
    for _ in range(400):
        herd.supervisor.reset_silence()
        quiet(herd, fake, 2.0, tick_s=1.0)
    assert (herd.said, herd.supervisor.starting) == ([], 1)
