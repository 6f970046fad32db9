"""The actors of an inline run: rollouts that take turns in the run's own process."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from gymnasium.vector import SyncVectorEnv

from actors.closing import close_all
from actors.envs import make_lanes
from actors.lanes import NotReplayable
from actors.restarts import Rebuilt
from deploy.config.errors import RunFailedError
from deploy.config.models import RunConfig, env_of
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.base import Notify
from deploy.sessions.waiting import notifying
from learner.checkpoint import Found, restoring
from replay.chunk import Schema
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
        schema: Schema,
        log: MemoryLog,
        rebuilt: Rebuilt,
        notify: Notify,
    ) -> None:
        self._config, self._directory, self._schema = config, directory, schema
        self._log, self._rebuilt, self._notify = log, rebuilt, notify
        self._lanes = list[SyncVectorEnv]()
        self._rollouts: list[Rollout] = []

    def build(self, found: Found | None) -> None:
        """Makes the rollouts, from what was ``found``, if anything was.

        Raises:
            CheckpointError: it holds nothing to go on from.
        """
        self._rollouts = [self._rollout(slot, found) for slot in range(self._config.actors.count)]

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
                self._rebuilt.note(f"actor {slot}", rollout.pop_rebuilt())
            except Exception as error:  # whatever the environment raised
                message = f"actor {slot} failed: {type(error).__name__}: {error}"
                raise RunFailedError(message, traceback.format_exc()) from error

    def states(self) -> dict[str, State]:
        """Returns the parts of a checkpoint, by their names."""
        return {f"actor-{slot}": rollout.state() for slot, rollout in enumerate(self._rollouts)}

    def close(self) -> None:
        """Closes the environments."""
        lanes, self._lanes = self._lanes, []
        for line in close_all([lane for each in lanes for lane in each.envs]):
            self._notify(line)

    def _rollout(self, slot: int, found: Found | None) -> Rollout:
        """Returns the slot's actor: as it was in the checkpoint, or, where its environment cannot be played again to
        the bit, a new incarnation."""
        if found is not None:
            part = f"actor-{slot}"
            try:
                with restoring(found, part):
                    incarnation = count(found.parts[part].values["incarnation"], "incarnation")
                rollout = self._make_rollout(slot, incarnation)
                with (
                    restoring(found, part),
                    notifying(self._notify, f"actor {slot} is still playing its episodes again"),
                ):
                    rollout.restore(found.parts[part])
            except NotReplayable as error:
                close_all(self._lanes.pop().envs)
                self._notify(f"actor {slot} begins anew, so the run does not go on to the bit: {error}")
            else:
                return rollout
        return self._make_rollout(slot, self._directory.fences.next_incarnation(slot))

    def _make_rollout(self, slot: int, incarnation: int) -> Rollout:
        from actors.actor_id import ActorId
        from actors.policy import make_policy
        from actors.rollout import Rollout

        config = self._config
        lanes, restarts = config.actors.lanes, config.actors.restarts
        with notifying(self._notify, f"actor {slot} is still making its {lanes} environments"):
            self._lanes.append(make_lanes(env_of(config), lanes, restarts, recorded=True, slot=slot))
        return Rollout(
            ActorId(self._directory.run, config.seed, slot, config.actors.count, incarnation),
            self._lanes[-1],
            self._schema,
            make_policy(config.learner.network_spec, self._schema),
            self._log,
            config.actors.model_copy(update={"fetch_every_s": 0.0}),
            clock=lambda: 0.0,
        )
