"""The learner's loop around sampling: priorities go out and come back, nothing is sampled too soon or at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from chunk_makers import RUN, SCHEMA, FakeActor, append

from learner import loop as loop_module
from learner.builders import LearnerSpec, build_learner
from learner.collective import Alone
from learner.config import LearnerConfig
from learner.loop import LearnerLoop
from learner.networks import NetworkConfig
from learner.publisher import Publisher
from learner.report import Diverged
from learner.weights import version
from replay.chunk_log.memory_log import MemoryLog
from replay.chunk_log.protocol import ChunkId, MemoryUsage
from replay.config import ReplayConfig
from replay.ledger import Unbalanced
from replay.metrics import flat
from replay.mirror import Batch
from replay.samplers.prioritised import SMALLEST_ERROR, PrioritisedSampler


def make(**replay: Any) -> tuple[LearnerLoop, MemoryLog]:
    """A loop on a log in memory; batches of 8."""
    values = {"capacity_rows": 500, "min_rows": 40, "samples_per_insert": 4.0, "sampler": "prioritised", **replay}
    log, learner = MemoryLog(), LearnerConfig(network=NetworkConfig(hidden=(4,)), batch=8, device="cpu", n_step=3)
    spec = LearnerSpec(RUN, SCHEMA, ReplayConfig(**values), learner, fence=1, seed=0, slots=1, chunk_rows=16)
    loop = build_learner(spec, log, Publisher(log, 1))
    return loop, log


def test_the_learners_errors_become_the_priorities() -> None:
    """After one cycle of several updates each sampled row has |TD error| of its last update to the power alpha; no
    other row's priority has moved."""
    loop, log = make()
    sampler = loop.buffer.sampler
    assert isinstance(sampler, PrioritisedSampler)
    actor = FakeActor(lanes=2, p_end=0.1)
    for _ in range(10):
        actor.send(log, 8)
    chosen: list[Any] = []
    errors: list[torch.Tensor] = []
    before: list[Any] = []
    choose, update = sampler.sample, loop.learner.update

    def choosing(*arguments: Any) -> Any:
        before.append(sampler._tree.weights.copy())
        chosen.append(choose(*arguments))
        return chosen[-1]

    def updating(batch: Batch, weights: Any) -> torch.Tensor:
        part = slice(8 * len(errors), 8 * len(errors) + 8)
        np.testing.assert_array_equal(weights, chosen[0].weights[part])
        np.testing.assert_array_equal(batch.s_tm1[:, 0], chosen[0].rows[part])  # an observation's number is its row's
        errors.append(update(batch, weights))
        return errors[-1]

    sampler.sample, loop.learner.update = choosing, updating  # type: ignore[method-assign, assignment]
    updates = loop.cycle()
    assert updates == len(errors) > 3
    expected = before[0]
    for row, error in zip(chosen[0].rows.tolist(), torch.cat(errors).tolist(), strict=True):
        expected[row] = (abs(error) + SMALLEST_ERROR) ** 0.6
    np.testing.assert_allclose(sampler._tree.weights, expected, rtol=1e-6)


def test_beta_goes_by_the_learners_updates() -> None:
    """Not by batches or calls: it lives in the checkpoint with them."""
    loop, log = make(prioritised={"beta": 0.2, "beta_updates": 1000})
    FakeActor(lanes=2, p_end=0.1).send(log, 40)
    loop.learner.updates = 500
    assert loop.cycle() > 0
    assert flat(loop.report().metrics)["importance_beta"] == pytest.approx(0.6)


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
def test_no_sampling_while_every_window_is_open(sampler: str) -> None:
    """The limiter would allow it; there is nothing to choose from yet, and that is no error."""
    loop, log = make(min_rows=1, sampler=sampler)
    actor = FakeActor(p_end=0.0)
    actor.send(log, 3)
    assert loop.cycle() == 0
    actor.send(log, 16)
    assert loop.cycle() > 0


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
def test_big_observations_are_gathered_in_parts(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most GATHER_BYTES at once, and at least one batch; the updates are as many as at once."""
    loop, log = make(sampler=sampler)
    FakeActor(lanes=2, p_end=0.1).send(log, 60)
    monkeypatch.setattr(loop_module, "GATHER_BYTES", 3 * 2 * 8 * 4)  # three batches of 8 observations of 4 bytes
    gather, sizes = loop.buffer.mirror.gather, []

    def gathering(rows: Any) -> Any:
        sizes.append(len(rows))
        return gather(rows)

    monkeypatch.setattr(loop.buffer.mirror, "gather", gathering)
    updates = loop.cycle()
    assert updates > 6
    assert sum(sizes) == 8 * updates
    assert max(sizes) == 24


def test_a_cycle_has_as_many_updates_as_the_learners_agree_on() -> None:
    """Not as many as this one's own limiter allows; so many samples are counted as taken."""

    class Agreed(Alone):
        def agree(self, count: int) -> int:
            assert count > 3
            return 3

    loop, log = make()
    loop.learner.collective = Agreed()
    FakeActor(lanes=2, p_end=0.1).send(log, 60)
    assert loop.cycle() == loop.learner.updates == 3
    assert loop.ingest.limiter.samples == 3 * 8


def test_the_logs_bound_rises_again_when_what_filled_the_server_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog that passes would else have a restarted learner begin with an eighth of its rows, for good. It rises to
    what fits, and is not lowered again by what it let in."""
    loop, log = make(capacity_rows=1000)
    rows, others = SCHEMA.row_bytes, 0

    def memory() -> MemoryUsage:
        stored = sum(len(entry.data) for entry in log.read({0: ChunkId()}, 1 << 30))
        return MemoryUsage(stored + others, 1000 * rows)

    monkeypatch.setattr(log, "memory", memory)
    actor = FakeActor(lanes=2, p_end=0.1)

    def trims(times: int) -> list[int]:
        kept = []
        for _ in range(times):
            actor.send(log, 8)
            loop.ingest.reader.poll()
            loop.upkeep._trim()
            kept.append(loop.upkeep._keep_rows)
        return kept

    trims(5)
    others = 950 * rows
    low = trims(20)
    assert low[-1] == min(low) < 200
    others = 0
    before = loop.upkeep.log_full
    risen = trims(100)
    assert risen == sorted(risen)
    assert 300 < risen[-1] <= 1000
    assert loop.upkeep.log_full == before


def test_a_run_whose_loss_stays_no_number_stops_and_says_why() -> None:
    """After learner.max_skipped_updates in a row, and not before."""
    loop, log = make(samples_per_insert=1.0)
    actor = FakeActor(lanes=2, p_end=0.1)
    with torch.no_grad():
        next(loop.learner.online.parameters()).fill_(float("nan"))
    actor.send(log, 30)
    assert 0 < loop.cycle() < 100
    update = loop.report().metrics.update
    assert update is not None
    assert update.updates_skipped == update.skipped_in_a_row == loop.learner.updates
    while loop.learner.updates < 100:
        actor.send(log, 30)
        loop.cycle()
    with pytest.raises(
        Diverged, match=r"the last 1\d\d of 1\d\d updates .*max_skipped_updates is 100.*lower learner.lr"
    ):
        loop.report()


def test_a_report_checks_the_books() -> None:
    """A row that is counted nowhere ends the run at the next report."""
    loop, log = make()
    FakeActor().send(log)
    loop.cycle()
    loop.report()
    loop.ledger.slots[0].rows_read -= 1
    with pytest.raises(Unbalanced, match="3 rows read"):
        loop.report()


def test_slots_that_leave_are_read_to_their_end_and_trimmed_to_empty() -> None:
    """Of two slots one leaves: the band is that of one, its last chunk is still taken in, the version of its weights no
    longer counts as stale, and its stream is empty once the mirror has turned over."""
    loop, log = make(capacity_rows=2_000, min_rows=16)
    stays, leaves = FakeActor(0), FakeActor(1)
    loop.expect([0, 1], 16)
    assert loop.ingest.limiter.window_rows == 2 * 8 * 16
    leaves.send(log, 16)
    loop.cycle()
    loop.expect([0], 16)
    assert loop.ingest.limiter.window_rows == 8 * 16
    leaves.send(log, 16)
    for _ in range(3):
        loop.broadcaster.publish()
    append(log, replace(stays.chunk(16), weight_version=version(1, 4)))
    loop.cycle()
    assert loop.ledger.slots[1].rows_read == 32
    assert loop.report().metrics.acting.weight_staleness_versions == 0
    for _ in range(130):
        stays.send(log, 16)
        loop.cycle()
    loop.ingest.reader.trim(2_000)
    assert log.read({1: ChunkId()}, 1 << 30) == []
    assert len(log.read({0: ChunkId()}, 1 << 30)) == 125


def test_slots_that_left_before_this_learner_began_are_read_too() -> None:
    """Their last chunks may be newer than its checkpoint."""
    loop, log = make(capacity_rows=2_000, min_rows=16)
    FakeActor(2).send(log, 16)
    loop.expect([0], 16, left=range(3))
    loop.cycle()
    assert loop.ledger.slots[2].rows_read == 16
