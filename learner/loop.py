"""The learner's process: ingest, update, publish, in slices. It wires and loops; the parts do the work."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from learner.algorithms.munchausen import most_added
from learner.broadcaster import Broadcaster
from learner.checkpoint import Checkpointer, Found, Name
from learner.config import GATHER_BYTES, LearnerConfig
from learner.dataset import DatasetSpec, read_dataset
from learner.horizon import horizon_at, longest_n_step
from learner.ingest import Ingest
from learner.journal import Journal
from learner.learner import Learner, choose_device
from learner.log_upkeep import LogUpkeep
from learner.loop_state import LoopState
from learner.phases import Phases
from learner.progress import Progress
from learner.publisher import Publisher
from learner.report import Report
from learner.samples import Samples, on_device
from replay.breakable import Breakable, breakable
from replay.buffer import ReplayBuffer
from replay.builders import Returns, make_assembler, make_mirror, planned_bytes
from replay.chunk import Codec, Schema
from replay.chunk_log.protocol import ChunkLog
from replay.config import ReplayConfig
from replay.mixed import MixedBuffer
from replay.samplers import make_sampler
from replay.sequences import SequenceBatch
from replay.state import State
from replay.storage import CannotFit, check_fit, make_storage

IDLE_S = 0.002


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
        dataset: DatasetSpec | None = None,
    ) -> None:
        """``seed`` starts the network's and the sampler's random numbers; ``fence`` comes from the run directory.

        ``found``: the checkpoint to resume from; ``republish``: also where the log may still have the weights published
        last; ``dataset``: the one that ``replay.dataset`` names.

        Raises:
            CheckpointError: the checkpoint holds nothing that this run can resume from.
            CannotFit: the replay does not fit into its storage.
            DatasetError, OtherDataset: the dataset cannot be used, or is another one than in the checkpoint.
        """
        self._config, self._replay, self._fence, self._checkpointer = config, replay, fence, checkpointer
        network_seed, sample_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2, np.uint64) >> 1)
        self.learner = Learner(config, schema, choose_device(config.device), network_seed)
        self.buffer, notices = _make_buffer(schema, replay, config, self.learner.device, sample_seed), list[str]()
        if dataset is not None:
            self.buffer = _beside_dataset(self.buffer, dataset, replay, config, self.learner.device, sample_seed)
            notices.append(self.buffer.summary_line())
        self.ingest = Ingest(
            log,
            publisher,
            Codec(schema, run),
            self.buffer,
            replay,
            batch=config.batch,
            fence=fence,
            quarantine=quarantine,
        )
        self.ledger = self.ingest.ledger
        self.broadcaster = Broadcaster(publisher, self.learner, self.ingest, fence)
        self.phases = Phases()
        self.samples = Samples(config.batch, most_added(config, schema.num_actions))
        journal = None if checkpointer is None else Journal(checkpointer.folder, fence)
        self.upkeep = LogUpkeep(log, self.ingest, self.learner, notices, fence=fence, replay=replay, journal=journal)
        parts = (self.learner, self.ingest, self.broadcaster)
        self.progress = Progress(*parts, self.upkeep, self.samples, self.phases, checkpointer, notices)
        self._state = LoopState(*parts, self.progress, self.samples, notices)
        self.resumed = None if found is None else self._state.restore(found, log, journal)
        if found is None and isinstance(self.buffer, MixedBuffer):
            self.ingest.limiter.fill(self.buffer.filling_rows)
        if republish:
            self.broadcaster.publish()

    def expect(self, slots: Iterable[int], chunk_rows: int, left: Iterable[int] = ()) -> None:
        """Expects chunks of ``chunk_rows`` rows from the actors of these slots from now on, and lends them credit.

        Those that had one before, and those that ``left`` before this learner began, are read to their end; their
        streams are trimmed like all others, and are empty once the mirror has turned over.
        """
        self.ingest.expect(slots, chunk_rows, left)

    @breakable
    def train(self, seconds: float) -> Report:
        """Works for about ``seconds``; returns a report."""
        with self.progress.slice():
            end = time.perf_counter() + seconds
            while (now := time.perf_counter()) < end:
                if not self.cycle(self._replay.ingest_budget_s):
                    time.sleep(IDLE_S)
                    self.phases.charge("wait")
                if self.broadcaster.publish_when_due(now):
                    self.phases.charge("publish")
                if self.upkeep.work_if_due(now):
                    self.phases.charge("trim")
                self.ingest.lapse_if_due(now)
                if self._checkpointer is not None and self._checkpointer.due:
                    self.checkpoint()
                    self.phases.charge("checkpoint")
        return self.report()

    @breakable
    def cycle(self, ingest_budget_s: float | None = None) -> int:
        """Takes in what arrived, then updates while the limiter allows, up to the next ingest; returns the updates."""
        self.phases.charge("outside")
        self._set_horizon()
        self.ingest.poll(ingest_budget_s)
        self.phases.charge("ingest")
        updates = self.learner.collective.agree(self.ingest.allowed_updates(self._replay.ingest_every_updates))
        self.ingest.count_updates(updates)
        self.ingest.lend(soon=not updates)  # before the updates, which take longer than a chunk
        self.phases.charge("publish")
        together = max(1, GATHER_BYTES // (self._config.batch * self.buffer.mirror.sample_bytes))
        for done in range(0, updates, together):
            self._learn(min(together, updates - done))
        return updates

    def _learn(self, updates: int) -> None:
        """Does these updates on rows chosen and gathered together, since the mirror does not change meanwhile.
        Likewise the priorities change together: they lag by as many updates (Ape-X's learner prefetches 16 batches)."""
        batch = self._config.batch
        gathered, rows, weights = self.buffer.sample(batch, updates, self.learner.updates)
        self.ingest.count_steps(updates, rows)
        self.phases.charge("sample")
        columns = gathered.map(lambda column: on_device(column, self.learner.device))
        factors = None if weights is None else on_device(weights, self.learner.device)
        sequences = isinstance(columns, SequenceBatch)
        returns = (columns.rewards, columns.discounts) if sequences else (columns.r_t, columns.discount_t)
        self.samples.record(rows, weights, self.buffer.mirror.end, *returns)
        self.phases.charge("transfer")
        errors = []
        for part in (slice(start, start + batch) for start in range(0, len(rows), batch)):
            errors.append(self.learner.update(columns.part(part), None if factors is None else factors[part]))
        self.phases.charge("compute")
        if weights is not None:
            self.buffer.update_priorities(rows, torch.cat(errors).cpu().numpy())
            self.phases.charge("priorities")

    @breakable
    def drain(self) -> None:
        """Takes in all that the log has, without learning from it, and closes the accounts of actors that died."""
        self._set_horizon()
        self.ingest.drain()
        self.upkeep.describe()

    def _set_horizon(self) -> None:
        """Has windows that close from now on see as far as the updates done call for."""
        self.buffer.assembler.set_horizon(*horizon_at(self._config, self.learner.updates))

    def candidate(self) -> bytes:
        """Returns the averaged policy for the evaluator, packed like published weights."""
        self.check_unbroken()
        return self.broadcaster.candidate()

    def report(self) -> Report:
        """See ``Progress.report``."""
        self.phases.charge("outside")
        return self.progress.report()

    def checkpoint(self, more: Mapping[str, State] | None = None, wait: bool = False) -> None:
        """Writes a checkpoint of all parts, and of ``more``. None is written while updates are skipped: the newest one
        then is from before what made them so."""
        if self._checkpointer is not None and not self.learner.last_was_skipped:
            name = Name(self._fence, self.learner.updates, self.ledger.totals.env_steps)
            self._checkpointer.save(name, lambda: {**self.state(), **(more or {})}, wait)

    def state(self) -> dict[str, State]:
        """Returns all that a learner resumes from, by part; see ``replay.state``."""
        self.check_unbroken()
        return self._state.gather(self._checkpointer is not None and self._checkpointer.with_rows)


def _make_buffer(
    schema: Schema, replay: ReplayConfig, config: LearnerConfig, device: torch.device, seed: int
) -> ReplayBuffer:
    """Raises CannotFit where there is no room for the rows."""
    storage = make_storage(replay.storage, replay.memmap_dir, lambda: device)
    needed = planned_bytes(schema, replay.capacity_rows, replay.sequences)
    check_fit(replay.storage, storage, needed)
    longest = longest_n_step(config)
    try:
        mirror = make_mirror(
            schema,
            replay.capacity_rows,
            replay.sequences,
            longest,
            storage,
            eta=config.priority_eta,
            reuse=replay.storage != "device",
        )
    except (MemoryError, OSError, torch.OutOfMemoryError) as error:
        raise CannotFit(
            f"the replay of {replay.capacity_rows:,} rows, {needed / 1e9:.2f} GB, cannot be allocated in "
            f"{replay.storage}: {error}; lower replay.capacity_rows"
        ) from error
    returns = Returns(
        config.n_step, config.gamma, longest, config.reward_scale, config.reward_clip, config.value_rescale
    )
    sampler = make_sampler(replay, mirror, np.random.default_rng(seed))
    return ReplayBuffer(mirror, make_assembler(mirror, returns), sampler)


def _beside_dataset(
    online: ReplayBuffer,
    spec: DatasetSpec,
    replay: ReplayConfig,
    config: LearnerConfig,
    device: torch.device,
    seed: int,
) -> MixedBuffer:
    """Returns the buffer with a dataset beside it, in the same storage; its windows have the horizon that ends a
    schedule. Raises CannotFit, DatasetError."""
    option = replay.dataset_option
    assert option is not None
    own_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])

    def make(rows: int) -> ReplayBuffer:
        sized = replay.model_copy(update={"capacity_rows": rows})
        return _make_buffer(online.mirror.schema, sized, config, device, own_seed)

    read = read_dataset(spec, online.mirror.schema, make)
    return MixedBuffer(online, read.buffer, option.share, spec.id, read.digest)
