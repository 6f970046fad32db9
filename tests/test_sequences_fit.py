"""Sequences against the network, the chunks and a lane's share of the replay: refused with numbers and the remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_runs import qherd

from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.planning.forecast import forecast_run, memory_needed
from deploy.planning.measure import ActorRate, random_sequences
from deploy.planning.memory import check_limiter, check_windows, plan_memory
from learner.config import AnnealConfig, LearnerConfig
from learner.horizon import longest_n_step
from learner.loop import LearnerLoop
from learner.networks import NetworkConfig
from learner.publisher import Publisher
from replay.chunk import Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.config import ReplayConfig, SequencesConfig
from replay.core_states import CoreStates
from replay.sequences import SequenceMirror, SequenceSpec

SCHEMA = Schema((8,), "float32", 4, core=64)


def config(sequences: dict[str, int], **replay: Any) -> RunConfig:
    """2 x 4 lanes, chunks of 10 steps, n_step 5, 8 sequences an update."""
    return RunConfig.model_validate(
        {
            "actors": {"count": 2, "lanes": 4, "chunk_steps": 10},
            "learner": {"n_step": 5, "batch": 8},
            "replay": {"capacity_rows": 1000, "min_rows": 10, "sequences": sequences, **replay},
        }
    )


@pytest.mark.parametrize(
    ("sequences", "why"),
    [
        ({"trained": 10, "burn_in": 11}, "burn_in is 11, longer than the 10 steps that are trained on .*: lower it"),
        ({"trained": 10, "overlap": 10}, "overlap is 10, and has to be below trained, which is 10"),
        ({"burn_in": 4}, "burn_in is 4 and overlap 0, and trained is 0, so that they do nothing: give trained"),
        ({"trained": -1}, "greater than or equal to 0"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(sequences: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        SequencesConfig.model_validate(sequences)


def test_a_sequence_beyond_a_lanes_share_is_refused_with_the_numbers() -> None:
    """8 + 12 steps, an n_step of 5 and chunks of 10 need 35 steps of each of 8 lanes: 280 rows."""
    sequences = {"burn_in": 8, "trained": 12, "overlap": 4}
    check_windows(config(sequences, capacity_rows=280), SCHEMA)
    why = r"279 rows holds 34 time steps .* sequences of 20 steps, an n_step of 5.*need 35.*at least 280"
    with pytest.raises(ConfigError, match=why):
        check_windows(config(sequences, capacity_rows=279), SCHEMA)


def test_a_core_and_sequences_need_each_other() -> None:
    with pytest.raises(ConfigError, match=r"trained is 12, and the network keeps no .*core lstm or gru"):
        check_windows(config({"trained": 12}), Schema((8,), "float32", 4))
    with pytest.raises(ConfigError, match=r"state of 64 numbers, and replay.sequences.trained is 0: .*none"):
        check_windows(config({}), SCHEMA)


def test_of_a_dataset_no_sequences_can_be_made() -> None:
    with pytest.raises(ValueError, match=r"dataset is 'a/b-v0' and sequences.trained 12: .*no recurrent states"):
        config({"trained": 12}, dataset="a/b-v0")


def test_chunks_that_would_leave_steps_out_are_refused() -> None:
    """10 steps are just reached by burn_in 2 + trained 12 - overlap 4."""
    check_windows(config({"burn_in": 2, "trained": 12, "overlap": 4}), SCHEMA)
    why = "burn_in 1, trained 12 and overlap 4 of replay.sequences more than 9 .*--actors.chunk-steps 9 or less"
    with pytest.raises(ConfigError, match=why):
        check_windows(config({"burn_in": 1, "trained": 12, "overlap": 4}), SCHEMA)


def test_the_plan_counts_states_batches_and_trained_steps() -> None:
    """100 states of full chunks' lanes with room for as many again, 8 sequences of 8 + 12 + 5 steps; an update trains
    8 x 12 steps, so 100 updates/s at 4 samples per insert allow 2,400 env steps/s."""
    sequential = config({"burn_in": 8, "trained": 12}, samples_per_insert=4)
    planned = plan_memory(sequential, SCHEMA)
    assert planned.mirror == SequenceMirror.planned_bytes(SCHEMA, 1000)
    assert planned.states == CoreStates.planned_bytes(64, 100) == 2 * 100 * (8 + 256)
    assert planned.batch == 8 * 25 * 32
    assert planned.host == planned.states + planned.batch
    assert "recurrent states of 0 MB and batches of 0 MB" in planned.summary_line(sequential)
    assert check_limiter(sequential).batch == 96
    inline = sequential.model_copy(update={"mode": "inline"})
    actor = ActorRate(1e6, 1.0, None, 0)
    forecast = forecast_run(inline, SCHEMA, actor, 100.0, 2.0)
    assert forecast.learner_env_steps_per_s == 2400
    assert forecast.expected_updates_per_s == 100
    without = replace(forecast, states_bytes=0, batch_bytes=0)
    assert memory_needed(inline, forecast) - memory_needed(inline, without) == planned.host


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--replay.sequences.trained", "10", "--replay.sequences.burn-in", "11"), "burn_in is 11, longer than the 10"),
        (("--learner.network.core", "lstm"), "and replay.sequences.trained is 0"),
    ],
)
def test_the_driver_refuses_by_exit_code_2(options: tuple[str, ...], why: str, tmp_path: Path) -> None:
    """Without a traceback, before anything is started."""
    done = qherd("train", "CartPole-v1", *options, cwd=tmp_path)
    assert done.code == 2, done
    said = " ".join((done.out + done.err).split())
    assert why in said
    assert "Traceback" not in said


def test_a_learner_weighs_first_priorities_as_it_does_later_ones() -> None:
    """By learner.priority_eta, in the mirror that it makes."""
    learner = LearnerConfig(network=NetworkConfig(hidden=(4,), core="lstm", core_size=4), priority_eta=0.25, batch=2)
    schema = replace(SCHEMA, core=8)
    replay = ReplayConfig(capacity_rows=100, min_rows=10, sequences=SequencesConfig(trained=4, burn_in=2, overlap=1))
    log = MemoryLog()
    loop = LearnerLoop("run", log, Publisher(log, 1), schema, replay, learner, fence=1, seed=0)
    assert isinstance(loop.buffer.mirror, SequenceMirror)
    assert loop.buffer.mirror.spec == SequenceSpec(2, 4, 1, learner.n_step, 0.25)


def test_updates_are_measured_on_batches_as_long_as_the_longest() -> None:
    """By the windows that the run begins with, where n is annealed."""
    run = config({"burn_in": 4, "trained": 8, "overlap": 2})
    learner = run.learner.model_copy(update={"anneal": AnnealConfig(updates=100, n_step=9, gamma=0.9)})
    batch = random_sequences(run.model_copy(update={"learner": learner}), SCHEMA)
    assert len(batch.obs) == 4 + 8 + longest_n_step(learner) == 4 + 8 + 9
