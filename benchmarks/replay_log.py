"""The log through one server and one client: beside TorchRL's storage on Redis, and beside plain SET and GET."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
import redis

from benchmarks.feed import Feed
from benchmarks.log_rate import servers
from benchmarks.peers import Peer, medians, seconds_of
from benchmarks.result import Result, alternate
from deploy.valkey import EmbeddedServer
from replay.chunk import Codec, Schema
from replay.log import ChunkId, Entry
from replay.redis_log import RedisLog

RUN = "replay-log"
STORE_SCHEMA = Schema((65,), "float32", 4)
"""277 bytes per row; TorchRL's own benchmark of its storage has 276: 64 + 4 + 1 floats."""
IN_TARGET, OUT_TARGET = 5.0, 10.0
IMAGE_SCHEMA = Schema((84, 84), "uint8", 18)
IMAGE_ROWS = (8, 16, 32, 64, 128, 256, 512)
"""Rows of a chunk: 57 kB to 3.6 MB."""
IMAGE_TARGET, SHARE_TARGET = 50_000.0, 0.8
LIVE_BYTES = 32 << 20
"""What lies in the server at a time, in either form: stream and keys are overwritten, as a full replay memory is."""
PAGE_BYTES = 4 << 20
PAGES = (1 << 20, 4 << 20, 16 << 20, 64 << 20)
SERVER_BYTES = 512 << 20
ROLES = {"admin": "~* &* +@all"}


def measure(quick: bool) -> list[Result]:
    """See the parts."""
    repetitions = 3 if quick else 9
    results = store(repetitions)
    for name, binary in servers().items():
        results += images(name, binary, repetitions)
    return results


class Stream:
    """One client's chunks of one size in one server: appended, and read back, as actor and learner do."""

    def __init__(self, url: str, schema: Schema, lanes: int, chunk_steps: int) -> None:
        self._feed = Feed(schema, RUN, lanes=lanes, chunk_steps=chunk_steps)
        self.rows = self._feed.rows
        self.chunk_bytes = len(self._feed.next()[1])
        self.chunks = max(8, LIVE_BYTES // self.chunk_bytes)
        self._log = RedisLog(url, RUN, max_chunks=self.chunks)
        self._codec = Codec(schema, RUN)
        self._last = ChunkId()

    def append(self) -> tuple[float, float]:
        """Seconds per row, of appending alone and with encoding."""
        encode_s = append_s = 0.0
        for _ in range(self.chunks):
            seconds, (self._last, data) = seconds_of(self._feed.next)
            encode_s += seconds
            append_s += seconds_of(partial(self._log.append, 0, self._last, data))[0]
        rows = self.chunks * self.rows
        return append_s / rows, (append_s + encode_s) / rows

    def read(self, page_bytes: int = PAGE_BYTES) -> tuple[float, float]:
        """Seconds per row, of reading the newest chunks alone and with decoding and all its checks."""
        cursor, read_s, decode_s, chunks = ChunkId(1, self._last.seq - self.chunks), 0.0, 0.0, 0
        while cursor < self._last:
            seconds, entries = seconds_of(partial(self._log.read, {0: cursor}, page_bytes))
            read_s += seconds
            decode_s += seconds_of(partial(self._decode, entries))[0]
            cursor, chunks = entries[-1].id, chunks + len(entries)
        rows = chunks * self.rows
        return read_s / rows, (read_s + decode_s) / rows

    def _decode(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._codec.decode(entry.data, entry.slot, *entry.id)

    def close(self) -> None:
        """Give up the connection."""
        self._log.close()


def store(repetitions: int) -> list[Result]:
    """TorchRL's storage keeps each row's columns in Redis and reads the sampled rows from there, one command or more
    each. Here a row leaves Redis once, with its chunk, and is sampled from the mirror (replay.py) as often as need be.
    """
    with EmbeddedServer(RUN, SERVER_BYTES, roles=ROLES) as server:
        stream = Stream(server.url("admin"), STORE_SCHEMA, lanes=16, chunk_steps=16)
        place = urlsplit(server.url("admin"))
        setting = {"socket": unquote(place.path), "user": place.username, "password": place.password}
        with Peer("torchrl", **setting) as torchrl:
            into = alternate(
                lambda: 1 / medians(stream.append, 3)[1], lambda: 1 / torchrl.seconds("insert", 10)[0], repetitions
            )
            out = alternate(
                lambda: 1 / medians(stream.read, 3)[1], lambda: 1 / torchrl.seconds("sample", 20)[0], repetitions
            )
        stream.close()
    note = f"{STORE_SCHEMA.row_bytes}-byte rows in chunks of {stream.rows}; TorchRL's: 276-byte rows"
    ours_in, ours_out = f"{note}, extend of 500; encoding included", f"{note}, sample of 256; checks included"
    return [
        Result("rows into the server", "rows/s", into[0], torchrl.about, into[1], IN_TARGET, notes=(ours_in,)),
        Result("rows out of the server", "rows/s", out[0], torchrl.about, out[1], OUT_TARGET, notes=(ours_out,)),
    ]


class Row(NamedTuple):
    """One chunk size: rows per second of each way, one figure per repetition."""

    rows: int
    chunk_bytes: int
    rates: dict[str, tuple[float, ...]]

    def rate(self, way: str) -> float:
        """The median."""
        return float(np.median(self.rates[way]))

    def line(self) -> str:
        """For the table."""
        figures = "  ".join(f"{self.rate(way) / 1e3:8,.0f}" for way in WAYS)
        shares = (self.rate("append") / self.rate("set"), self.rate("read") / self.rate("get"))
        return f"{self.rows:5}  {self.chunk_bytes / 1e3:8,.0f}  {figures}  {shares[0]:7.2f}  {shares[1]:7.2f}"


WAYS = ("append", "append+", "set", "read", "read+", "get")
HEADS = "rows  kB/chunk    append  encode+a       SET      read  read+dec.     GET  app/SET  rd/GET   (1000 rows/s)"


def images(name: str, binary: Path, repetitions: int) -> list[Result]:
    """Chunks of 84 x 84 images by size, and redis-py's own SET and GET of values of the same size, in turns."""
    with EmbeddedServer(RUN, SERVER_BYTES, binary=binary, roles=ROLES) as server:
        table = [_image_row(server.url("admin"), rows, repetitions) for rows in IMAGE_ROWS]
        pages = _pages(server.url("admin"), repetitions)
    best = max(table, key=lambda row: min(row.rate("append+"), row.rate("read+")))
    size = f"best chunk: {best.rows} rows, {best.chunk_bytes / 1e3:,.0f} kB"
    lines = (size, HEADS, *(row.line() for row in table), pages)
    beside = "append and read without the codec, SET and GET by redis-py of the same bytes"
    rates = best.rates
    return [
        Result(f"image rows in, {name}", "rows/s", rates["append+"], target=IMAGE_TARGET, notes=lines),
        Result(f"image rows out, {name}", "rows/s", rates["read+"], target=IMAGE_TARGET, notes=("with all checks",)),
        Result(
            f"image chunks in, {name}", "rows/s", rates["append"], "SET", rates["set"], SHARE_TARGET, notes=(beside,)
        ),
        Result(f"image chunks out, {name}", "rows/s", rates["read"], "GET", rates["get"], SHARE_TARGET),
    ]


def _image_row(url: str, rows: int, repetitions: int) -> Row:
    lanes = min(rows, 16)
    stream = Stream(url, IMAGE_SCHEMA, lanes, rows // lanes)
    client, value = _plain_client(url), os.urandom(stream.chunk_bytes)
    ways: dict[str, Callable[[], tuple[float, ...]]] = {
        "append": stream.append,
        "set": lambda: _each(stream, lambda key: client.set(key, value)),
        "read": stream.read,
        "get": lambda: _each(stream, client.get),
    }
    for call in ways.values():
        call()
    found: dict[str, list[float]] = {}
    for repetition in range(repetitions):
        for way in ways if repetition % 2 else reversed(ways):
            for kind, seconds in zip((way, f"{way}+"), ways[way](), strict=False):
                found.setdefault(kind, []).append(1 / seconds)
    stream.close()
    client.flushall()
    client.close()
    return Row(rows, stream.chunk_bytes, {way: tuple(rates) for way, rates in found.items()})


def _each(stream: Stream, call: Callable[[str], Any]) -> tuple[float]:
    """Seconds per row of ``call`` with each of as many keys as the stream holds chunks."""
    keys = [f"key:{index}" for index in range(stream.chunks)]
    seconds, _ = seconds_of(lambda: [call(key) for key in keys])
    return (seconds / (stream.chunks * stream.rows),)


def _plain_client(url: str) -> Any:
    """redis-py's client with RedisLog's buffer, so that only the commands differ."""
    return redis.Redis.from_url(url, protocol=2, socket_read_size=1 << 20)


def _pages(url: str, repetitions: int) -> str:
    """Reading by the size of a page, chunks of 64 images."""
    stream = Stream(url, IMAGE_SCHEMA, lanes=16, chunk_steps=4)
    stream.append()
    stream.read()
    rates: dict[int, list[float]] = {page: [] for page in PAGES}
    for _ in range(repetitions):
        for page in PAGES:
            rates[page].append(1 / stream.read(page)[0])
    stream.close()
    sizes = ", ".join(f"{page >> 20} MB: {np.median(some) / 1e3:,.0f}" for page, some in rates.items())
    return f"read by the size of a page, chunks of 64 rows, 1000 rows/s: {sizes}"
