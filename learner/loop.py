"""The learner's process: ingest, update, publish, in slices. It wires and loops; the parts do the work."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner.checkpoint import Checkpointer, Found, Name, restoring
from learner.config import PUBLISH_MIN_S, LearnerConfig
from learner.cpu_time import CpuTime
from learner.journal import Journal
from learner.learner import Figures, Learner, choose_device, host_arrays
from learner.phases import Phases
from learner.publisher import Publisher
from learner.report import Diverged, Report, Resumed
from learner.samples import Samples, on_device
from learner.weights import pack, version, version_count
from replay.about import About, SlotAbout
from replay.assembler import NStepAssembler
from replay.breakable import Breakable, breakable
from replay.buffer import ReplayBuffer
from replay.chunk import Codec, Counters, Schema
from replay.config import ReplayConfig
from replay.credit import Lender
from replay.limiter import CHUNKS_EACH, Limiter
from replay.log import ChunkLog, LogError, Memory, unless_away
from replay.mirror import Mirror
from replay.reader import Reader
from replay.samplers import make_sampler
from replay.state import State, count, number
from replay.storage import CannotFit, check_fit, make_storage

GATHER_BYTES = 64 << 20
"""Bytes of rows that are gathered at once, at the most: some batches of pictures, a whole cycle of small rows."""
TRIM_EVERY_S, TRIM_SHARE = 1.0, 16
"""The log is trimmed so often, and whenever this part of the capacity has come in anew."""
DESCRIBE_EVERY_S = 1.0
STRAYS_EVERY_S = 10.0
"""Between two looks for streams that are no slot's. One that is there twice is removed: the learner may not have been
told of a slot that is new."""
IDLE_S = 0.002
LAPSE_CHECK_S = 0.25
"""Unused credit is looked for so often. A longer pause counts no more: it was this process that did not run."""


class LearnerLoop(Breakable):
    """One run's learner on one log. After an exception in ``train`` or ``cycle`` it gives no policy and no state."""

    def __init__(
        self,
        run: str,
        log: ChunkLog,
        publisher: Publisher,
        schema: Schema,
        replay: ReplayConfig,
        config: LearnerConfig,
        *,
        fence: int,
        seed: int,
        quarantine: Path | None = None,
        checkpointer: Checkpointer | None = None,
        found: Found | None = None,
        republish: bool = True,
    ) -> None:
        """``seed`` starts the network's and the sampler's random numbers; ``fence`` comes from the run directory.

        ``found``: the checkpoint to go on from; ``republish``: also where the log may still have the weights published
        last. Raises CheckpointError where the checkpoint holds nothing that this run can go on from.
        """
        self._log, self._publisher, self._config, self._replay = log, publisher, config, replay
        self._fence, self._published = fence, 0
        self._keep_rows = replay.rows_in_log
        self._input_bytes = schema.obs_bytes * schema.stack + sum(column.nbytes for column in schema.extras)
        network_seed, sample_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2, np.uint64) >> 1)
        self.learner = Learner(config, schema, choose_device(config.device), network_seed)
        mirror = self._make_mirror(schema)
        self.buffer = ReplayBuffer(
            mirror,
            NStepAssembler(mirror, config.n_step, config.gamma, config.reward_scale),
            make_sampler(replay, mirror, np.random.default_rng(sample_seed)),
        )
        self.reader = Reader(log, Codec(schema, run), self.buffer, quarantine, fence)
        self.ledger = self.reader.ledger
        self.limiter = Limiter(replay.samples_per_insert, replay.min_rows, replay.capacity_rows, config.batch)
        self._lender = Lender()
        self._starved_s = self._env_steps_per_s = self._updates_per_s = 0.0
        self.phases, self._samples = Phases(), Samples(config.batch)
        self._last_publish_s = self._last_trim_s = self._last_describe_s = self._last_lapse_s = -math.inf
        self._last_strays_s, self._strays = time.perf_counter(), set[str]()
        self._log_unavailable = self._log_full = self._trimmed_end = 0
        self._expected: set[int] = set()
        self._memory: Memory | None = None
        self._newest_figures: Figures | None = None
        self._noted = Counters()
        self._exploring_return: float | None = None
        self._checkpointer, self._told = checkpointer, list[str]()
        self._journal = None if checkpointer is None else Journal(checkpointer.folder, fence)
        self._sums_before: Mapping[str, float] = {}
        self._seconds_before: Mapping[str, float] = {}
        self.resumed = None if found is None else self._restore(found)
        self._note_version()
        if republish:
            self.publish()

    def _make_mirror(self, schema: Schema) -> Mirror:
        replay = self._replay
        storage = make_storage(replay.storage, replay.memmap_dir, lambda: self.learner.device)
        needed = Mirror.planned_bytes(schema, replay.capacity_rows)
        check_fit(replay.storage, storage, needed)
        try:
            return Mirror(schema, replay.capacity_rows, storage)
        except (MemoryError, OSError, torch.OutOfMemoryError) as error:
            raise CannotFit(
                f"the replay of {replay.capacity_rows:,} rows, {needed / 1e9:.2f} GB, cannot be allocated in "
                f"{replay.storage}: {error}; lower replay.capacity_rows"
            ) from error

    def expect(self, slots: Iterable[int], chunk_rows: int, left: Iterable[int] = ()) -> None:
        """From now on these slots have actors, which have credit for chunks of ``chunk_rows`` rows.

        Those that had one before, and those that ``left`` before this learner began, are read to their end; their
        streams are trimmed like all others, and are empty once the mirror has turned over.
        """
        self._expected = set(slots)
        self.reader.follow([*self._expected, *left])
        self.limiter.fit(len(self._expected), chunk_rows)
        self._lender.fit(self._expected, chunk_rows, self.limiter.window_rows)

    @breakable
    def train(self, seconds: float) -> Report:
        """Work for about ``seconds``; returns a report."""
        started, starved_s = time.perf_counter(), CpuTime.now().starved_s
        env_steps, updates = self.ledger.totals.env_steps, self.learner.updates
        while (now := time.perf_counter()) < started + seconds:
            if not self.cycle(self._replay.ingest_budget_s):
                time.sleep(IDLE_S)
                self.phases.charge("wait")
            self._publish_when_due(now)
            self._lapse_when_due(now)
            self._checkpoint_when_due()
        elapsed = time.perf_counter() - started
        self._starved_s += CpuTime.now().starved_s - starved_s
        self._env_steps_per_s = (self.ledger.totals.env_steps - env_steps) / elapsed
        self._updates_per_s = (self.learner.updates - updates) / elapsed
        return self.report()

    @breakable
    def cycle(self, ingest_budget_s: float | None = None) -> int:
        """Take in what arrived, then update while the limiter allows, up to the next ingest; the updates done."""
        self.phases.charge("outside")
        with unless_away(self._note_unavailable):
            self._book(self.reader.poll(budget_s=ingest_budget_s))
        self.phases.charge("ingest")
        batch, updates = self._config.batch, 0
        most = self._replay.ingest_every_updates if self.buffer.mirror.sampleable_rows else 0
        while updates < most and self.limiter.may_sample:
            self.limiter.samples += batch
            updates += 1
        self._lend(soon=not updates)
        together = max(1, GATHER_BYTES // (2 * batch * self._input_bytes))
        for done in range(0, updates, together):
            self._learn(min(together, updates - done))
        return updates

    def _book(self, env_steps: int) -> None:
        """Account for what the reader has taken in."""
        self.limiter.insert(env_steps, self.buffer.mirror.sampleable_rows > 0)
        for slot, books in self.ledger.slots.items():
            self._lender.acknowledge(slot, books.taken.incarnation, books.counters.rows)

    def _lend(self, soon: bool) -> None:
        """Let the actors send what the limiter has room for: before the updates, which take longer than a chunk."""
        self._lender.lend(self.limiter.room_rows)
        self._publisher.set(self._lender.pack(), soon=soon)
        self.phases.charge("publish")

    def _lapse_when_due(self, now: float) -> None:
        """Take unused credit back. Time in which a server was away, or chunks waited to be taken in, does not count."""
        passed = now - self._last_lapse_s
        if passed >= LAPSE_CHECK_S:
            self._last_lapse_s = now
            if not (self._publisher.servers_down or self.reader.backlog_chunks):
                self._lender.pass_time(min(passed, LAPSE_CHECK_S))

    def _learn(self, updates: int) -> None:
        """One choice and one gather for all these updates, since the mirror does not change meanwhile; likewise one
        change of the priorities, which thus lag by as many updates (Ape-X's learner prefetches 16 batches)."""
        batch = self._config.batch
        gathered, rows, weights = self.buffer.sample(batch, updates, self.learner.updates)
        self.phases.charge("sample")
        columns = gathered.map(lambda column: on_device(column, self.learner.device))
        factors = None if weights is None else on_device(weights, self.learner.device)
        self._samples.note(rows, weights, self.buffer.mirror.end, columns.r_t, columns.discount_t)
        self.phases.charge("transfer")
        errors = []
        for part in (slice(start, start + batch) for start in range(0, len(rows), batch)):
            transitions = columns.map(itemgetter(part))
            errors.append(self.learner.update(transitions, None if factors is None else factors[part]))
        self.phases.charge("compute")
        if weights is not None:
            self.buffer.update_priorities(rows, torch.cat(errors).cpu().numpy())
            self.phases.charge("priorities")

    def _note_unavailable(self, _: LogError) -> None:
        """The learner goes on with what the mirror has while the server does not answer."""
        self._log_unavailable += 1

    @breakable
    def drain(self) -> None:
        """Take in all that the log has, without learning from it, and end the books of the actors that died."""
        before = self.ledger.totals.env_steps
        self.reader.drain()
        self._book(self.ledger.totals.env_steps - before)
        with unless_away(self._note_unavailable):
            self.ledger.end_dead(self._log.last_id)
        self.describe()

    def about(self) -> About:
        """The run as those see it who attach to it."""
        config, slots = self._config, self.ledger.slots
        return About(
            row_schema=self.buffer.mirror.schema,
            n_step=config.n_step,
            gamma=config.gamma,
            reward_scale=config.reward_scale,
            capacity_rows=self.buffer.mirror.capacity_rows,
            env_steps=self.ledger.totals.env_steps,
            updates=self.learner.updates,
            slots={slot: SlotAbout.of(books) for slot, books in slots.items()},
        )

    def describe(self) -> None:
        """Tell the log what this run is. A refusal stops nothing: a newer fence is the publisher's to notice."""
        try:
            self._log.describe(self._fence, self.about().pack())
        except LogError as error:
            self._note_unavailable(error)

    def _write_journal(self) -> None:
        """For the learner that goes on where this one was killed."""
        if self._journal is not None:
            self._journal.write(self.ledger.readings())

    def publish(self) -> None:
        """Broadcast the online network under the next version."""
        self._published += 1
        self._note_version()
        header = (version(self._fence, self._published), self.learner.updates, self.ledger.totals.env_steps)
        self._publisher.set(self._lender.pack(), pack(*header, host_arrays(self.learner.online)))
        self._published_at_updates = self.learner.updates

    def _note_version(self) -> None:
        """No actor can have acted with a newer version than this learner's newest."""
        self.reader.newest_version = version(self._fence, self._published)

    def candidate(self) -> bytes:
        """The averaged policy for the evaluator, packed like published weights."""
        self.check_unbroken()
        header = (version(self._fence, self._published), self.learner.updates, self.ledger.totals.env_steps)
        return pack(*header, host_arrays(self.learner.average))

    def publish_if_due(self) -> bool:
        """Publish where ``publish_every_updates`` updates were done since the last time."""
        due = self.learner.updates - self._published_at_updates >= self._config.publish_every_updates
        if due:
            self.publish()
        return due

    def _publish_when_due(self, now: float) -> None:
        if now - self._last_publish_s >= PUBLISH_MIN_S and self.publish_if_due():
            self._last_publish_s = now
            self.phases.charge("publish")
        chunk_each = self.limiter.window_rows // CHUNKS_EACH  # a short log is not trimmed at every chunk
        turned = self.buffer.mirror.end - self._trimmed_end > max(self._keep_rows // TRIM_SHARE, chunk_each)
        if now - self._last_trim_s >= TRIM_EVERY_S or turned:
            self._last_trim_s, self._trimmed_end = now, self.buffer.mirror.end
            with unless_away(self._note_unavailable):
                self._trim()
                self._remove_strays(now)
                if now - self._last_describe_s >= DESCRIBE_EVERY_S:
                    self._last_describe_s = now
                    self.describe()
                    self._write_journal()
            self.phases.charge("trim")

    def _trim(self) -> None:
        """Bound the log. Where the server is nearly full the bound falls by a quarter: a full server refuses all
        writes, and only the learner can make room. Below an eighth of the server other things fill it: rows that are
        yet to be read, or another run's. Where there is room again, beyond twice the margin, the bound rises by half
        of it."""
        self._memory = memory = self._log.memory()
        if memory is not None:
            row_bytes = self.buffer.mirror.schema.row_bytes
            margin = min(max(memory.bound // 10, 2 * self.limiter.window_rows * row_bytes), memory.bound // 2)
            if memory.used > memory.bound - margin:
                self._log_full += 1
                fewer = min(self._keep_rows, self.buffer.log_rows) * 3 // 4
                self._keep_rows = min(self._keep_rows, max(fewer, memory.bound // 8 // row_bytes))
            else:
                room = max(0, memory.bound - 2 * margin - memory.used) // row_bytes
                more = min(self._replay.rows_in_log, self.buffer.log_rows + room // 2)
                self._keep_rows = max(self._keep_rows, more)
        for slot in self.reader.exhausted:
            self._told.append(
                f"the stream of slot {slot} has an id that no actor can have sent, after which no chunk is taken: "
                "it begins anew, without the rows that a restarted learner would have read there; somebody else has an "
                "actor's password (qherd secrets makes new ones)"
            )
        self.reader.trim(self._keep_rows)

    def _remove_strays(self, now: float) -> None:
        """Remove what was sent to slots that the run does not have: nobody would ever trim it."""
        if now - self._last_strays_s < STRAYS_EVERY_S:
            return
        self._last_strays_s = now
        found = self._log.strays(self.ledger.slots)
        again = self._strays & found.keys()
        self._strays = found.keys() - again
        if again:
            self._log.remove_strays(self._fence, again)
            entries = sum(found[key] for key in again)
            self.ledger.note_strays(entries)
            self._told.append(
                f"{entries} chunks in {len(again)} streams that are no slot's of this run were removed, such as "
                f"{min(again)[:80]!r}: somebody else has an actor's password (qherd secrets makes new ones)"
            )

    def _note_exploring_return(self, counters: Counters) -> None:
        """The mean return of the episodes that ended since this was last noted."""
        episodes = counters.episodes - self._noted.episodes
        if episodes > 0:
            self._exploring_return = (counters.return_sum - self._noted.return_sum) / episodes
            self._noted = counters

    def report(self) -> Report:
        """The figures of the live table and of Prometheus. Raises Diverged where learning has come to nothing.
        Raises Unbalanced where the ledger does not balance."""
        self.phases.charge("outside")
        self.ledger.check()
        self._newest_figures = self.learner.figures() or self._newest_figures
        totals, counters = self.ledger.totals, self.ledger.counters()
        newest = version(self._fence, self._published)
        slots = [books for slot, books in self.ledger.slots.items() if slot in self._expected]
        acted_with = [version_count(books.weight_version) for books in slots if books.weight_version]
        lags = [max(0, self._published - count) for count in acted_with]
        self._note_exploring_return(counters)
        figures: dict[str, float] = (
            self.buffer.sampler.figures()
            | self._samples.figures()
            | self._counts(counters)
            | {
                "actor_returns_sum": counters.return_sum,
                "weight_version": newest,
                "log_rows": self.buffer.log_rows,
                "servers_down": self._publisher.servers_down,
                "replay_rows": self.buffer.mirror.rows,
                "replay_capacity_rows": self.buffer.mirror.capacity_rows,
                "replay_sampleable_rows": self.buffer.mirror.sampleable_rows,
                "replay_bytes": Mirror.planned_bytes(self.buffer.mirror.schema, self.buffer.mirror.capacity_rows),
                "ingest_backlog_chunks": self.reader.backlog_chunks,
                "samples_per_insert": self.limiter.realised,
                "samples_per_insert_target": self.limiter.samples_per_insert,
                "limiter_error": self.limiter.error,
                "limiter_half_band": self.limiter.half_band,
                "limiter_min_rows": self.limiter.min_rows,
                "weight_staleness_versions": max(lags, default=0),
                "weight_staleness_mean_versions": sum(lags) / max(1, len(lags)),
                "credit_rows": self._lender.rows,
                "actors_expected": len(slots),
                "env_steps_per_second": self._env_steps_per_s,
                "updates_per_second": self._updates_per_s,
            }
        )
        if self._exploring_return is not None:
            figures["exploring_return"] = self._exploring_return
        if self._newest_figures is not None:
            skipped, most = self._newest_figures.skipped_in_a_row, self._config.max_skipped_updates
            if skipped >= most:
                raise Diverged(
                    f"the last {skipped:.0f} of {self.learner.updates} updates had a loss or a gradient that is not "
                    f"finite and were skipped (learner.max_skipped_updates is {most}): lower learner.lr or "
                    "learner.reward_scale; the best policy so far is kept"
                )
            figures |= self._newest_figures._asdict()
        if self._memory is not None:
            figures |= {"log_memory_bytes": self._memory.used, "log_memory_limit_bytes": self._memory.bound}
        told, self._told = self._told, []
        if self._checkpointer is not None:
            figures |= self._checkpointer.figures()
            told += self._checkpointer.told()
        self.phases.charge("report")
        return Report(figures, dict(totals.refused), dict(totals.rows_lost), tuple(told))

    def begun_with(self) -> Report:
        """What the counters stood at where this learner went on; a report would take the first things to tell."""
        figures = self._counts(self.ledger.counters()) | self.buffer.sampler.figures()
        if self._newest_figures is not None:
            figures["updates_skipped"] = self._newest_figures.updates_skipped
        return Report(figures, dict(self.ledger.totals.refused), dict(self.ledger.totals.rows_lost))

    def _counts(self, counters: Counters) -> dict[str, float]:
        """What only grows, over all learners of the run."""
        totals, updates = self.ledger.totals, self.learner.updates
        return {
            **self._sums(),
            **self._seconds(),
            "updates": updates,
            "target_syncs": updates // self._config.target_period_updates,
            "samples": self.limiter.samples,
            "env_steps": totals.env_steps,
            "rows": totals.rows,
            "chunks": totals.chunks,
            "chunk_bytes": totals.bytes,
            "actor_env_steps": counters.env_steps,
            "actor_episodes": counters.episodes,
            "actor_credit_wait_seconds": counters.credit_wait_s,
            "actor_push_retries": counters.refusals,
        }

    def checkpoint(self, more: Mapping[str, State] | None = None, wait: bool = False) -> None:
        """Write a checkpoint of all parts, and of ``more``. None is written while updates are skipped: the newest one
        then is from before what made them so."""
        if self._checkpointer is not None and not self.learner.last_was_skipped:
            name = Name(self._fence, self.learner.updates, self.ledger.totals.env_steps)
            self._checkpointer.save(name, lambda: {**self.state(), **(more or {})}, wait)

    def _checkpoint_when_due(self) -> None:
        if self._checkpointer is not None and self._checkpointer.due:
            self.checkpoint()
            self.phases.charge("checkpoint")

    def state(self) -> dict[str, State]:
        """All that a learner goes on from, by part; see ``replay.state``."""
        self.check_unbroken()
        with_rows = self._checkpointer is not None and self._checkpointer.with_rows
        return {
            "loop": State(self._values(), {}),
            "learner": self.learner.state(),
            "reader": self.reader.state(),
            **self.buffer.state(with_rows),
        }

    def _values(self) -> dict[str, Any]:
        return {
            "published": self._published,
            "published_at_updates": self._published_at_updates,
            "limiter": self.limiter.state(),
            "noted": list(self._noted),
            "exploring_return": self._exploring_return,
            "figures": self._newest_figures and list(self._newest_figures),
            "sums": self._sums(),
            "seconds": self._seconds(),
            "q_bound": self._samples.bound if math.isfinite(self._samples.bound) else None,
        }

    def _sums(self) -> dict[str, float]:
        """What all learners of this run have counted together: those before this one, and this one since it began."""
        counted = {
            "weights_published": self._publisher.published,
            "weights_published_bytes": self._publisher.published_bytes,
            "log_full": self._log_full,
            "log_unavailable": self._log_unavailable + self._publisher.unavailable,
            "learner_starved_seconds": self._starved_s,
        }
        return {name: self._sums_before.get(name, 0) + count for name, count in counted.items()}

    def _seconds(self) -> dict[str, float]:
        """Where the time of all learners of this run went."""
        return {name: self._seconds_before.get(name, 0) + spent for name, spent in self.phases.figures().items()}

    def _restore(self, found: Found) -> Resumed:
        """Go on from a checkpoint: with its rows, or with those that the log has."""
        parts = found.parts
        with restoring(found, "learner"):
            self.learner.restore(parts["learner"])
        with restoring(found, "reader"):
            self.reader.restore(parts["reader"])
            self.ledger.check()
        refill = partial(self.reader.refill, self._log)
        self.buffer.restore(parts, refill, lambda part: restoring(found, part))
        with restoring(found, "loop"):
            self._restore_values(parts["loop"].values)
        if self._journal is not None:  # which forgets what is older than the checkpoint that is gone on from
            self.ledger.know(self._journal.since(found.name.fence))
        self._trimmed_end = self.buffer.mirror.end
        self._tell_resumed(found)
        cursors = {slot: books.cursor.incarnation for slot, books in self.ledger.slots.items()}
        return Resumed(self.learner.updates, self.ledger.totals.env_steps, cursors)

    def _restore_values(self, values: Mapping[str, Any]) -> None:
        self._published = count(values["published"], "published")
        self._published_at_updates = count(values["published_at_updates"], "published_at_updates")
        self.limiter.restore(values["limiter"])
        self._noted = Counters.of(values["noted"], "noted")
        if (mean := values["exploring_return"]) is not None:
            self._exploring_return = number(mean, "exploring_return")
        if (figures := values["figures"]) is not None:
            self._newest_figures = Figures(*(number(each, "figures") for each in figures))
        self._sums_before, self._seconds_before = (
            {name: number(each, f"{what}.{name}", 0) for name, each in values[what].items()}
            for what in ("sums", "seconds")
        )
        self._samples.bound = math.inf if (bound := values["q_bound"]) is None else number(bound, "q_bound", 0)

    def _tell_resumed(self, found: Found) -> None:
        self._told += [f"a newer checkpoint is passed over: {why}" for why in found.skipped]
        source = "its own" if "mirror" in found.parts else "the log's"
        self._told.append(
            f"resumed from checkpoint {found.name}: {self.learner.updates:,} updates, "
            f"{self.ledger.totals.env_steps:,} env steps, {source} {self.buffer.mirror.rows:,} rows of replay"
        )
        if self.reader.unread:
            self._told.append(
                f"the server of slots {', '.join(map(str, sorted(self.reader.unread)))} does not answer: their rows of "
                "replay are not read again"
            )
        if self.buffer.mirror.rows < self._replay.min_rows <= self.limiter.inserts:
            self.limiter.inserts, self.limiter.samples, self.limiter.carried = self.buffer.mirror.rows, 0, 0.0
            self._told.append(
                f"the replay is lost: learning waits until {self._replay.min_rows:,} rows have come in anew"
            )
