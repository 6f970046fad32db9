"""What a checkpoint has of a learner, and how another learner resumes from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from learner.broadcaster import Broadcaster
from learner.checkpoint import POLICY, Found, restoring
from learner.ingest import Ingest
from learner.journal import Journal
from learner.learner import Learner, host_arrays
from learner.progress import Progress
from learner.report import Resumed
from learner.samples import Samples
from replay.chunk_log.protocol import ChunkLog
from replay.state import State, number


class LoopState:
    """Gathers the state of a learner's parts, and restores it."""

    def __init__(
        self,
        learner: Learner,
        ingest: Ingest,
        broadcaster: Broadcaster,
        progress: Progress,
        samples: Samples,
        notices: list[str],
    ) -> None:
        self._learner, self._ingest, self._broadcaster = learner, ingest, broadcaster
        self._progress, self._samples, self._notices = progress, samples, notices

    def gather(self, with_rows: bool) -> dict[str, State]:
        """Returns all that a learner resumes from, by part; see ``replay.state``. ``with_rows``: the replay, too."""
        return {
            "loop": State(self._values(), {}),
            "learner": self._learner.state(),
            POLICY: State({}, host_arrays(self._learner.average)),
            "reader": self._ingest.reader.state(),
            **self._ingest.buffer.state(with_rows),
        }

    def _values(self) -> dict[str, Any]:
        bound = self._samples.bound
        return {
            **self._broadcaster.values(),
            "limiter": self._ingest.limiter.state(),
            **self._progress.values(),
            "q_bound": bound if math.isfinite(bound) else None,
        }

    def restore(self, found: Found, log: ChunkLog, journal: Journal | None) -> Resumed:
        """Resumes from a checkpoint: with its rows, or with those that the log has.

        Raises:
            CheckpointError: the checkpoint holds nothing that this run can resume from.
        """
        parts, ingest = found.parts, self._ingest
        with restoring(found, "learner"):
            self._learner.restore(parts["learner"])
        with restoring(found, "reader"):
            ingest.reader.restore(parts["reader"])
            ingest.ledger.check()
        ingest.buffer.restore(
            parts, lambda stored: ingest.reader.refill(log, stored), lambda part: restoring(found, part)
        )
        with restoring(found, "loop"):
            self._restore_values(parts["loop"].values)
        if journal is not None:  # which forgets what is older than the checkpoint that is resumed from
            ingest.ledger.record_earlier(journal.since(found.name.fence))
        self._notices.extend(self._resume_notices(found))
        incarnations = {slot: account.cursor.incarnation for slot, account in ingest.ledger.slots.items()}
        return Resumed(self._learner.updates, ingest.ledger.totals.env_steps, incarnations)

    def _restore_values(self, values: Mapping[str, Any]) -> None:
        self._broadcaster.restore(values)
        self._ingest.limiter.restore(values["limiter"])
        self._progress.restore(values)
        self._samples.bound = math.inf if (bound := values["q_bound"]) is None else number(bound, "q_bound", 0)

    def _restart_if_lost(self) -> bool:
        """Has learning wait for ``min_rows`` again where fewer rows came back; returns whether that is so."""
        limiter, rows = self._ingest.limiter, self._ingest.buffer.rows
        lost = rows < limiter.min_rows <= limiter.inserts
        if lost:
            limiter.inserts, limiter.samples, limiter.carried = rows, 0, 0.0
        return lost

    def _resume_notices(self, found: Found) -> Iterator[str]:
        """Yields what a user is to be shown of a resume."""
        ingest = self._ingest
        yield from (f"a newer checkpoint is passed over: {why}" for why in found.skipped)
        source = "its own" if "mirror" in found.parts else "the log's"
        yield (
            f"resumed from checkpoint {found.name}: {self._learner.updates:,} updates, "
            f"{ingest.ledger.totals.env_steps:,} env steps, {source} {ingest.buffer.mirror.rows:,} rows of replay"
        )
        if ingest.reader.unread:
            yield (
                f"the server of slots {', '.join(map(str, sorted(ingest.reader.unread)))} does not answer: their rows "
                "of replay are not read again"
            )
        if self._restart_if_lost():
            yield f"the replay is lost: learning waits until {ingest.limiter.min_rows:,} rows have come in anew"
