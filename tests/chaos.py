"""``make chaos``: a real ``local`` run on LunarLander whose parts are killed, frozen and cut off while it trains.

Faults of all kinds come in a random order that a seed decides, one to three of them at once, the next ones as soon as
the run works again, until there are enough of them. Some destroy rows: unread chunks die with their server, chunks are
spoilt on their way, a stranger appends to an actor's stream, files are torn. Between them, and in the end, what has to
hold is checked: the run goes on or comes back, weights never go back on the server or in the curves, the conservation
law is exact, what was destroyed is counted by its reason, nothing is left behind. Exit code 1 where any of it fails.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import redis
from cli_runs import Run, running
from proxy import Proxy
from rich.console import Console
from rich.table import Table

from learner.checkpoint import names, read
from replay.chunk import REFUSALS
from replay.chunk_log.protocol import WEIGHTS_HEADER_BYTES, LogError, WeightsHeader
from replay.chunk_log.redis_log import RedisLog
from replay.description import RunDescription
from replay.ledger import LOSSES

NAME = "chaos"
WORKERS = {"actor": "ray::ActorWorker", "learner": "ray::LearnerWorker", "evaluator": "ray::EvaluatorWorker"}
SERVER = r"valkey-server|redis-server"
TOGETHER = 3
"""So many faults come at once, at the most."""
RECOVER_S = 90.0
"""The longest back-off is 22 s, and a busy machine takes its time to start processes."""
APPENDS_S = 10.0
"""An actor whose appends are not seen for so long is connected past the proxy: its server was restarted just now."""
OPTIONS = ("--actors.restarts", "1000", "--checkpoint.every-s", "3", "--eval.threshold", "None")


@dataclass
class Faults:
    """How often each was injected, and how long the run took to work again."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(map(len, self.seconds.values()))

    def table(self) -> Table:
        table = Table(
            "fault", "injected", "survived", "seconds until it worked again, with those beside it (median, worst)"
        )
        for name, seconds in sorted(self.seconds.items()):
            table.add_row(name, str(len(seconds)), str(len(seconds)), f"{median(seconds):.1f}, {max(seconds):.1f}")
        table.add_section()
        table.add_row("all", str(self.count), str(self.count), "")
        return table


class Watcher:
    """Looks at the weights on the server all the time: no reader may ever see a version lower than one before."""

    def __init__(self, url: Callable[[], str | None]) -> None:
        self._url, self._over = url, threading.Event()
        self.newest, self.looks = 0, 0
        self.went_back: list[tuple[int, int]] = []
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            with contextlib.suppress(redis.RedisError, OSError):
                self._look(self._url())

    def _look(self, url: str | None) -> None:
        if url is None:
            return
        with redis.Redis.from_url(url, socket_timeout=1.0) as client:
            while not self._over.wait(0.02):
                value: Any = client.getrange(f"qherd:{NAME}:weights", 0, WEIGHTS_HEADER_BYTES - 1)
                if (header := WeightsHeader.unpack(value)) is not None:
                    self.looks += 1
                    if header.version < self.newest:
                        self.went_back.append((self.newest, header.version))
                    self.newest = max(self.newest, header.version)

    def stop(self) -> None:
        self._over.set()
        self._thread.join(10)


class Chaos:
    """One run, from its start to its end, over all the drivers that it takes."""

    def __init__(self, cwd: Path, seed: int, say: Callable[[str], None]) -> None:
        self._cwd, self._rng, self._say = cwd, random.Random(seed), say
        self._seed = seed
        self._stack = contextlib.ExitStack()
        self._network = contextlib.ExitStack()
        self._proxy: Proxy | None = None
        self._proxied: tuple[int, int] | None = None  # the proxy's own socket
        self._behind: Path | None = None
        self._sockets = itertools.count()
        self.faults = Faults()
        self.leftovers: list[str] = []
        self.destroyed: Counter[str] = Counter()
        self.watcher = Watcher(self._url)
        self._stack.callback(self.watcher.stop)
        self._stack.callback(self._network.close)
        self.run = self._start("train", "LunarLander-v3", "--run", NAME, "--seed", str(seed), *OPTIONS)

    # -- the run

    def _start(self, *command: str) -> Run:
        """A driver; a proxy is put between it and its server as soon as there is one."""
        self._network.close()
        self._proxied = self._proxy = None
        return self._stack.enter_context(running(*command, cwd=self._cwd))

    def wait_until_it_works(self, since_s: float, what: str) -> None:
        """Until rows behind ``since_s`` show updates and env steps going on, with all actors alive."""
        self._until(lambda: self._works(since_s), what)

    @property
    def folder(self) -> Path:
        return self._cwd / "runs" / NAME

    def _url(self) -> str | None:
        path = self.folder / "replay.url"
        return path.read_text() if path.exists() else None

    def _rows(self) -> list[dict[str, Any]]:
        return self.run.rows(NAME)

    def _wall_s(self) -> float:
        rows = self._rows()
        return float(rows[-1]["wall_s"]) if rows else -1.0

    def _works(self, since_s: float) -> bool:
        self._put_proxy_between()
        rows = [row for row in self._rows() if row["wall_s"] > since_s]
        first, last = (rows[0], rows[-1]) if rows else ({}, {})
        grown = all(last.get(name, 0) > first.get(name, 0) for name in ("updates", "env_steps"))
        return grown and last["actors_alive"] == 2 and not last["servers_down"]

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        self.run.until(condition, RECOVER_S, what)

    def _pid(self, part: str) -> int:
        """A process of this part; waits for one that is being started."""
        found: list[int] = []

        def there() -> bool:
            found[:] = self.run.find(SERVER if part == "server" else WORKERS[part])
            return bool(found)

        self._until(there, part)
        return self._rng.choice(sorted(found))

    def _socket(self) -> Path:
        """The server's own, without the proxy."""
        assert self._behind is not None
        return self._behind

    def _put_proxy_between(self) -> None:
        """Take the server's socket away and listen there; who connects from now on comes through the proxy. A server
        that was restarted makes its socket anew, some time after its process is there."""
        sockets = [path for path in self.run.tmp.glob("qherd-*/server.sock") if _answers(path)]
        if not sockets or _made(sockets[0]) == self._proxied:
            return
        self._network.close()
        number = next(self._sockets)
        behind, before = (sockets[0].with_name(f"{letter}{number}") for letter in "sp")
        with contextlib.suppress(OSError):  # the server died just now
            os.link(sockets[0], behind)
            self._proxy = self._network.enter_context(Proxy(f"unix://{behind}", before))
            before.rename(sockets[0])  # at no moment is there none that answers: a driver that starts asks once
            self._proxied, self._behind = _made(sockets[0]), behind

    # -- faults

    def kill(self, part: str) -> None:
        os.kill(self._pid(part), signal.SIGKILL)

    def freeze(self, part: str, longest_s: float = 8.0) -> None:
        pid = self._pid(part)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self._rng.uniform(0.5, longest_s))
            os.kill(pid, signal.SIGCONT)

    def cut(self) -> None:
        """Connections end in the middle of replies, all of them, several times."""
        for _ in range(3):
            if self._proxy is not None:
                self._proxy.cut_reply_after(self._rng.randrange(1, 40))
                time.sleep(0.2)
                self._proxy.hang_up()

    def stall(self) -> None:
        if self._proxy is not None:
            self._proxy.stalled = True
            time.sleep(self._rng.uniform(1.0, 7.0))
            self._proxy.stalled = False

    def lose_unread_rows(self) -> None:
        """The server dies with chunks that a stopped learner has not read."""
        pid = self._pid("learner")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(1.5)
            self.kill("server")
            os.kill(pid, signal.SIGCONT)
        self.destroyed["unread"] += 1

    def spoil(self) -> None:
        """A bit of one chunk flips on its way to the server."""
        proxy, refused = self._proxy_with_appends(), self._refused()
        proxy.spoil, before = 1, proxy.spoilt
        self._until(lambda: proxy.spoilt > before, "append to spoil")
        self._await_refusal(refused, "spoilt")

    def intrude(self) -> None:
        """Whoever has an actor's password appends garbage to its stream, under an id that the actor has yet to reach:
        the actor is fenced off by it, and restarted."""
        proxy, refused = self._proxy_with_appends(), self._refused()
        with redis.Redis(
            unix_socket_path=str(self._socket()), username="actor", password=proxy.passwords["actor"], protocol=2
        ) as client:
            stream, entry_id = self._unreached(client)
            client.xadd(stream, {"c": self._rng.randbytes(200)}, id=entry_id)
        self._await_refusal(refused, "foreign")

    def _proxy_with_appends(self) -> Proxy:
        """The proxy, with an actor's appends going through it; an actor that lives all the while and is connected past
        it is killed, since its next incarnation connects anew."""
        appending: list[Proxy] = []

        def there() -> bool:
            self._put_proxy_between()
            proxy, living = self._proxy, set(self.run.find(WORKERS["actor"]))
            if proxy is None or not living:
                return False
            before, end = proxy.appends, time.monotonic() + APPENDS_S
            while time.monotonic() < end and proxy is self._proxy:
                if proxy.appends > before and "actor" in proxy.passwords:
                    appending.append(proxy)
                    return True
                self._put_proxy_between()
                time.sleep(0.05)
            if proxy is self._proxy and (lasting := living & set(self.run.find(WORKERS["actor"]))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._rng.choice(sorted(lasting)), signal.SIGKILL)
            return False

        self._until(there, "actor whose appends go through the proxy")
        return appending[0]

    def _unreached(self, client: Any) -> tuple[str, str]:
        """The stream of an actor, and an id that it has not reached yet."""
        stream = f"qherd:{NAME}:chunks:{self._rng.randrange(2)}"
        last = ""

        def there() -> bool:
            nonlocal last
            with contextlib.suppress(redis.RedisError):  # a server that restarted has no streams yet
                last = client.xinfo_stream(stream)["last-generated-id"].decode()
            return bool(last)

        self._until(there, "stream")
        incarnation, _, seq = last.partition("-")
        return stream, f"{incarnation}-{int(seq) + 7}"

    def _refused(self) -> int:
        """Chunks that the run's learner has refused, over all its slots, as it describes the run."""
        count = -1

        def there() -> bool:
            nonlocal count
            with contextlib.suppress(redis.RedisError, OSError, LogError):
                if url := self._url():
                    with contextlib.closing(RedisLog(url, NAME, timeout_s=1.0)) as log:
                        about = RunDescription.unpack(log.description() or b"")
                    count = sum(sum(slot.refused.values()) for slot in about.slots.values())
            return count >= 0

        self._until(there, "description of the run")
        return count

    def _await_refusal(self, before: int, what: str) -> None:
        self._until(lambda: self._refused() > before, f"refusal of a {what} chunk")
        self.destroyed[what] += 1

    def kill_driver(self) -> None:
        self.run.process.kill()
        self.run.process.wait()
        self.run = self._start("resume", f"runs/{NAME}")

    def damage_and_kill_driver(self) -> None:
        """A byte of the newest checkpoint flips: the one before it is loaded."""
        self.run.process.kill()
        self.run.process.wait()
        self._until_dead("learner")  # which may be writing one
        folder = self.folder / "checkpoints"
        if len(found := names(folder)) > 1:
            victim = self._rng.choice(sorted((folder / str(found[0])).iterdir()))
            data = bytearray(victim.read_bytes())
            data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
            victim.write_bytes(data)
        self.run = self._start("resume", f"runs/{NAME}")
        if len(found) > 1:
            self._until(lambda: "is passed over" in self.run.out, "word of the damaged checkpoint")

    def tear_and_kill_driver(self) -> None:
        """Files end in the middle, as a full or dying disk leaves them: the newest checkpoint's, and the curves'."""
        self.run.process.kill()
        self.run.process.wait()
        self._until_dead("learner")
        folder = self.folder / "checkpoints"
        if len(found := names(folder)) > 1:
            victim = self._rng.choice(sorted((folder / str(found[0])).iterdir()))
            os.truncate(victim, self._rng.randrange(victim.stat().st_size))
        with (self.folder / "metrics.jsonl").open("a") as curves:
            curves.write('{"wall_s": 12')
        self.run = self._start("resume", f"runs/{NAME}")
        if len(found) > 1:
            self._until(lambda: "is passed over" in self.run.out, "word of the torn checkpoint")

    def _until_dead(self, part: str) -> None:
        end = time.monotonic() + RECOVER_S
        while self.run.find(WORKERS[part]):
            assert time.monotonic() < end, f"the {part} outlives its driver"
            time.sleep(0.05)

    def stop_driver(self) -> None:
        self._stop_in_order()
        self.run = self._start("resume", f"runs/{NAME}")

    def _stop_in_order(self) -> None:
        self.run.process.send_signal(self._rng.choice((signal.SIGTERM, signal.SIGINT)))
        done = self.run.finish(25)
        assert done.code == 75, done
        self._note_leftovers(done.leftovers)

    def _note_leftovers(self, processes: list[str]) -> None:
        self.leftovers += [*processes, *map(str, self.run.tmp.iterdir())]

    def kinds(self) -> dict[str, Callable[[], None]]:
        """Every fault by its name."""
        return {
            "actor killed": lambda: self.kill("actor"),
            "actor frozen": lambda: self.freeze("actor"),
            "evaluator killed": lambda: self.kill("evaluator"),
            "learner killed": lambda: self.kill("learner"),
            "learner frozen": lambda: self.freeze("learner"),
            "server killed": lambda: self.kill("server"),
            "server frozen": lambda: self.freeze("server"),
            "connections cut": self.cut,
            "network stalled": self.stall,
            "server killed with unread rows": self.lose_unread_rows,
            "chunk spoilt": self.spoil,
            "garbage in an actor's stream": self.intrude,
            **self._of_the_driver(),
        }

    def _of_the_driver(self) -> dict[str, Callable[[], None]]:
        """Faults that end the driver: each is alone."""
        return {
            "driver killed, resumed": self.kill_driver,
            "checkpoint damaged, driver killed, resumed": self.damage_and_kill_driver,
            "files torn, driver killed, resumed": self.tear_and_kill_driver,
            "driver stopped, resumed": self.stop_driver,
        }

    def _groups(self, only: Sequence[str]) -> Iterator[list[str]]:
        """For ever each kind (or ``only`` some) once in a random order, as groups of what comes at once; of the kinds
        that end the driver, which take the longest to recover from, two in each turn."""
        wanted = [name for name in self.kinds() if not only or name in only]
        alone = [name for name in wanted if name in self._of_the_driver()]
        while True:
            turn = [name for name in wanted if name not in alone] + self._rng.sample(alone, min(2, len(alone)))
            group: list[str] = []
            for name in self._rng.sample(turn, len(turn)):
                if name in alone:
                    yield [name]
                    continue
                group.append(name)
                if len(group) >= self._rng.randint(1, TOGETHER):
                    yield group
                    group = []
            if group:
                yield group

    def inject(self, least: int, deadline_s: float, only: Sequence[str] = ()) -> None:
        """At least ``least`` faults, each kind (or ``only`` some) in turn in a random order, while there is time."""
        end = time.monotonic() + deadline_s
        self.wait_until_it_works(-1.0, "start")
        for group in self._groups(only):
            wall_s, started = self._wall_s(), time.monotonic()
            for name in group:
                self.kinds()[name]()
            self.wait_until_it_works(wall_s, f"recovery from: {', '.join(group)}")
            took_s = time.monotonic() - started
            for name in group:
                self.faults.seconds.setdefault(name, []).append(took_s)
            self._say(f"{self.faults.count:3d}  {', '.join(group)}: works again after {took_s:.1f} s")
            if self.faults.count >= least:
                return
            assert time.monotonic() < end, f"only {self.faults.count} faults in {deadline_s:.0f} s"

    def close(self) -> None:
        """End everything, however it went."""
        self._stack.close()

    # -- what has to hold

    def finish(self) -> dict[str, Any]:
        """End the run in order and look at all of it; the findings."""
        before = self._rows()[-1]
        self._network.close()
        self._stop_in_order()
        self.watcher.stop()
        rows = self._all_rows()
        versions = [row["weight_version"] for row in rows]
        newest = names(self.folder / "checkpoints")[0]
        books = read(self.folder / "checkpoints", newest)["reader"].values
        returns = [row["greedy_return"] for row in rows if "greedy_return" in row]
        return {
            "updates": newest.updates,
            "env_steps": newest.env_steps,
            "updates_before_the_end": before["updates"],
            "first_return": rows[-1].get("first_greedy_return"),
            "best_return": max(returns, default=None),
            "newest_return": returns[-1] if returns else None,
            "rows_lost": books["totals"]["rows_lost"],
            "refused": books["totals"]["refused"],
            "slots": {slot: _books(each) for slot, each in books["slots"].items()},
            "destroyed": dict(self.destroyed),
            "learners_killed": len(self.faults.seconds.get("learner killed", ())),
            "versions_in_curves_rise": versions == sorted(versions),
            "versions_on_server_went_back": self.watcher.went_back,
            "looks_at_server": self.watcher.looks,
            "restarts": {name: int(rows[-1].get(name, 0)) for name in rows[-1] if name.endswith("restarts")},
            "leftovers": self.leftovers,
        }

    def _all_rows(self) -> list[dict[str, Any]]:
        """Also those behind checkpoints that were resumed from, in the order in which they came."""
        superseded = self.folder / "metrics.superseded.jsonl"
        lines = superseded.read_text().splitlines() if superseded.exists() else []
        rows = self._rows()
        for line in lines:
            with contextlib.suppress(ValueError):  # the driver was killed in it
                rows.append(json.loads(line))
        return sorted(rows, key=lambda row: float(row["wall_s"]))


def _made(path: Path) -> tuple[int, int] | None:
    """Which file a path is at present; None where there is none."""
    with contextlib.suppress(OSError):
        about = path.stat()
        return about.st_ino, about.st_ctime_ns
    return None


def _answers(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        return True
    return False


def _books(slot: dict[str, Any]) -> dict[str, int]:
    """A slot's rows as the newest checkpoint counts them: of its newest incarnation, and of all of them."""
    totals = slot["totals"]
    return {
        "read": slot["rows_read"],
        "lost": slot["rows_lost"],
        "sent": slot["counters"][1],
        "ever read": totals["rows"],
        "ever lost": sum(totals["rows_lost"].values()),
        "ever sent": slot["past"][1] + slot["counters"][1],
    }


def check(found: dict[str, Any]) -> list[str]:
    """What does not hold of what has to; empty where all does."""
    law = {
        slot: rows
        for slot, rows in found["slots"].items()
        if not rows["ever sent"]
        or rows["read"] + rows["lost"] != rows["sent"]
        or rows["ever read"] + rows["ever lost"] != rows["ever sent"]
    }
    solved = (found["best_return"] or -1e9) >= 200
    learning = found["best_return"] is not None and found["best_return"] > found["first_return"]
    destroyed, lost, refused = found["destroyed"], found["rows_lost"], found["refused"]
    restarts = found["restarts"].get("learner_restarts", 0)
    wrong = {
        f"neither solved nor learning: {found['first_return']} to {found['best_return']}": not (solved or learning),
        f"conservation law broken, or nothing sent: {law}": bool(law) or not found["slots"],
        f"updates went back at the end: {found['updates']}": found["updates"] < found["updates_before_the_end"],
        f"chunks refused though none was spoilt: {refused}": bool(refused and not destroyed),
        f"chunks refused for no known reason: {refused}": not set(refused) <= set(REFUSALS),
        f"rows lost for no known reason: {lost}": not set(lost) <= set(LOSSES),
        f"rows were destroyed {destroyed} and none is counted": destroyed.get("unread", 0) > 2
        and not sum(lost.values()),
        f"learners died by themselves: {restarts} restarts": restarts > found["learners_killed"],
        "versions went back in the curves": not found["versions_in_curves_rise"],
        f"versions went back on the server: {found['versions_on_server_went_back']}": bool(
            found["versions_on_server_went_back"]
        ),
        "nobody looked at the server": found["looks_at_server"] < 10,
        f"left behind: {found['leftovers']}": bool(found["leftovers"]),
    }
    return [text for text, fails in wrong.items() if fails]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, help="at least so many (default: 200)")
    parser.add_argument("--seconds", type=float, default=2700, help="give up after so long (default: 2700)")
    parser.add_argument("--seed", type=int, default=0, help="decides kinds, moments and victims (default: 0)")
    parser.add_argument("--only", action="append", default=[], metavar="FAULT", help="this kind; may be repeated")
    options = parser.parse_args()
    console, started = Console(), time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - started:6.1f} s  {text}", highlight=False)

    say(f"chaos with seed {options.seed}: at least {options.faults} faults within {options.seconds:.0f} s")
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Chaos(Path(folder), options.seed, say)) as run:
        run.inject(options.faults, options.seconds, options.only)
        found = run.finish()
    console.print(run.faults.table())
    for name, value in found.items():
        console.print(f"{name}: {value}", highlight=False)
    wrong = check(found)
    console.print("\n".join(f"FAILED: {text}" for text in wrong) or "all of it holds")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
