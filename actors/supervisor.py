"""Keeps the slots' actors at work: two calls in flight each, restarts within a budget, an orderly end.

Ray restarts nothing here (max_restarts=0): a restarted actor needs a new incarnation, which only the run directory
hands out.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import ray

from actors.closing import CLOSE_S
from actors.config import ActorConfig, EvalConfig
from actors.envs import TELL_EVERY_S
from actors.evaluator import Verdict
from actors.restarts import BACKOFF_S, NotNowError, Rebuilt, Restarts, cause, jitter
from actors.rollout import Heartbeat, Work
from actors.setbacks import EvaluationHangs, Setbacks
from actors.verdicts import Spent
from replay.chunk import Counters
from replay.errors import QherdError

COLLECT_S = 0.5
"""Seconds of one call. The flush at the end waits for those in flight; the driver may be late by as much."""
IN_FLIGHT = 2
START_S = 300.0
"""Seconds that an actor may take to answer for the first time: a cluster may have to find a node for it first."""
MAKE_S = 60.0
"""Seconds more for each of its environments, which simulators may take to start."""
LOG_S = 20.0
"""Seconds that one ``collect`` may spend on the log beyond its own: four calls that time out after 5 s each."""
LEAVE_S = 20.0
"""Seconds that an actor whose slot is no more may take to end its calls in flight and to flush."""
KEPT_DEAD = 8
"""Dead incarnations of a slot whose rows are known: a learner that comes back later than these books none of them."""
TICK_S = 2.0
"""The most that one pause between two ticks counts as an actor's silence. Where the pause was longer this process was
the one that did not run (a stopped or a frozen machine), and the actors may be well."""
POLICY_S, SENT_S = 1.0, 0.25
"""Seconds that a policy may take to come at the end of a run, and that Ray may then take to send the call it is for."""


@dataclass
class _Slot:
    handle: Any  # None before the first start
    calls: list[Any]
    restarts: Restarts
    restart_at_s: float | None = None
    heard_s: float | None = None
    silent_s: float = 0.0
    counters: Counters = field(default_factory=Counters)
    incarnation: int = 0
    death: str | None = None
    work: Work = field(default_factory=Work)
    placed: Any = None  # the call that moves it to its place on another ladder

    def told(self, now_s: float) -> str:
        """What this actor was last known to do."""
        if self.restart_at_s is not None:
            return f"died ({self.death})" if self.death else "is about to start"
        if self.heard_s is None:
            return "has not answered yet"
        return f"last answered {now_s - self.heard_s:.0f} s ago" + (
            f", died before ({self.death})" if self.death else ""
        )


@dataclass
class _Leaving:
    """An actor whose slot is no more, or that failed: it flushes what it has in hand, closes its environments, and
    ends. ``flush`` is None for one that failed."""

    index: int
    handle: Any
    flush: Any
    close: Any
    until_s: float
    slot: _Slot


class HangError(QherdError, RuntimeError):
    """An actor that does not answer."""

    exit_code = 1


class Supervisor:
    """The actors of all slots. ``start(slot)`` starts a slot's actor under a new incarnation and returns its handle."""

    def __init__(
        self,
        start: Callable[[int], Any],
        config: ActorConfig,
        env_id: str,
        say: Callable[[str], None],
        jitter: Callable[[], float] = jitter,
    ) -> None:
        self._start, self._config, self._env_id, self._say = start, config, env_id, say
        self._rebuilt = Rebuilt(say)
        self._past_work, self._past_deaths, self._past_restarts = Work(), Counter[str](), 0
        self.died: dict[int, dict[int, int]] = {}
        """By slot and incarnation: the rows that the newest of those that died had made, as they last told."""
        self._leaving: list[_Leaving] = []
        self._closing: dict[str, Any] = {}
        self._starting_s = self._told_starting_s = 0.0
        self._scaled = False
        self._ticked_s = time.monotonic()
        self._jitter = jitter
        self._slots = [_Slot(start(slot), [], self._budget(slot)) for slot in range(config.count)]
        for slot in self._slots:
            self._refill(slot)

    def _budget(self, index: int) -> Restarts:
        return Restarts(f"actor {index}", self._config.restarts, jitter=self._jitter)

    @property
    def alive(self) -> int:
        """Actors that have answered and did not die since."""
        return sum(slot.heard_s is not None for slot in self._slots)

    @property
    def starting(self) -> int:
        """Actors that were started and have not answered yet."""
        return sum(slot.heard_s is None and slot.restart_at_s is None for slot in self._slots)

    def excuse(self) -> None:
        """Those cannot answer yet: the cluster has no room for them."""
        self._starting_s = self._told_starting_s = 0.0
        for slot in self._slots:
            if slot.heard_s is None:
                slot.silent_s = 0.0

    @property
    def restarts(self) -> int:
        """Restarts so far, over all slots."""
        return sum((slot.restarts.total for slot in self._slots), self._past_restarts)

    @property
    def restart_reasons(self) -> Counter[str]:
        """Deaths so far by the name of the error's type, over all slots."""
        return sum((slot.restarts.reasons for slot in self._slots), self._past_deaths)

    @property
    def rebuilds(self) -> int:
        """Environments that raised and were made anew so far, over all slots."""
        return self._rebuilt.total

    @property
    def work(self) -> Work:
        """Where the actors' time went so far, over all slots and incarnations."""
        return reduce(Work.plus, (slot.work for slot in self._slots), self._past_work)

    def told(self) -> str:
        """What each actor was last known to do, in one line."""
        now_s = time.monotonic()
        return "; ".join(f"actor {index} {slot.told(now_s)}" for index, slot in enumerate(self._slots))

    def scale(self, count: int) -> None:
        """Have ``count`` slots from now on, each at its place on their ladder: actors of further slots start, those of
        slots that are no more flush and end. ``tick`` does the work, ``settled`` tells when it is done."""
        now_s, self._scaled = time.monotonic(), True
        while len(self._slots) > count:
            self._leave(len(self._slots) - 1, self._slots.pop())
        for slot in self._slots:
            slot.placed = None
        for index in range(len(self._slots), count):
            self._slots.append(_Slot(None, [], self._budget(index), restart_at_s=now_s))

    def settled(self) -> dict[int, tuple[float, ...]] | None:
        """What each slot's lanes explore with once annealed, as their actors say; None until all have answered, and
        those that leave have left."""
        calls = [slot.placed for slot in self._slots]
        if (
            self._leaving
            or any(call is None for call in calls)
            or ray.wait(calls, num_returns=len(calls), timeout=0)[1]
        ):
            return None
        try:
            return dict(enumerate(ray.get(call) for call in calls))
        except ray.exceptions.RayError:  # an actor died meanwhile: it is asked again when it is back
            return None

    def _leave(self, index: int, slot: _Slot) -> None:
        self._past_work = self._past_work.plus(slot.work)
        self._past_restarts += slot.restarts.total
        self._past_deaths += slot.restarts.reasons
        if slot.restart_at_s is None:
            flush, close = slot.handle.flush.remote(LEAVE_S / 2), slot.handle.close.remote()
            self._leaving.append(_Leaving(index, slot.handle, flush, close, time.monotonic() + LEAVE_S, slot))

    def _see_off(self) -> None:
        """End those who have flushed and closed, or had the time for it."""
        for each in tuple(self._leaving):
            if ray.wait([each.close], timeout=0)[0] or time.monotonic() > each.until_s:
                self._leaving.remove(each)
                self._end(each)

    def _end(self, each: _Leaving) -> None:
        flushed = False
        if each.flush is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                flushed = bool(ray.wait([each.flush], timeout=0)[0] and ray.get(each.flush))
            self._say(f"actor {each.index} has left" + ("" if flushed else "; what it had in hand is lost"))
            self._note_died(each.index, each.slot)
        self._say_closed({f"actor {each.index}": each.close})
        ray.kill(each.handle)

    def _say_closed(self, closing: Mapping[str, Any]) -> None:
        """Say which environments did not let themselves be closed."""
        for name, call in closing.items():
            if not ray.wait([call], timeout=0)[0]:
                self._say(f"{name} had no time to close its environments")
                continue
            with contextlib.suppress(ray.exceptions.RayError):
                for line in ray.get(call):
                    self._say(f"{name}: {line}")

    def tick(self) -> None:
        """Take the answers that are there, ask again, restart who died or hangs. Does not wait."""
        now_s = time.monotonic()
        passed_s, self._ticked_s = min(now_s - self._ticked_s, TICK_S), now_s
        self._rebuilt.catch_up()
        self._tell_starting(passed_s)
        self._see_off()
        for index, slot in enumerate(self._slots):
            if slot.restart_at_s is not None:
                if now_s >= slot.restart_at_s:
                    self._restart(index, slot)
                continue
            slot.silent_s += passed_s
            try:
                self._take_answers(index, slot)
                self._check_silence(slot)
            except (ray.exceptions.RayError, HangError) as error:
                self._bury(index, slot, error)
            else:
                self._refill(slot)
                if self._scaled and slot.placed is None:
                    slot.placed = slot.handle.place.remote(len(self._slots))

    def _tell_starting(self, passed_s: float) -> None:
        """Say now and then which actors are still making their environments."""
        starting = [i for i, slot in enumerate(self._slots) if slot.heard_s is None and slot.restart_at_s is None]
        self._starting_s = self._starting_s + passed_s if starting else 0.0
        if self._starting_s > self._told_starting_s + TELL_EVERY_S:
            self._told_starting_s = self._starting_s
            named = ", ".join(map(str, starting[:8])) + (", ..." if len(starting) > 8 else "")
            self._say(
                f"actors {named} are still making their {self._config.lanes} environments each, for "
                f"{self._starting_s:.0f} s now"
            )
        elif not starting:
            self._told_starting_s = 0.0

    def stop(self, deadline_s: float) -> None:
        """Flush all actors within one deadline, and have them close their environments; ``end`` waits for that."""
        living = {index: slot.handle for index, slot in enumerate(self._slots) if slot.restart_at_s is None}
        flushes = [handle.flush.remote(deadline_s / 2) for handle in living.values()]
        self._closing = {f"actor {index}": handle.close.remote() for index, handle in living.items()}
        flushes += [each.flush for each in self._leaving if each.flush is not None]
        if flushes:
            ray.wait(flushes, num_returns=len(flushes), timeout=deadline_s)

    def end(self, seconds: float) -> None:
        """End all actors, when they have closed their environments or ``seconds`` are over."""
        closing = self._closing | {f"actor {each.index}": each.close for each in self._leaving}
        if closing:
            ray.wait(list(closing.values()), num_returns=len(closing), timeout=max(0.0, seconds))
        self._say_closed(closing)
        handles = [slot.handle for slot in self._slots] + [each.handle for each in self._leaving]
        for handle in handles:
            if handle is not None:
                ray.kill(handle)

    def _take_answers(self, index: int, slot: _Slot) -> None:
        done, _ = ray.wait(slot.calls, num_returns=len(slot.calls), timeout=0)
        for call in done:
            slot.calls.remove(call)
            heartbeat: Heartbeat = ray.get(call)
            slot.heard_s, slot.silent_s = time.monotonic(), 0.0
            slot.counters, slot.incarnation, slot.work = heartbeat.counters, heartbeat.incarnation, heartbeat.work
            self._rebuilt.note(f"actor {index}", heartbeat.rebuilt)

    def _check_silence(self, slot: _Slot) -> None:
        """Raises HangError where all that a ``collect`` may wait for is over; one that waits for
        credit or a server answers in time. A ``collect`` may begin a chunk just before its own time is over."""
        limit_s = COLLECT_S + self._config.flush_s + LOG_S + self._config.step_timeout_s
        start_s = START_S + MAKE_S * self._config.lanes if slot.heard_s is None else 0.0
        if slot.silent_s > limit_s + start_s:
            last = "never heard of" if slot.heard_s is None else f"last heard of at env step {slot.counters.env_steps}"
            raise HangError(
                f"no answer for {slot.silent_s:.0f} s: {self._env_id} hangs in a step or computes for longer than "
                f"actors.step_timeout_s ({self._config.step_timeout_s:g} s); raise that option if its steps take that "
                f"long; {last}"
            )

    def _refill(self, slot: _Slot) -> None:
        while len(slot.calls) < IN_FLIGHT:
            slot.calls.append(slot.handle.collect.remote(COLLECT_S))

    def _restart(self, index: int, slot: _Slot) -> None:
        try:
            slot.handle = self._start(index)
        except NotNowError:
            slot.restart_at_s = time.monotonic() + BACKOFF_S
            return
        self._past_work, slot.work = self._past_work.plus(slot.work), Work()
        slot.calls, slot.restart_at_s, slot.silent_s, slot.placed = [], None, 0.0, None
        slot.counters, slot.incarnation = Counters(), 0
        self._refill(slot)

    def _bury(self, index: int, slot: _Slot, error: Exception) -> None:
        self._note_died(index, slot)
        slot.heard_s, slot.death = None, cause(error)
        if isinstance(error, ray.exceptions.RayTaskError):  # its process lives, and can close its environments
            until_s = time.monotonic() + LEAVE_S
            self._leaving.append(_Leaving(index, slot.handle, None, slot.handle.close.remote(), until_s, slot))
        else:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(slot.handle)
        wait_s = slot.restarts.died(error)
        slot.restart_at_s = time.monotonic() + wait_s
        self._say(f"actor {index} died ({slot.death}); it restarts in {wait_s:.1f} s")

    def _note_died(self, index: int, slot: _Slot) -> None:
        if slot.incarnation:  # it has answered
            told = self.died.setdefault(index, {})
            told[slot.incarnation] = slot.counters.rows
            for old in sorted(told)[:-KEPT_DEAD]:
                del told[old]


class Silence:
    """Notices when nothing comes in any more: an environment that hangs would have the run wait for ever."""

    def __init__(self, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_s, self._clock = most_s, clock
        self._env_steps: float | None = None
        self._since_s = 0.0

    def too_long(self, figures: Mapping[str, float]) -> bool:
        """Whether ``figures``, the learner's, have shown no new env step for too long. Without credit, or with a server
        away is somebody else's silence."""
        env_steps = figures.get("env_steps")
        excused = not figures.get("credit_rows") or figures.get("servers_down")
        if env_steps is None or env_steps != self._env_steps or excused:
            self._env_steps, self._since_s = env_steps, self._clock()
        return self._clock() - self._since_s > self._most_s

    def excuse(self) -> None:
        """Begin anew: the learner is another one, or what the actors need is not there yet."""
        self._since_s = self._clock()


class Screening:
    """Asks the evaluator for verdicts, so that screening takes no more than ``eval.cpu_share`` of one core."""

    def __init__(
        self,
        start: Callable[[], Any],
        candidate: Callable[[], Any],
        config: EvalConfig,
        restarts: int,
        say: Callable[[str], None],
        spent: Spent = Spent(),  # noqa: B008
    ) -> None:
        """``start()`` starts an evaluator; ``candidate()`` is a reference to the packed policy to play next; ``spent``:
        what the run's confirmations before this driver have used up."""
        self.spent = spent
        self._start, self._candidate, self._config, self._say = start, candidate, config, say
        self._handle: Any = start()
        self._screening: tuple[Any, Any] | None = None
        self._asked_s = self._not_before_s = self._paid_until_s = self._advance_s = 0.0
        self._setbacks = Setbacks(Restarts("the evaluator", restarts), say)
        self._rebuilt = Rebuilt(say)
        self._close: Any = None

    @property
    def restarts(self) -> int:
        """Restarts so far."""
        return self._setbacks.restarts.total

    @property
    def restart_reasons(self) -> Counter[str]:
        """Deaths so far by the name of the error's type."""
        return self._setbacks.restarts.reasons

    @property
    def rebuilds(self) -> int:
        """Environments that raised in an evaluation and were made anew so far."""
        return self._rebuilt.total

    @property
    def failing(self) -> str:
        """Why no policy can be evaluated; empty where one can."""
        return self._setbacks.failing

    def tick(self, learning: bool) -> tuple[Verdict, Any] | None:
        """A verdict and the reference to the policy it is about, if one has come in. Does not wait.

        Asks for the next when ``learning`` and the evaluator's share allow.
        """
        self._rebuilt.catch_up()
        result = self._take_verdict()
        if self._screening is None and learning and time.monotonic() >= self._not_before_s and self._there():
            policy = self._candidate()
            self._screening, self._asked_s = (self._handle.screen.remote(policy, self.spent), policy), time.monotonic()
        return result

    def _take_verdict(self) -> tuple[Verdict, Any] | None:
        if self._screening is None:
            return None
        call, policy = self._screening
        if not ray.wait([call], timeout=0)[0]:
            if time.monotonic() - self._asked_s > self._config.timeout_s:
                self._bury(
                    EvaluationHangs(
                        f"no verdict for {self._config.timeout_s:g} s (eval.timeout_s); raise that option, or lower "
                        "eval.screen_episodes or eval.max_episode_steps"
                    )
                )
            return None
        self._screening = None
        try:
            verdict: Verdict = ray.get(call)
        except ray.exceptions.RayError as error:
            if not _failed(policy):  # else it was the learner that died
                self._bury(error)
            return None
        self._setbacks.succeeded()
        self._rebuilt.note("the evaluator", verdict.remade)
        self.spent = verdict.spent
        self._pace(verdict)
        return verdict, policy

    def _pace(self, verdict: Verdict) -> None:
        """Have the next screen wait until the share has paid for all but the newest confirmation: were that paid at
        once, too, a run that learns in seconds would wait minutes for its next look."""
        share = self._config.cpu_share
        self._paid_until_s = max(self._paid_until_s, self._asked_s) + verdict.seconds / share
        self._advance_s = verdict.confirming_seconds or self._advance_s
        self._not_before_s = self._paid_until_s - self._advance_s / share

    def holdout(self, policy: bytes, seconds: float) -> Any:
        """A reference to the hold-out of a packed policy; None where there is no evaluator."""
        if self._handle is None:
            return None
        self._stop_playing()  # which would have it wait
        return self._handle.holdout.remote(policy, seconds)

    def _stop_playing(self) -> None:
        """Have the evaluator stop what it plays.

        Ray sends a call to its actor some time after its arguments are there. Where one is cancelled before that, the
        actor waits for it for ever, and none of its later calls is run. So a call whose policy the learner still owes
        is left alone, and any other is given the time to be sent.
        """
        if self._screening is None:
            return
        call, policy = self._screening
        self._screening = None
        if ray.wait([policy], timeout=POLICY_S)[0] and not ray.wait([call], timeout=SENT_S)[0]:
            ray.cancel(call)

    def _bury(self, error: Exception) -> None:
        self._screening = None
        self._not_before_s = time.monotonic() + self._setbacks.failed(error)
        if isinstance(error, ray.exceptions.RayTaskError):  # its process lives, and can close its environments
            with contextlib.suppress(ray.exceptions.RayError):
                ray.wait([self._handle.close.remote()], timeout=CLOSE_S + 1)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self._handle)
        self._handle = None

    def _there(self) -> bool:
        """Whether there is an evaluator; starts one where it died."""
        if self._handle is None:
            try:
                self._handle = self._start()
            except NotNowError:
                self._not_before_s = time.monotonic() + BACKOFF_S
        return self._handle is not None

    def stop(self) -> None:
        """Have the evaluator stop what it plays and close its environments; ``end`` waits for that."""
        if self._handle is not None:
            self._stop_playing()
            self._close = self._handle.close.remote()

    def end(self, seconds: float) -> None:
        """End the evaluator, when it has closed its environments or ``seconds`` are over."""
        if self._handle is None:
            return
        if self._close is not None and not ray.wait([self._close], timeout=max(0.0, seconds))[0]:
            self._say("the evaluator had no time to close its environments")
        ray.kill(self._handle)


def _failed(policy: Any) -> bool:
    """Whether there is no policy where one was asked for. Waits for none: the learner may hang."""
    if not ray.wait([policy], timeout=0)[0]:
        return False
    try:
        ray.get(policy)
    except ray.exceptions.RayError:
        return True
    return False
