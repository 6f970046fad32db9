"""How much memory a run takes, planned before anything is started: chunks, server, mirror, sum tree."""

from __future__ import annotations

import math
from typing import NamedTuple

from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.planning.dataset import dataset_rows
from deploy.process.host import existing_folder
from learner.algorithms import ALGORITHMS, build_loss
from learner.config import GATHER_BYTES
from learner.horizon import longest_n_step
from learner.networks import parameter_shapes
from replay.builders import planned_bytes
from replay.chunk import Schema
from replay.chunk_log.server_kind import Bounds
from replay.core_states import CoreStates
from replay.limiter import Limiter
from replay.samplers import sampler_of
from replay.sequences import SequenceMirror
from replay.storage import CannotFit, available_memory, check_fit, make_storage

ACTOR_BYTES, LEARNER_BYTES = 120 << 20, 350 << 20
"""Resident memory of a process before it holds rows or weights: Python, Ray, numpy and gymnasium; in the learner torch,
too. Measured: 118 and 322 MB; actors share some 45 MB of it."""

WEIGHTS_OVERHEAD_BYTES = 64 << 10
"""More than the header and the names of the tensors take."""


class MemoryPlan(NamedTuple):
    """Upper bounds in bytes: the server's memory, the mirror in ``replay.storage``, the sum tree; and of sequences the
    recurrent states of full chunks and the batches that are gathered together, both in host memory. Chunks that
    ``actors.flush_s`` cuts short have more states: the one that is no bound."""

    server: int
    mirror: int
    tree: int
    states: int = 0
    batch: int = 0

    @property
    def host(self) -> int:
        """What the learner holds beside the mirror."""
        return self.tree + self.states + self.batch

    def summary_line(self, config: RunConfig) -> str:
        """Returns one line for the start of a run."""
        limits = config.replay
        tree = f" and a sum tree of {megabytes(self.tree)}" if self.tree else ""
        if config.replay.sequences.trained:
            tree += f", recurrent states of {megabytes(self.states)} and batches of {megabytes(self.batch)}"
        server = f"; the server at most {megabytes(self.server)}" if self.server else ""
        return (
            f"replay of {limits.capacity_rows:,} rows: {megabytes(self.mirror)} ({limits.storage}){tree} in the "
            f"learner{server}"
        )


def plan_memory(config: RunConfig, schema: Schema) -> MemoryPlan:
    """Returns what this run takes. An inline run has no server, and its log keeps nothing that the mirror has.

    Raises:
        ConfigError: a sampler cannot be imported.
    """
    capacity, sequences = config.replay.capacity_rows, config.replay.sequences
    try:
        tree = sampler_of(config.replay.sampler).planned_bytes(capacity)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    server = 0 if config.mode == "inline" else server_bytes(config, schema)
    plan = MemoryPlan(server, planned_bytes(schema, capacity, sequences), tree)
    if rows := dataset_rows(config):  # in a mirror of its own, with a sampler of its own
        further = sampler_of(config.replay.sampler).planned_bytes(rows)
        return plan._replace(mirror=plan.mirror + planned_bytes(schema, rows, sequences), tree=tree + further)
    if not sequences.trained:
        return plan
    return plan._replace(
        states=CoreStates.planned_bytes(schema.core, capacity // config.actors.chunk_steps),
        batch=batches_together(config, schema) * _batch_bytes(config, schema),
    )


def batches_together(config: RunConfig, schema: Schema) -> int:
    """Returns how many batches of sequences are gathered at once, at the most."""
    return min(max(1, GATHER_BYTES // _batch_bytes(config, schema)), config.replay.ingest_every_updates)


def _batch_bytes(config: RunConfig, schema: Schema) -> int:
    sequences = config.replay.sequences
    steps = sequences.burn_in + sequences.trained + longest_n_step(config.learner)
    return config.learner.batch * SequenceMirror.planned_sample_bytes(schema, steps)


def check_memory(config: RunConfig, schema: Schema) -> None:
    """Raises ConfigError where this machine cannot hold the run. On a cluster the learner itself looks."""
    if config.mode == "cluster":
        return
    planned, kind = plan_memory(config, schema), config.replay.storage
    folder = config.replay.memmap_dir or existing_folder(config.runs_dir)
    try:
        if kind == "memmap":
            check_fit(kind, make_storage(kind, folder, lambda: None), planned.mirror)
    except (CannotFit, OSError) as error:
        raise ConfigError(str(error)) from error
    in_ram = planned.server + planned.host + (planned.mirror if kind == "ram" else 0)
    free = available_memory()
    if free is not None and in_ram > free:
        memmap = ", or choose --replay.storage memmap with a --replay.log_rows that fits" if kind == "ram" else ""
        raise ConfigError(
            f"{planned.summary_line(config)}: {megabytes(in_ram)} of memory in all, {megabytes(free)} are free; lower "
            f"--replay.capacity_rows{memmap}"
        )


def check_network(config: RunConfig, schema: Schema) -> None:
    """Raises ConfigError where the Q-network or the loss cannot be built: an unknown name, a module of the user's own
    that cannot be imported or computes no values, an encoder that does not take these observations, options of another
    algorithm."""
    learner = config.learner
    for name, algorithm in ALGORITHMS.items():
        options = getattr(learner, algorithm.section) if algorithm.section else None
        if options is not None and name != learner.algorithm and options != type(options)():
            raise ConfigError(
                f"learner.{algorithm.section} is set, and has options of the algorithm {name}: this run's is "
                f"{learner.algorithm}; leave it out, or give --learner.algorithm {name}"
            )
    try:
        spec = learner.network_spec
        parameter_shapes(spec, schema)
        if ":" in spec.config.encoder or ":" in spec.head:
            from learner.networks.trial import try_network

            try_network(spec, schema)
        if ":" in learner.algorithm:
            build_loss(learner)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_windows(config: RunConfig, schema: Schema) -> None:
    """Raises ConfigError where a lane's share of the replay is shorter than ``lane_steps``: rows would be evicted
    before anything could be sampled from them. Likewise where sequences do not go with the network or the chunks."""
    check_sequences(config, schema)
    replay, actors = config.replay, config.actors
    if actors.count == 0:
        return
    share = replay.capacity_rows // (actors.count * actors.lanes)
    n_step = longest_n_step(config.learner)
    sequence = replay.sequences.burn_in + replay.sequences.trained
    needed = lane_steps(config, schema)
    if share < needed:
        sequences = f"sequences of {sequence} steps, " if sequence else ""
        raise ConfigError(
            f"a replay of {replay.capacity_rows:,} rows holds {share} time steps of each of {actors.count} x "
            f"{actors.lanes} lanes; {sequences}an n_step of {n_step}, a stack of {schema.stack} and "
            f"{'whole chunks of ' if sequence else ''}actors.chunk_steps {actors.chunk_steps} need {needed}: give "
            f"--replay.capacity-rows at least {needed * actors.count * actors.lanes}, or lower one of them, "
            "--actors.count or --actors.lanes"
        )


def lane_steps(config: RunConfig, schema: Schema) -> int:
    """Returns the time steps that a lane's share of the replay needs: what a transition or a sequence spans, and a
    chunk. Rows of sequences lie lane by lane (replay/ring.py), and chunks are evicted from their first lane on: it
    needs all of the chunks into which a sequence reaches, of which the first may have one of its rows."""
    sequence, chunk = config.replay.sequences, config.actors.chunk_steps
    spanned = sequence.burn_in + sequence.trained + longest_n_step(config.learner) + schema.stack - 1
    return chunk * (1 + math.ceil((spanned - 1) / chunk)) if sequence.trained else spanned + chunk


def check_sequences(config: RunConfig, schema: Schema) -> None:
    """Raises ConfigError for sequences without a recurrent network, or one without sequences, and for chunks so long
    that between their first rows, where the recurrent state is known, rows would be in no sequence."""
    sequences, chunk_steps = config.replay.sequences, config.actors.chunk_steps
    if sequences.trained and not schema.core:
        raise ConfigError(
            f"replay.sequences.trained is {sequences.trained}, and the network keeps no recurrent state that sequences "
            "would be for: give --learner.network.core lstm or gru, or leave replay.sequences out"
        )
    if schema.core and not sequences.trained:
        raise ConfigError(
            f"the network keeps a recurrent state of {schema.core} numbers, and replay.sequences.trained is 0: "
            "transitions are stored without it; give --replay.sequences.trained (and burn_in and overlap), or "
            "--learner.network.core none"
        )
    longest = sequences.longest_chunk_steps
    if sequences.trained and chunk_steps > longest:
        raise ConfigError(
            f"chunks have actors.chunk_steps {chunk_steps} steps, and the recurrent state is stored at the first one: "
            f"with burn_in {sequences.burn_in}, trained {sequences.trained} and overlap {sequences.overlap} of "
            f"replay.sequences more than {longest} would leave steps out; give --actors.chunk-steps {longest} or less, "
            "raise burn_in or trained, or lower overlap"
        )


def check_values(config: RunConfig, schema: Schema, bounds: Bounds, where: str) -> None:
    """Raises ConfigError where a full chunk or the weights are more than a server takes in one value or request."""
    chunk = chunk_bytes(config, schema)
    weights = network_bytes(config, schema) + WEIGHTS_OVERHEAD_BYTES
    for what, nbytes, remedy in (
        (f"a chunk of {chunk_rows(config):,} rows", chunk, "lower --actors.chunk_steps or --actors.lanes"),
        ("the weights", weights, "choose a smaller --learner.network.hidden"),
    ):
        for name, bound in (("proto-max-bulk-len", bounds.value), ("client-query-buffer-limit", bounds.request)):
            if nbytes > bound:
                raise ConfigError(
                    f"{what} would have {nbytes:,} bytes, and {where} takes {bound:,} at the most ({name}); {remedy}, "
                    "or raise it on the server"
                )


def check_limiter(config: RunConfig) -> Limiter:
    """Returns the limiter that the run begins with.

    Raises:
        ConfigError: the replay is too small for its first batch.
    """
    limits = config.replay
    try:
        most = limits.most_steps(config.learner.batch)
        limiter = Limiter(limits.samples_per_insert, limits.min_rows, limits.capacity_rows, most)
        limiter.fit(config.actors.count, chunk_rows(config))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return limiter


def check_more_actors(config: RunConfig, more: int) -> None:
    """Raises ConfigError where this machine has no memory for ``more`` actors than there are."""
    free = available_memory()
    if config.mode != "cluster" and free is not None and more * ACTOR_BYTES > free:
        raise ConfigError(
            f"{more} more actors need {megabytes(more * ACTOR_BYTES)} of memory, {megabytes(free)} are free on this "
            "machine: ask for fewer"
        )


def rows_in_checkpoint(config: RunConfig, schema: Schema) -> bool:
    """Returns whether the replay memory's rows are a part of each checkpoint."""
    replay = config.replay
    return planned_bytes(schema, replay.capacity_rows, replay.sequences) <= config.checkpoint.rows_max_bytes


def chunk_rows(config: RunConfig) -> int:
    """Returns the rows of a full chunk."""
    return config.actors.lanes * config.actors.chunk_steps


def chunk_bytes(config: RunConfig, schema: Schema) -> int:
    """Returns the bytes of a full chunk, which is one value of the server's."""
    return schema.chunk_bytes(chunk_rows(config), config.actors.lanes)


def longest_value_bytes(config: RunConfig, schema: Schema) -> int:
    """Returns twice the longest value that the run sends, a chunk, the weights or the description, and 1 MB."""
    about = 512 * config.actors.count
    return 2 * max(chunk_bytes(config, schema), network_bytes(config, schema), about) + (1 << 20)


def backstop_chunks(config: RunConfig) -> int:
    """Returns MAXLEN of a slot's stream: it never cuts what the mirror may still need, even if all rows came from one
    slot."""
    return 2 * (config.replay.capacity_rows // config.actors.lanes + 1)


def server_bytes(config: RunConfig, schema: Schema) -> int:
    """Returns the memory planned for the embedded server: the log as far as it is kept, what is in flight, a quarter
    more, three copies of the weights, and 32 MB for itself and its connections."""
    in_flight = max(4 * config.actors.count * chunk_rows(config), 2 * check_limiter(config).window_rows)
    rows = config.replay.rows_in_log + in_flight
    lanes = config.actors.lanes
    log = rows * schema.row_bytes + (rows // lanes + 1) * (schema.chunk_bytes(0, lanes) + 200)
    return int(1.25 * log) + 3 * network_bytes(config, schema) + (32 << 20)


def network_bytes(config: RunConfig, schema: Schema) -> int:
    """Returns the bytes of the Q-network's weights, which are broadcast as they are."""
    return 4 * sum(map(math.prod, parameter_shapes(config.learner.network_spec, schema).values()))


def megabytes(nbytes: float) -> str:
    """Returns a number of bytes for messages."""
    return f"{nbytes / 1e6:,.0f} MB"
