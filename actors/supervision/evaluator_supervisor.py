"""Keeps the evaluator at work: one policy at a time, within its share of a core, restarts within a budget."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray

from actors.config import EvalConfig
from actors.evaluator import EvaluationResult
from actors.supervision.departures import Departures, kill
from actors.supervision.rebuilds import RebuildNotices
from actors.supervision.restarts import Restarts
from actors.supervision.setbacks import EvaluationHangs, Setbacks
from actors.supervision.supervised import Supervised
from actors.verdicts import Spent

NAME = "the evaluator"
POLICY_S, SENT_S = 1.0, 0.25
"""Seconds that a policy may take to come at the end of a run, and that Ray may then take to send the call it is for."""


class Pace:
    """When the next evaluation may begin, so that they take no more than ``share`` of one core."""

    def __init__(self, share: float) -> None:
        self._share = share
        self.next_s = self._paid_until_s = self._advance_s = 0.0

    def record(self, begun_s: float, seconds: float, confirming_seconds: float) -> None:
        """Counts the CPU time of an evaluation. The next one waits until the share has paid for all but the newest
        confirmation: were that paid at once, too, a run that learns in seconds would wait minutes for its next look."""
        self._paid_until_s = max(self._paid_until_s, begun_s) + seconds / self._share
        self._advance_s = confirming_seconds or self._advance_s
        self.next_s = self._paid_until_s - self._advance_s / self._share


class EvaluatorSupervisor:
    """Asks the evaluator for results about the newest policy. An evaluator that fails does not end the run."""

    def __init__(
        self,
        start: Callable[[], Any],
        candidate: Callable[[], Any],
        config: EvalConfig,
        restarts: int,
        notify: Callable[[str], None],
        spent: Spent = Spent(),  # noqa: B008
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``start()`` starts an evaluator; ``candidate()`` returns a reference to the packed policy to play next;
        ``spent``: what the run's confirmations before this driver have used up."""
        self.spent = spent
        self._candidate, self._config, self._clock = candidate, config, clock
        self._setbacks = Setbacks(Restarts(NAME, restarts, clock), notify)
        self._process: Supervised[Any] = Supervised(start, self._setbacks.died, clock)
        self._departures, self._rebuilt = Departures(notify, clock), RebuildNotices(notify, clock)
        self._pace = Pace(config.cpu_share)
        self._screening: tuple[Any, Any] | None = None
        """The call in flight, and the reference to the policy that it plays."""
        self._begun_s = 0.0
        self._process.start()

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

    def tick(self, learning: bool) -> tuple[EvaluationResult, Any] | None:
        """Returns a result and the reference to the policy it is about, if one has come in. Does not wait.

        Begins the next evaluation when ``learning`` and the evaluator's share allow.
        """
        self._rebuilt.catch_up()
        self._departures.reap()
        result = self._take_result()
        if self._screening is None and learning and self._clock() >= self._pace.next_s:
            self._begin()
        return result

    def _begin(self) -> None:
        """Has the next policy played, if there is an evaluator; starts one where it died."""
        self._process.start_if_due()
        if (evaluator := self._process.handle) is not None:
            policy = self._candidate()
            self._screening, self._begun_s = (evaluator.screen.remote(policy, self.spent), policy), self._clock()

    def _take_result(self) -> tuple[EvaluationResult, Any] | None:
        if self._screening is None:
            return None
        call, policy = self._screening
        if not ray.wait([call], timeout=0)[0]:
            if self._clock() - self._begun_s > self._config.timeout_s:
                self._handle_death(
                    EvaluationHangs(
                        f"no verdict for {self._config.timeout_s:g} s (eval.timeout_s); raise that option, or lower "
                        "eval.screen_episodes or eval.max_episode_steps"
                    )
                )
            return None
        self._screening = None
        try:
            result: EvaluationResult = ray.get(call)
        except ray.exceptions.RayError as error:
            if not _failed(policy):  # else it was the learner that died
                self._handle_death(error)
            return None
        self._process.replied()
        self._setbacks.succeeded()
        self._rebuilt.record(NAME, result.remade)
        self.spent = result.spent
        self._pace.record(self._begun_s, result.seconds, result.confirming_seconds)
        return result, policy

    def _handle_death(self, error: Exception) -> None:
        self._screening = None
        self._departures.end_failed(NAME, self._process.handle, error)
        self._process.died(error)

    def holdout(self, policy: bytes, seconds: float) -> Any:
        """Returns a reference to the hold-out of a packed policy; None where there is no evaluator."""
        if (evaluator := self._process.handle) is None:
            return None
        self._stop_playing()  # which would have it wait
        return evaluator.holdout.remote(policy, seconds)

    def _stop_playing(self) -> None:
        """Ends the evaluation in flight.

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

    def stop(self) -> None:
        """Ends the evaluation in flight and has the evaluator close its environments; ``end`` waits for that."""
        if self._process.has_process:
            self._stop_playing()
            self._departures.close(NAME, self._process.release())

    def end(self, seconds: float) -> None:
        """Ends the evaluator once its environments are closed, or after so many seconds."""
        self._departures.end(seconds)
        if (handle := self._process.release()) is not None:  # ``stop`` was cut short
            kill(handle)


def _failed(policy: Any) -> bool:
    """Returns whether a policy cannot come any more. Does not wait: the learner may hang."""
    if not ray.wait([policy], timeout=0)[0]:
        return False
    try:
        ray.get(policy)
    except ray.exceptions.RayError:
        return True
    return False
