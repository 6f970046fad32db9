"""The evaluator of an inline run: it screens a policy now and then, while the rest of the run waits."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from actors.builders import build_evaluator
from actors.episodes import Episodes
from actors.evaluator import EvaluationResult
from actors.supervision.rebuilds import RebuildNotices
from actors.supervision.restarts import Restarts
from actors.supervision.setbacks import Setbacks
from actors.verdicts import Spent
from deploy.config.models import RunConfig, env_of
from deploy.sessions.base import HOLDOUT_S, Notify
from deploy.sessions.waiting import notifying
from replay.state import State, count, number


class InlineEvaluation:
    """Every ``eval.every_updates`` updates a policy is screened. One that raises is tried again later, within the
    budget of ``actors.restarts``; beyond it no policy is judged for a while, and the run continues."""

    def __init__(self, config: RunConfig, rebuilt: RebuildNotices, notify: Notify) -> None:
        self._every_updates, self._rebuilt, self._notify = config.eval.every_updates, rebuilt, notify
        self._restarts = Restarts("the evaluator", config.actors.restarts)
        self._setbacks, self._not_before_s = Setbacks(self._restarts, notify), 0.0
        self._screened_at, self._spent = 0, Spent()
        with notifying(notify, "the evaluator is still making its environments"):
            self._evaluator = build_evaluator(env_of(config), config.eval, config.learner.network_spec, config.seed)

    @property
    def restarts(self) -> int:
        """How often the evaluator was made anew, over the whole run."""
        return self._restarts.total

    @property
    def failing(self) -> str:
        """Why no policy can be evaluated; empty where one can."""
        return self._setbacks.failing

    def screen(self, updates: int, candidate: Callable[[], bytes]) -> tuple[EvaluationResult | None, bytes | None]:
        """Returns the verdict on ``candidate()`` and that policy, if one is due after so many updates, and it could be
        played."""
        if updates - self._screened_at < self._every_updates:
            return None, None
        self._screened_at = updates
        if time.monotonic() < self._not_before_s:
            return None, None
        policy = candidate()
        try:
            verdict = self._evaluator.screen(policy, self._spent)
        except Exception as error:  # whatever the environment raised
            self._restart(error)
            return None, None
        self._setbacks.succeeded()
        self._spent = verdict.spent
        self._rebuilt.record("the evaluator", verdict.remade)
        return verdict, policy

    def _restart(self, error: Exception) -> None:
        """Replaces the evaluator; the new one continues with the next seeds. Where there are too many of them no policy
        is judged for a while."""
        wait_s = self._setbacks.died(error)
        if self._setbacks.failing:
            self._not_before_s = time.monotonic() + wait_s
        try:
            with notifying(self._notify, "the evaluator is still making its environments"):
                self._evaluator.restart()
        except Exception as again:  # whatever its constructor raises
            self._not_before_s = time.monotonic() + self._setbacks.died(again)

    def hold_out(self, policy: bytes, skip: Callable[[], bool]) -> Episodes | None:
        """Returns further episodes of the policy, as many as HOLDOUT_S allow; None where they fail or are skipped."""
        with contextlib.suppress(Exception):  # whatever the environment raises: there is no hold-out then
            return self._evaluator.holdout(policy, HOLDOUT_S, skip)
        return None

    def evaluator_state(self) -> State:
        """Returns the evaluator's own part of a checkpoint."""
        return self._evaluator.state()

    def restore_evaluator(self, state: State) -> None:
        """Continues from such a part."""
        self._evaluator.restore(state)

    def counts(self) -> dict[str, Any]:
        """Returns what the session's part of a checkpoint has of the evaluations, for JSON."""
        worst = self._spent.worst
        spent = [self._spent.confirmations, worst if math.isfinite(worst) else None]
        return {"screened_at": self._screened_at, "spent": spent}

    def restore_counts(self, values: Mapping[str, Any]) -> None:
        """Continues from such counts, and from the restarts beside them."""
        self._screened_at = count(values["screened_at"], "screened_at")
        confirmations, worst = values.get("spent", (0, None))
        self._spent = Spent(count(confirmations, "spent"), math.inf if worst is None else number(worst, "spent"))
        self._restarts.total = count(values["evaluator_restarts"], "evaluator_restarts")

    def close(self) -> None:
        """Closes the evaluator's environments."""
        for line in self._evaluator.close():
            self._notify(line)
