"""The actors of an inline run: rollouts that take turns in the run's own process."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from actors.actor_id import ActorId
from actors.builders import build_actor
from actors.closing import close_all
from actors.lanes import NotReplayable
from actors.supervision.rebuilds import RebuildNotices
from deploy.config.errors import RunFailedError
from deploy.config.models import RunConfig, env_of
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.base import Notify
from deploy.sessions.waiting import notifying
from learner.checkpoint import Found, restoring
from replay.chunk_log.memory_log import MemoryLog
from replay.state import State, count

if TYPE_CHECKING:
    from actors.rollout import Rollout


class InlineActors:
    """One rollout for each slot, on a log in this process."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        log: MemoryLog,
        rebuilt: RebuildNotices,
        notify: Notify,
    ) -> None:
        self._config, self._directory = config, directory
        self._log, self._rebuilt, self._notify = log, rebuilt, notify
        self._rollouts: list[Rollout] = []

    def build(self, found: Found | None) -> None:
        """Makes the rollouts, from what was ``found``, if anything was.

        Raises:
            CheckpointError: it holds nothing to go on from.
        """
        for slot in range(self._config.actors.count):
            self._begin(slot, found)

    def __len__(self) -> int:
        return len(self._rollouts)

    def step(self) -> None:
        """Has each actor that has credit fill and send a chunk.

        Raises:
            RunFailedError: an environment raised more often than it may.
        """
        for slot, rollout in enumerate(self._rollouts):
            try:
                if rollout.ready():
                    rollout.fill()
                    rollout.send()
                self._rebuilt.record(f"actor {slot}", rollout.pop_rebuilt())
            except Exception as error:  # whatever the environment raised
                message = f"actor {slot} failed: {type(error).__name__}: {error}"
                raise RunFailedError(message, traceback.format_exc()) from error

    def states(self) -> dict[str, State]:
        """Returns the parts of a checkpoint, by their names."""
        return {f"actor-{slot}": rollout.state() for slot, rollout in enumerate(self._rollouts)}

    def close(self) -> None:
        """Closes the environments."""
        rollouts, self._rollouts = self._rollouts, []
        for line in close_all([lane for rollout in rollouts for lane in rollout.lanes]):
            self._notify(line)

    def _begin(self, slot: int, found: Found | None) -> None:
        """Builds the slot's actor: as it was in the checkpoint, or, where its environment cannot be played again to the
        bit, a new incarnation."""
        if found is not None:
            part = f"actor-{slot}"
            try:
                with restoring(found, part):
                    incarnation = count(found.parts[part].values["incarnation"], "incarnation")
                rollout = self._build(slot, incarnation)
                with (
                    restoring(found, part),
                    notifying(self._notify, f"actor {slot} is still playing its episodes again"),
                ):
                    rollout.restore(found.parts[part])
            except NotReplayable as error:
                self._rollouts.pop().close()
                self._notify(f"actor {slot} begins anew, so the run does not go on to the bit: {error}")
            else:
                return
        self._build(slot, self._directory.fences.next_incarnation(slot))

    def _build(self, slot: int, incarnation: int) -> Rollout:
        config = self._config
        with notifying(self._notify, f"actor {slot} is still making its {config.actors.lanes} environments"):
            rollout = build_actor(
                ActorId(self._directory.run, config.seed, slot, config.actors.count, incarnation),
                env_of(config),
                config.actors.model_copy(update={"fetch_every_s": 0.0}),
                config.learner.network_spec,
                self._log,
                recorded=True,
                clock=lambda: 0.0,
            )
        self._rollouts.append(rollout)
        return rollout
