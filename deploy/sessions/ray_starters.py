"""Starts a run's learner, actors and evaluator as Ray actors, each under a number of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.actor_id import ActorId
from actors.supervision.restarts import NotNowError
from actors.worker import ActorWorker, EvaluatorWorker
from deploy import __version__
from deploy.cluster.capacity import Capacity
from deploy.cluster.placement import options
from deploy.config.errors import RunDirError
from deploy.config.models import RunConfig, env_of
from deploy.monitoring.metrics import shown_by
from deploy.planning.memory import backstop_chunks
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.base import learner_spec, log_file, make_checkpointer
from learner.worker import LearnerWorker
from replay.chunk import Schema
from replay.chunk_log import open_sharded_log
from replay.chunk_log.protocol import ChunkId, LogError, may_follow
from replay.chunk_log.sharded_log import shard_of
from replay.identity import Identity


class RayStarters:
    """Starts processes for the run's present ``config`` and ``capacity``, which a change of its size replaces."""

    def __init__(
        self,
        config: RunConfig,
        capacity: Capacity,
        directory: RunDirectory,
        schema: Schema,
        urls: Mapping[str, Sequence[str]],
    ) -> None:
        """``urls``: of the servers, by the role that uses them."""
        self.config, self.capacity = config, capacity
        self.incarnations: Mapping[int, int] = {}
        """By slot, the newest incarnation that the checkpoint of a resumed run has."""
        self._directory, self._schema, self._urls = directory, schema, urls
        self._identity = Identity.here()
        self._log = open_sharded_log(urls["learner"], directory.run, "driver")
        self._folder = Path.cwd() if config.mode == "local" else None
        """What relative paths of the environment start from; nodes of a cluster have folders of their own."""

    def close(self) -> None:
        """Closes the connections to the servers."""
        self._log.close()

    def start_learner(self, must_resume: bool) -> Any:
        """Starts a learner under the next fence; ``must_resume``: see ``LearnerWorker``.

        Raises:
            NotNowError: its number cannot be written down yet.
        """
        config, directory = self.config, self._directory
        with _retry_later_on_outage():
            fence = directory.fences.next_fence()
        return LearnerWorker.options(**options(self.capacity.request.learner)).remote(  # type: ignore[attr-defined]
            self._identity,
            log_file(config, directory, "learner"),
            self._urls["learner"],
            learner_spec(config, directory, self._schema, fence),
            checkpointer=make_checkpointer(config, directory, self._schema),
            must_resume=must_resume,
            metrics=shown_by(config),
            metrics_address=None if config.metrics.port is None else (config.metrics.host, config.metrics.port),
            version=__version__,
            path=env_of(config).path,
        )

    def start_actor(self, slot: int) -> Any:
        """Starts a slot's actor under its next incarnation.

        Raises:
            NotNowError: its number cannot be had from the servers, or be written down, yet.
        """
        config = self.config
        actor = ActorId(self._directory.run, config.seed, slot, config.actors.count, self._next_incarnation(slot))
        urls = self._urls["actor"]
        placed = options(self.capacity.request.actor) | {"scheduling_strategy": "SPREAD"}
        return ActorWorker.options(**placed).remote(  # type: ignore[attr-defined]
            self._identity,
            log_file(config, self._directory, f"actor-{slot}"),
            urls[shard_of(slot, len(urls))],
            actor,
            env_of(config),
            config.actors,
            config.learner.network_spec,
            backstop_chunks(config),
            self._folder,
        )

    def _next_incarnation(self, slot: int) -> int:
        """Returns a number that is above all that the run's directory, its checkpoint and its server know."""
        fences = self._directory.fences
        with _retry_later_on_outage():
            newest = max(fences.incarnation(slot), self.incarnations.get(slot, 0))
            last = self._log.last_id(slot)
            if may_follow(last, ChunkId(newest)):  # else a stranger's: the learner begins the stream anew
                newest = last.incarnation
            return fences.next_incarnation(slot, newest)

    def start_evaluator(self) -> Any:
        """Starts an evaluator under its next number.

        Raises:
            NotNowError: its number cannot be written down yet.
        """
        config = self.config
        with _retry_later_on_outage():
            number = self._directory.fences.next_evaluator()
        return EvaluatorWorker.options(**options(self.capacity.request.evaluator)).remote(  # type: ignore[attr-defined]
            self._identity,
            log_file(config, self._directory, "evaluator"),
            env_of(config),
            config.eval,
            config.learner.network_spec,
            config.seed,
            number,
            self._folder,
        )


@contextlib.contextmanager
def _retry_later_on_outage() -> Iterator[None]:
    """Converts a temporary failure to obtain a fencing number (server down, disk full) into NotNowError, so that the
    start is tried again."""
    try:
        yield
    except RunDirError as error:
        raise NotNowError(str(error)) from error
    except LogError as error:
        if not error.temporary:
            raise
        raise NotNowError(str(error)) from error
