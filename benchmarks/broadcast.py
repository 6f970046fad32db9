"""What broadcasting big weights costs: one server, a learner that publishes, and N actors that fetch once a second.

Each actor is a process of its own and does what qherd's actors do with new weights: fetch, check, unpack, load. Beside
them one more appends chunks, to see what the server makes them wait. ``python -m benchmarks.broadcast --help``
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing as mp
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.result import Result, show
from deploy.server.embedded import EmbeddedServer

RUN = "broadcast"
MEGABYTES, COUNTS, SECONDS = 20.0, (0, 1, 4, 8, 16, 32), 15.0
QUICK_MEGABYTES, QUICK_COUNTS, QUICK_S = 1.0, (0, 1), 3.0
FETCH_EVERY_S, PUBLISH_EVERY_S = 1.0, 0.5
CHUNK_BYTES, APPEND_EVERY_S = 8_000, 0.01
LIMIT = 0.1
"""Share of an actor's time that fetching may take: more, and one fetch per node would be worth its complexity."""


class Cost(NamedTuple):
    """With so many actors: seconds of each fetch, loading included; the server's share of a core; bytes per second that
    were fetched; seconds of each append meanwhile."""

    actors: int
    fetches_s: tuple[float, ...]
    server_share: float
    bytes_per_s: float
    appends_s: tuple[float, ...]


def measure(quick: bool) -> list[Result]:
    """What a fetch of 20 MB takes with 16 actors."""
    if quick:
        return results(sweep(QUICK_COUNTS, QUICK_MEGABYTES, QUICK_S), QUICK_MEGABYTES)
    return results(sweep(COUNTS, MEGABYTES, SECONDS), MEGABYTES)


def results(costs: Sequence[Cost], megabytes: float) -> list[Result]:
    """Of the most actors, with a line for each number of them."""
    most = costs[-1]
    name = f"{most.actors} actors fetch {megabytes:g} MB of weights: time of a fetch"
    notes = (*map(line, costs), verdict(costs, megabytes))
    return [Result(name, "ms", tuple(1e3 * took for took in most.fetches_s), at_most=True, notes=notes)]


def line(cost: Cost) -> str:
    """One number of actors in words."""
    appends = sorted(cost.appends_s)
    waits = f"an append {1e3 * median(appends):.2f} ms, at most {1e3 * appends[-1]:.0f} ms" if appends else "no append"
    if not cost.fetches_s:
        return f"{cost.actors} actors: the server {cost.server_share:.0%} of a core; {waits}"
    share = median(cost.fetches_s) / (FETCH_EVERY_S + median(cost.fetches_s))
    return (
        f"{cost.actors} actors: a fetch {1e3 * median(cost.fetches_s):.0f} ms (to {1e3 * max(cost.fetches_s):.0f}), "
        f"{share:.0%} of an actor's time; {cost.bytes_per_s / 1e6:,.0f} MB/s, the server {cost.server_share:.0%} of a "
        f"core; {waits}"
    )


def verdict(costs: Sequence[Cost], megabytes: float) -> str:
    """At which size it would matter: the time of a fetch grows with the bytes."""
    most = costs[-1]
    each_s = median(most.fetches_s)
    size = megabytes * LIMIT * FETCH_EVERY_S / each_s
    gigabit = 1e9 / 8 / (most.actors * 1e6) * FETCH_EVERY_S
    return (
        f"fetching takes {LIMIT:.0%} of {most.actors} actors' time on this machine at {size:.0f} MB, with one fetch "
        f"per {FETCH_EVERY_S:g} s; a link of 1 Gbit/s is full at {gigabit:.1f} MB, one of 10 at "
        f"{10 * gigabit:.0f} MB; each grows with actors.fetch_every_s"
    )


def sweep(counts: Sequence[int], megabytes: float, seconds: float) -> list[Cost]:
    """Each number of actors in turn, told as it comes."""
    costs = []
    for count in counts:
        costs.append(cost(count, megabytes, seconds))
        print(f"  {line(costs[-1])} (load average {os.getloadavg()[0]:.1f})", flush=True)
    return costs


def cost(actors: int, megabytes: float, seconds: float) -> Cost:
    """One number of actors."""
    from learner.publisher import Publisher
    from replay.chunk_log.redis_log import RedisLog

    arrays = layers(megabytes)
    with EmbeddedServer(RUN, 1 << 30) as server, contextlib.ExitStack() as stack:
        publisher = Publisher(RedisLog(server.url("learner"), RUN), fence=1)
        publisher.start()
        stack.callback(publisher.stop)
        publish(publisher, arrays, 1)
        context = mp.get_context("spawn")
        found: Any = context.Queue()
        ready = context.Barrier(actors + 2)
        url = server.url("actor")
        jobs = [(fetch, (url, seconds, ready, found)) for _ in range(actors)] + [(append, (url, seconds, ready, found))]
        processes = [context.Process(target=work, args=arguments, daemon=True) for work, arguments in jobs]
        for process in processes:
            process.start()
        ready.wait(300)
        began, cpu_s, published = time.monotonic(), cpu_seconds(server.pid), 1
        while (now := time.monotonic()) < began + seconds:
            if now - began > published * PUBLISH_EVERY_S:
                published += 1
                publish(publisher, arrays, published)
            time.sleep(0.01)
        share = (cpu_seconds(server.pid) - cpu_s) / (time.monotonic() - began)
        answers = [found.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(10)
    fetches = tuple(took for kind, times, _ in answers if kind == "fetch" for took in times)
    appends = tuple(took for kind, times, _ in answers if kind == "append" for took in times)
    return Cost(actors, fetches, share, sum(nbytes for _, _, nbytes in answers) / seconds, appends)


def publish(publisher: Any, arrays: dict[str, Any], count: int) -> None:
    """As the learner does: pack in its thread, send in another."""
    from learner.weights import pack, version

    publisher.set(b"", pack(version(1, count), 0, 0, arrays))


def layers(megabytes: float) -> dict[str, Any]:
    """Weights of a network with two big layers, of so many bytes in all."""
    width = int((megabytes * 1e6 / 4 / 2) ** 0.5)
    rng, arrays = np.random.default_rng(0), dict[str, Any]()
    for name in ("encoder.layers.0", "head.linear"):
        arrays[f"{name}.weight"] = rng.normal(size=(width, width)).astype(np.float32)
        arrays[f"{name}.bias"] = np.zeros(width, np.float32)
    return arrays


def fetch(url: str, seconds: float, ready: Any, found: Any) -> None:
    """An actor's part: ask for the header, fetch what is newer, check and load it, at most once a second."""
    from actors.policy import make_policy
    from learner.networks import NetworkSpec
    from learner.weights import unpack
    from replay.chunk import Schema
    from replay.chunk_log.redis_log import RedisLog

    policy = make_policy(NetworkSpec(), Schema((8,), "float32", 4))
    log, version, nbytes, took = RedisLog(url, RUN), 0, 0, list[float]()
    ready.wait(300)
    for began in paced(seconds, FETCH_EVERY_S):
        header = log.status(0).weights
        if header is None or header.version <= version:
            continue
        value = log.fetch_weights()
        assert value is not None
        fetched, arrays = unpack(value)
        policy.load(arrays)
        version, nbytes = fetched.version, nbytes + len(value)
        took.append(time.monotonic() - began)
    found.put(("fetch", took, nbytes))


def append(url: str, seconds: float, ready: Any, found: Any) -> None:
    """An actor that only sends chunks."""
    from replay.chunk_log.protocol import ChunkId
    from replay.chunk_log.redis_log import RedisLog

    log, data, took = RedisLog(url, RUN, max_chunks=64), b"\0" * CHUNK_BYTES, list[float]()
    ready.wait(300)
    for seq, began in enumerate(paced(seconds, APPEND_EVERY_S), start=1):
        log.append(0, ChunkId(1, seq), data)
        took.append(time.monotonic() - began)
    found.put(("append", took, 0))


def paced(seconds: float, every_s: float) -> Iterator[float]:
    """The time, every so often, from a random moment within the first period on."""
    end = time.monotonic() + seconds
    time.sleep(every_s * np.random.default_rng().random())
    while (now := time.monotonic()) < end:
        yield now
        time.sleep(max(0.0, now + every_s - time.monotonic()))


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """The command of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=list(COUNTS), help="how many fetch, run by run")
    parser.add_argument("--megabytes", type=float, default=MEGABYTES, help="size of the weights")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each run")
    options = parser.parse_args()
    show(results(sweep(options.actors, options.megabytes, options.seconds), options.megabytes))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
