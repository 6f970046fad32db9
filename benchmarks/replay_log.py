"""The log through one server and one client: beside TorchRL's storage on Redis, and beside plain SET and GET."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import redis

from benchmarks.feed import Feed
from benchmarks.log_rate import servers
from benchmarks.peers import Peer, medians, seconds_of
from benchmarks.result import Result, alternate
from deploy.server.embedded import EmbeddedServer
from replay.chunk import Codec, Schema
from replay.chunk_log.protocol import ChunkId, Entry
from replay.chunk_log.redis_log import RedisLog

RUN = "replay-log"
STORE_SCHEMA = Schema((65,), "float32", 4)
"""277 bytes per row; TorchRL's own benchmark of its storage has 276: 64 + 4 + 1 floats."""
IN_TARGET, OUT_TARGET = 5.0, 10.0
IMAGE_SCHEMA = Schema((84, 84), "uint8", 18)
IMAGE_ROWS, QUICK_IMAGE_ROWS, PAGED_ROWS = (8, 16, 32, 64, 128, 256, 512), (8, 64), 64
"""Rows of a chunk: 57 kB to 3.6 MB."""
IMAGE_TARGET, SHARE_TARGET = 50_000.0, 0.8
LIVE_BYTES, QUICK_LIVE_BYTES = 32 << 20, 1 << 20
"""What lies in the server at a time, in either form: stream and keys are overwritten, as a full replay memory is."""
PAGE_BYTES = 4 << 20
PAGES = (1 << 20, 4 << 20, 16 << 20, 64 << 20)
SERVER_BYTES = 1 << 30
ROLES = {"admin": "~* &* +@all"}


def measure(quick: bool) -> list[Result]:
    """See the parts."""
    repetitions, live_bytes = (1, QUICK_LIVE_BYTES) if quick else (9, LIVE_BYTES)
    results = store(repetitions, live_bytes)
    for name, binary in servers().items():
        results += images(name, binary, repetitions, QUICK_IMAGE_ROWS if quick else IMAGE_ROWS, live_bytes)
    return results


class Stream:
    """One client's chunks of one size in one server: appended, and read back, as actor and learner do."""

    def __init__(self, url: str, schema: Schema, lanes: int, chunk_steps: int, live_bytes: int, slot: int = 0) -> None:
        self._slot, self._feed = slot, Feed(schema, RUN, slot, lanes, chunk_steps)
        self.rows = self._feed.rows
        self.chunk_bytes = len(self._feed.next()[1])
        self.chunks = max(8, live_bytes // self.chunk_bytes)
        self._log = RedisLog(url, RUN, max_chunks=self.chunks)
        self._codec = Codec(schema, RUN)
        self._last = ChunkId()

    def append(self) -> tuple[float, float]:
        """Seconds per row, of appending alone and with encoding."""
        encode_s = append_s = 0.0
        for _ in range(self.chunks):
            seconds, (self._last, data) = seconds_of(self._feed.next)
            encode_s += seconds
            append_s += seconds_of(partial(self._log.append, self._slot, self._last, data))[0]
        rows = self.chunks * self.rows
        return append_s / rows, (append_s + encode_s) / rows

    def read(self, page_bytes: int = PAGE_BYTES) -> tuple[float, float]:
        """Seconds per row, of reading the newest chunks alone and with decoding and all its checks."""
        cursor, read_s, decode_s, chunks = ChunkId(1, self._last.seq - self.chunks), 0.0, 0.0, 0
        while cursor < self._last:
            seconds, entries = seconds_of(partial(self._log.read, {self._slot: cursor}, page_bytes))
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


def store(repetitions: int, live_bytes: int) -> list[Result]:
    """TorchRL's storage keeps each row's columns in Redis and reads the sampled rows from there, one command or more
    each. Here a row leaves Redis once, with its chunk, and is sampled from the mirror (replay.py) as often as need be.
    """
    with EmbeddedServer(RUN, SERVER_BYTES, roles=ROLES) as server:
        stream = Stream(server.url("admin"), STORE_SCHEMA, 16, 16, live_bytes)
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


def images(name: str, binary: Path, repetitions: int, image_rows: Sequence[int], live_bytes: int) -> list[Result]:
    """Chunks of 84 x 84 images by size, and redis-py's own SET and GET of values of the same size, in turns."""
    with EmbeddedServer(RUN, SERVER_BYTES, binary=binary, roles=ROLES) as server:
        url = server.url("admin")
        with _plain_client(url) as client:
            sizes = [ImageSize(url, client, rows, live_bytes) for rows in image_rows]
            for repetition in range(repetitions + 1):
                for size in sizes:
                    size.take_turns(repetition)
        pages = _pages(sizes[image_rows.index(PAGED_ROWS)].stream, repetitions)
        for size in sizes:
            size.stream.close()
    best = max(sizes, key=lambda size: min(size.rate("append+"), size.rate("read+")))
    note = f"best chunk: {best.stream.rows} rows, {best.stream.chunk_bytes / 1e3:,.0f} kB"
    lines = (note, HEADS, *(size.line() for size in sizes), pages)
    beside = "append and read without the codec, SET and GET by redis-py of the same bytes"
    rates = {way: tuple(some) for way, some in best.rates.items()}
    return [
        Result(f"image rows in, {name}", "rows/s", rates["append+"], target=IMAGE_TARGET, notes=lines),
        Result(f"image rows out, {name}", "rows/s", rates["read+"], target=IMAGE_TARGET, notes=("with all checks",)),
        Result(
            f"image chunks in, {name}", "rows/s", rates["append"], "SET", rates["set"], SHARE_TARGET, notes=(beside,)
        ),
        Result(f"image chunks out, {name}", "rows/s", rates["read"], "GET", rates["get"], SHARE_TARGET),
    ]


WAYS = ("append", "append+", "set", "read", "read+", "get")
HEADS = "rows  kB/chunk    append  encode+a       SET      read  read+dec.     GET  app/SET  rd/GET   (1000 rows/s)"


class ImageSize:
    """One chunk size: its stream, as many keys with as many bytes, and the rows per second of each way."""

    def __init__(self, url: str, client: Any, rows: int, live_bytes: int) -> None:
        lanes = min(rows, 16)
        self.stream = Stream(url, IMAGE_SCHEMA, lanes, rows // lanes, live_bytes, slot=rows)
        self.rates: dict[str, list[float]] = {}
        value = os.urandom(self.stream.chunk_bytes)
        self._keys = [f"key:{rows}:{index}" for index in range(self.stream.chunks)]
        self._ways: dict[str, Callable[[], tuple[float, ...]]] = {
            "append": self.stream.append,
            "set": lambda: self._each(lambda key: client.set(key, value)),
            "read": self.stream.read,
            "get": lambda: self._each(client.get),
        }

    def take_turns(self, repetition: int) -> None:
        """Every way once, in an order that changes; repetition 0 fills the server and counts for nothing."""
        for way in self._ways if repetition % 2 == 0 else reversed(self._ways):
            for kind, seconds in zip((way, f"{way}+"), self._ways[way](), strict=False):
                if repetition:
                    self.rates.setdefault(kind, []).append(1 / seconds)

    def rate(self, way: str) -> float:
        """The median."""
        return float(np.median(self.rates[way]))

    def line(self) -> str:
        """For the table."""
        figures = "  ".join(f"{self.rate(way) / 1e3:8,.0f}" for way in WAYS)
        shares = (self.rate("append") / self.rate("set"), self.rate("read") / self.rate("get"))
        size = f"{self.stream.rows:5}  {self.stream.chunk_bytes / 1e3:8,.0f}"
        return f"{size}  {figures}  {shares[0]:7.2f}  {shares[1]:7.2f}"

    def _each(self, call: Callable[[str], Any]) -> tuple[float]:
        """Seconds per row of ``call`` with each key."""
        seconds, _ = seconds_of(lambda: [call(key) for key in self._keys])
        return (seconds / (len(self._keys) * self.stream.rows),)


def _plain_client(url: str) -> Any:
    """redis-py's client with RedisLog's buffer, so that only the commands differ."""
    return redis.Redis.from_url(url, protocol=2, socket_read_size=1 << 20)


def _pages(stream: Stream, repetitions: int) -> str:
    """Reading by the size of a page."""
    rates: dict[int, list[float]] = {page: [] for page in PAGES}
    for _ in range(repetitions):
        for page in PAGES:
            rates[page].append(1 / stream.read(page)[0])
    sizes = ", ".join(f"{page >> 20} MB: {np.median(some) / 1e3:,.0f}" for page, some in rates.items())
    return f"read by the size of a page, chunks of {stream.rows} rows, 1000 rows/s: {sizes}"
