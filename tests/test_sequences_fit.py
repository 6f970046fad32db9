"""Sequences against the network, the chunks and a lane's share of the replay: refused with numbers and the remedy."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chunk_makers import RUN, FakeActor, append
from cli_runs import qherd
from sequence_makers import SCHEMA as MASKED
from sequence_makers import recurrent

from deploy.cli import main
from deploy.config.errors import ConfigError
from deploy.config.layers import compose
from deploy.config.models import RunConfig
from deploy.diagnosis.checks.check import Check
from deploy.diagnosis.preflight import preflight
from deploy.planning.forecast import forecast_run, memory_needed
from deploy.planning.measure import ActorRate, random_sequences
from deploy.planning.memory import (
    batches_together,
    check_limiter,
    check_windows,
    lane_steps,
    megabytes,
    plan_memory,
)
from learner.builders import LearnerSpec, build_learner
from learner.config import AnnealConfig, LearnerConfig
from learner.horizon import longest_n_step
from learner.loop import LearnerLoop
from learner.networks import NetworkConfig
from learner.publisher import Publisher
from replay.chunk import FIRST, HEADER_BYTES, Chunk, Counters, Schema, encode
from replay.chunk_log.memory_log import MemoryLog
from replay.config import ReplayConfig, SequencesConfig
from replay.core_states import CoreStates
from replay.sequence_assembler import SequenceAssembler
from replay.sequences import SequenceBatch, SequenceMirror, SequenceSpec

EXAMPLES = Path(__file__).parents[1] / "examples"
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
    """8 + 12 steps and an n_step of 5 lie in up to 4 chunks of 10: 40 steps of each of 8 lanes, 320 rows."""
    sequences = {"burn_in": 8, "trained": 12, "overlap": 4}
    check_windows(config(sequences, capacity_rows=320), SCHEMA)
    why = r"319 rows holds 39 time steps .* sequences of 20 steps, an n_step of 5.*chunks of .*need 40.*at least 320"
    with pytest.raises(ConfigError, match=why):
        check_windows(config(sequences, capacity_rows=319), SCHEMA)


@pytest.mark.parametrize(
    ("chunk_steps", "sequences", "n_step", "stack"),
    [(80, (40, 40, 0), 1, 4), (40, (40, 40, 20), 1, 4), (16, (20, 40, 20), 3, 4), (30, (10, 20, 0), 3, 2)],
)
def test_with_as_many_rows_no_lane_has_fewer_sequences(
    chunk_steps: int, sequences: tuple[int, int, int], n_step: int, stack: int
) -> None:
    """Of one endless episode in each lane; with a chunk less of each, the first lane has fewer."""
    parts = dict(zip(("burn_in", "trained", "overlap"), sequences, strict=True))
    values = config(parts).model_dump() | {"actors": {"count": 1, "lanes": 8, "chunk_steps": chunk_steps}}
    values["learner"] = {"n_step": n_step, "network": {"core": "lstm"}}
    share = lane_steps(RunConfig.model_validate(values), replace(SCHEMA, stack=stack))
    enough, fewer = (
        sequences_by_lane(chunk_steps, sequences, n_step, stack, each) for each in (share, share - chunk_steps)
    )
    assert len(set(enough)) == 1
    assert fewer[0] < enough[0]


def sequences_by_lane(
    chunk_steps: int, sequences: tuple[int, int, int], n_step: int, stack: int, share: int
) -> list[int]:
    """How many sequences could be sampled of each of 8 lanes, added up over 30 chunks."""
    schema, grid, found = Schema((1,), "float32", 2, stack=stack, core=2), (chunk_steps, 8), np.zeros(8, np.int64)
    mirror = SequenceMirror(schema, share * 8, SequenceSpec(*sequences, n_step))
    assembler, zeros = SequenceAssembler(mirror, n_step, 0.9), np.zeros(grid, np.float32)
    lanes = np.broadcast_to(np.arange(8, dtype=np.float32)[None, :, None], (*grid, 1))
    for seq in range(1, 41):
        flags = np.zeros(grid, np.uint8)
        flags[0] = FIRST if seq == 1 else 0
        columns = (lanes, np.zeros(grid, np.int32), zeros, zeros, zeros, flags)
        chunk = Chunk(0, 1, seq, 1, Counters(), *columns, core_state=np.ones((8, 2), np.float32))
        assembler.append(chunk, follows=seq > 1)
        rows = np.arange(mirror.start, mirror.end)
        if seq > 10 and len(names := rows[mirror.sampleable(rows)]):
            obs = np.asarray(mirror.gather(names).obs)[sequences[0]].reshape(len(names), -1)[:, -1]
            found += np.bincount(obs.astype(np.int64), minlength=8)
    return found.tolist()


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
    """100 states of full chunks' lanes with room for as many again, 16 x 8 sequences of 8 + 12 + 5 steps, each 32 bytes
    of an observation and 26 besides; an update trains 8 x 12 steps, so 100 updates/s at 4 samples per insert allow
    2,400 env steps/s."""
    sequential = config({"burn_in": 8, "trained": 12}, samples_per_insert=4)
    planned = plan_memory(sequential, SCHEMA)
    assert planned.mirror == SequenceMirror.planned_bytes(SCHEMA, 1000)
    assert planned.states == CoreStates.planned_bytes(64, 100) == 2 * 100 * (8 + 256)
    assert planned.batch == 16 * 8 * (25 * (32 + 26) + 256)
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


# -- the plan's numbers, beside those of a real learner


class Fed:
    """A learner of sequences that two fake actors send chunks of 10 x 4 rows; their bytes and rows."""

    def __init__(self, run: RunConfig, p_end: float) -> None:
        self.run, self.log, self.bytes, self.rows = run, MemoryLog(), 0, 0
        spec = LearnerSpec(RUN, MASKED, run.replay, run.learner, fence=1, seed=0, slots=2, chunk_rows=40)
        self.loop = build_learner(spec, self.log, Publisher(self.log, 1))
        self._actors = [FakeActor(slot, lanes=4, p_end=p_end) for slot in (0, 1)]

    def send(self) -> None:
        for actor in self._actors:
            chunk = recurrent(actor.chunk(10))
            append(self.log, chunk, schema=MASKED)
            self.bytes += len(encode(chunk, MASKED, RUN))
            self.rows += chunk.rows


def recurrent_config(samples_per_insert: float) -> RunConfig:
    network = NetworkConfig(hidden=(4,), core="lstm", core_size=1)
    run = config({"burn_in": 8, "trained": 12, "overlap": 4}, samples_per_insert=samples_per_insert)
    return run.model_copy(update={"learner": LearnerConfig(network=network, n_step=5, batch=8, device="cpu")})


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("p_end", [0.0, 0.05])
def test_what_is_planned_holds_what_a_full_replay_and_its_batches_take(p_end: float) -> None:
    fed = Fed(recurrent_config(32), p_end)
    mirror, gathered = fed.loop.buffer.mirror, list[int]()
    assert isinstance(mirror, SequenceMirror)
    gather = mirror.gather

    def gathering(rows: Any) -> SequenceBatch:
        batch = gather(rows)
        indices = 8 * batch.valid.size
        gathered.append(indices + sum(np.asarray(column).nbytes for column in batch))
        return batch

    mirror.gather = gathering  # type: ignore[method-assign]
    for _ in range(40):
        fed.send()
        fed.loop.ingest.poll(None)
    planned = plan_memory(fed.run, MASKED)
    assert mirror.rows > 1000 - 40, "it is full, and has turned over"
    assert mirror.nbytes == planned.mirror + mirror._core.nbytes
    assert 0.5 * planned.states <= mirror._core.nbytes <= planned.states
    assert fed.loop.cycle() == batches_together(fed.run, MASKED) == 16
    assert 0.9 * planned.batch < max(gathered) <= planned.batch


@pytest.mark.usefixtures("one_torch_thread")
def test_what_is_forecast_is_what_a_learner_does_with_long_episodes() -> None:
    """Updates and bytes per env step. With others' ends sequences are shorter, and updates more."""
    per_env_step = {}
    for p_end in (0.0, 0.2):
        fed = Fed(recurrent_config(4), p_end)
        for _ in range(25):
            fed.send()
            while fed.loop.cycle():
                pass
        inserts = fed.loop.ingest.limiter.inserts
        per_env_step[p_end] = fed.loop.learner.updates / (inserts - 10)
        if not p_end:
            sent = fed.bytes / fed.rows
            band = fed.loop.ingest.limiter.half_band / 96 / inserts
    forecast = forecast_run(fed.run.model_copy(update={"mode": "local"}), MASKED, ActorRate(1e6), 100.0, 2.0)
    assert forecast.rows_bytes_per_s / forecast.env_steps_per_s == pytest.approx(sent)
    expected = forecast.expected_updates_per_s / forecast.env_steps_per_s
    assert expected == 4 / (8 * 12)
    assert per_env_step[0.0] == pytest.approx(expected, abs=band)
    assert band < 0.1 * expected
    assert per_env_step[0.2] > 1.5 * expected


def test_slow_actors_send_short_chunks_each_with_its_states() -> None:
    """Of 8 env steps/s each actor's second has 8 rows, two time steps of four lanes: a state for every second row."""
    run = recurrent_config(4).model_copy(update={"mode": "local"})
    run = run.model_copy(update={"actors": run.actors.model_copy(update={"flush_s": 1.0})})
    forecast = forecast_run(run, MASKED, ActorRate(8.0), 1e6, 2.0)
    assert forecast.states_bytes == CoreStates.planned_bytes(2, 1000 // 2)
    lanes = 4 * 2 * 4
    assert forecast.rows_bytes_per_s == pytest.approx(16 * MASKED.row_bytes + 2 * (HEADER_BYTES + lanes))


MAZE = ("memory_envs:TMaze-v0", "--env.path", str(EXAMPLES), "--preset", "r2d2")


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """What a command of qherd ends with and prints, in this process."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    shown = capsys.readouterr()
    return int(ended.value.code or 0), " ".join((shown.out + shown.err).split())


def test_the_command_plan_says_what_sequences_take_and_allow(capsys: pytest.CaptureFixture[str]) -> None:
    rates = ("--env-steps-per-second", "1000", "--updates-per-second", "20")
    code, said = command(capsys, "plan", *MAZE, *rates)
    assert code == 0
    for line in (
        r"recurrent states \d+ MB one of 130 numbers for each lane of a chunk of 8 steps; more where actors.flush_s",
        r"gathered batches \d+ MB 16 at once, of 16 sequences of 8 \+ 16 steps and the bootstrap's",
        r"it allows 320 env steps/s updates/s x batch \(16 x 16 trained steps\) / 16 samples per insert; less where "
        "episodes end sooner",
        r"20 updates/s 16 / \(16 x 16 trained steps\) updates per env step",
        r"env steps/s x 25 B, recurrent states and headers: ",
    ):
        assert re.search(line, said), (line, said)


def checks(tmp_path: Path, **options: str) -> dict[str, Check]:
    """What ``qherd doctor`` finds before a run of the maze, up to its memory."""
    given = {"env.path": str(EXAMPLES), "mode": "inline", "runs_dir": str(tmp_path), **options}
    found: dict[str, Check] = {}
    for check in preflight(compose(MAZE[0], "r2d2", None, {}, given)):
        found[check.name] = check
        if check.name == "memory":
            break
    return found


def test_doctor_says_what_sequences_take_and_count(tmp_path: Path) -> None:
    """As a mirror of the run's size takes them, with the states of 50,000 rows in chunks of 8 x 8; and that they cannot
    be."""
    found = checks(tmp_path)
    assert found["limits"].found == "16 trained steps of sequences per insert from 1,000 rows on, a replay of 50,000"
    mirror, states = SequenceMirror(Schema((2,), "float32", 2, core=130), 50_000, SequenceSpec(8, 16, 8, 5)), 0
    for first in range(0, 200_000, 64):
        mirror._core.add(np.arange(first, first + 8), np.zeros((8, 130), np.float32))
        mirror._core.evict(first - 50_000)
        states = max(states, mirror._core.nbytes)
    assert (megabytes(mirror.nbytes - mirror._core.nbytes), megabytes(states)) == ("3 MB", "7 MB")
    told = (
        "replay of 50,000 rows: 3 MB (ram) and a sum tree of 1 MB, recurrent states of 7 MB and batches of 0 MB in the"
    )
    assert (found["memory"].state, found["memory"].found) == ("ok", f"{told} learner")
    long = checks(tmp_path, **{"replay.capacity_rows": "1300", "replay.sequences.trained": "200"})["memory"]
    assert long.state == "problem"
    assert (
        "sequences of 208 steps, an n_step of 5, a stack of 1 and whole chunks of actors.chunk_steps 8 need 224: give "
        in long.found
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ("--replay.sequences.trained", "200", "--replay.capacity-rows", "1500"),
            "a replay of 1,500 rows holds 187 time steps of each of 1 x 8 lanes; sequences of 208 steps, an n_step of "
            "5, a stack of 1 and whole chunks of actors.chunk_steps 8 need 224: give --replay.capacity-rows at least "
            "1792",
        ),
        (("--replay.sequences.burn-in", "17"), "burn_in is 17, longer than the 16 steps that are trained on"),
        (("--replay.sequences.overlap", "16"), "overlap is 16, and has to be below trained, which is 16"),
        (("--actors.chunk-steps", "17"), "give --actors.chunk-steps 16 or less"),
        (("--learner.network.core", "none"), "give --learner.network.core lstm or gru, or leave replay.sequences out"),
    ],
)
def test_train_refuses_what_does_not_fit_with_the_numbers(
    options: tuple[str, ...], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--runs-dir", str(tmp_path / "runs"), "--mode", "inline", *options)  # no mode that needs Ray unimported
    code, said = command(capsys, "train", *MAZE, *given)
    assert code == 2
    assert why in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()
