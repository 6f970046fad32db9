"""``qherd replay stats``: its figures are the server's, and it says whose, of what, and why not."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from chunk_makers import CODEC, RUN, SCHEMA, FakeActor, append, spoilt
from cli_runs import Run, qherd, running, summary
from lending import NONE
from waiting import until

import replay
from deploy.cli import main
from deploy.commands import replay_stats
from deploy.commands.replay_stats import rows_between
from deploy.config.models import RunConfig
from deploy.run_directory.directory import RunDirectory
from deploy.server.acl import acl_rules
from deploy.server.embedded import EmbeddedServer
from replay.chunk import Chunk
from replay.chunk_log.inspector import RunInspector
from replay.chunk_log.protocol import FENCE_SHIFT, ChunkId, WeightsHeader
from replay.chunk_log.redis_log import RedisLog
from replay.chunk_log.urls import public_url
from replay.description import RunDescription, SlotDescription
from replay.ledger import SlotAccount, Totals

START_S = 60.0


def described(slots: int, **refused: int) -> bytes:
    """A description of a run whose last slot had these chunks refused."""
    books = {slot: SlotAccount(cursor=ChunkId(7, 1), weight_version=(3 << FENCE_SHIFT) | 9) for slot in range(slots)}
    books[slots - 1].totals.refused.update(refused)
    fields: dict[str, Any] = {"row_schema": SCHEMA, "n_step": 1, "gamma": 0.9, "reward_scale": 1, "capacity_rows": 500}
    said = RunDescription(
        **fields, env_steps=123, updates=45, slots={slot: SlotDescription.of(b) for slot, b in books.items()}
    )
    return said.pack()


@pytest.fixture(scope="module")
def own_server(server_binary: Path) -> Iterator[EmbeddedServer]:
    roles = {**acl_rules(RUN), "admin": "~* &* +@all"}
    with EmbeddedServer(RUN, 64 << 20, binary=server_binary, roles=roles) as started:
        yield started


@pytest.fixture
def log(own_server: EmbeddedServer) -> Iterator[RedisLog]:
    """The run's log on an otherwise empty server."""
    with redis.Redis.from_url(own_server.url("admin")) as admin, closing(RedisLog(own_server.url("admin"), RUN)) as log:
        admin.flushall()
        yield log
        admin.flushall()


@pytest.fixture
def keys(own_server: EmbeddedServer) -> Iterator[RunInspector]:
    with closing(RunInspector(own_server.url("reader"), RUN)) as opened:
        yield opened


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has the two seconds between the readings pass at once, and something happen in them."""

    def install(act: Callable[[], object]) -> None:
        clock = [100.0]

        def sleep(seconds: float) -> None:
            assert seconds == replay_stats.WINDOW_S
            act()
            clock[0] += 2.0

        monkeypatch.setattr(replay_stats, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))

    return install


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``qherd replay stats`` in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["replay", "stats", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


# -- what a stream holds


def test_rows_stored_are_exact_over_incarnations_trims_and_refused_chunks(log: RedisLog, keys: RunInspector) -> None:
    """By the headers at both ends of each incarnation, compared with all chunks read one by one."""
    actor = FakeActor(lanes=2)
    sent: list[Chunk] = []
    assert keys.stored(0, CODEC) == (0, 0, 0, None)
    for time_steps in (1, 5, 2):
        actor.restart()
        for _ in range(4):
            sent.append(actor.send(log, time_steps))
            stored = keys.stored(0, CODEC)
            assert (stored.chunks, stored.rows) == (len(sent), sum(chunk.rows for chunk in sent))
    bad = actor.chunk()
    append(log, bad, spoilt(bad))
    sent += [bad, actor.send(log, 3)]
    for oldest in (sent[2], sent[4], sent[9], sent[-1]):
        log.trim(1, {0: ChunkId(oldest.incarnation, oldest.seq)})
        rows = sum(chunk.rows for chunk in sent[sent.index(oldest) :])
        assert keys.stored(0, CODEC).rows == rows
    newest = keys.newest(0, CODEC)
    assert newest is not None
    assert (newest.seq, newest.incarnation) == (sent[-1].seq, 4)
    log.trim(1, {0: ChunkId(9, 9)})
    assert keys.stored(0, CODEC)[:2] == (0, 0)


def test_rows_that_cannot_be_known_are_not_guessed(log: RedisLog, keys: RunInspector) -> None:
    actor = FakeActor()
    actor.send(log)
    bad = actor.chunk()
    append(log, bad, spoilt(bad))
    stored = keys.stored(0, CODEC)
    assert (stored.chunks, stored.rows, stored.newest) == (2, None, None)


def test_rows_between_two_readings() -> None:
    """By the actor's own count, whatever became of the chunks; each incarnation counts anew."""
    actor = FakeActor()
    first, _, third = (actor.chunk(4) for _ in range(3))
    actor.restart()
    again, later = actor.chunk(4), actor.chunk(2)
    cases = [(None, None, 0), (first, None, 0), (None, third, 4), (first, first, 0), (first, third, 8)]
    cases += [(third, again, 4), (third, later, 6), (again, later, 2)]
    assert [rows_between(before, now) for before, now, _ in cases] == [rows for _, _, rows in cases]


# -- what it prints


def test_the_figures_are_the_servers(
    log: RedisLog,
    own_server: EmbeddedServer,
    capsys: pytest.CaptureFixture[str],
    between: Callable[[Callable[[], object]], None],
) -> None:
    """Rows, bytes, rate by the local clock (2 s), weights, incarnation, refusals; and the same as a table."""
    actors = [FakeActor(slot) for slot in range(2)]
    for actor in actors * 3:
        actor.send(log)
    said, published, refused = (3 << FENCE_SHIFT) | 9, (5 << FENCE_SHIFT) | 2, {"crc": 2, "flags": 1}
    log.publish(5, NONE, WeightsHeader(published, 1, 1, 1).pack())
    log.describe(5, described(3, **refused))
    between(lambda: [actors[1].send(log) for _ in range(5)])
    code, out, err = call(capsys, own_server.url("reader"), "--run", RUN, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    sizes = [line.pop("bytes") for line in found["slots"]]
    with redis.Redis.from_url(own_server.url("admin")) as admin:
        assert sizes[0] == admin.memory_usage(log.chunks_key(0)) > 3 * 4 * SCHEMA.row_bytes
    assert sizes[2] == 0
    assert found["slots"] == [
        {"slot": 0, "rows": 12, "rows_per_second": 0, "weight_version": 1, "incarnation": 1, "refused": {}},
        {"slot": 1, "rows": 12, "rows_per_second": 10, "weight_version": 1, "incarnation": 1, "refused": {}},
        {"slot": 2, "rows": 0, "rows_per_second": 0, "weight_version": said, "incarnation": 7, "refused": refused},
    ]
    total = {"rows": 24, "bytes": sum(sizes), "rows_per_second": 10, "weight_version": published}
    assert found["total"] == {**total, "refused": refused}
    assert (found["run"], found["alive"], found["env_steps"], found["updates"]) == (RUN, True, 123, 45)
    between(lambda: None)
    code, out, err = call(capsys, own_server.url("reader"), "--run", RUN)
    assert (code, err) == (0, "")
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in out.splitlines() if "│" in line]
    assert [row[0] for row in cells] == ["0", "1", "2", "total"]
    assert cells[2][1:] == ["0", "0 bytes", "0", "3-9", "7", "crc 2, flags 1"]
    assert (cells[3][1], cells[3][4], cells[3][6]) == ("44", "5-2", "crc 2, flags 1")
    assert "learner at work: 45 updates, 123 env steps, a mirror of 500 rows" in out


def test_a_learner_that_is_gone_and_chunks_that_cannot_be_read_show(
    log: RedisLog,
    own_server: EmbeddedServer,
    capsys: pytest.CaptureFixture[str],
    between: Callable[[Callable[[], object]], None],
) -> None:
    bad = FakeActor().chunk()
    append(log, bad, spoilt(bad))
    log.describe(1, described(1))
    between(lambda: None)
    url = own_server.url("admin")
    _, out, _ = call(capsys, url)
    assert "learner gone" in out
    assert re.search(r"│ +0 │ +\? │", out)
    assert re.search(r"│ total │ +\? │", out)
    found = json.loads(call(capsys, url, "--json")[1])
    assert (found["alive"], found["slots"][0]["rows"], found["total"]["rows"]) == (False, None, None)


def test_slots_on_several_servers_are_shown_together(
    server_binary: Path, own_server: EmbeddedServer, log: RedisLog, keys: RunInspector
) -> None:
    with EmbeddedServer(RUN, 64 << 20, binary=server_binary) as second:
        other = RedisLog(second.url("learner"), RUN)
        other.describe(1, described(2))
        FakeActor(0).send(log)
        FakeActor(1).send(other, 7)
        with closing(other), closing(RunInspector(second.url("reader"), RUN)) as more:
            said = RunDescription.unpack(other.description() or b"")
            for servers in ([keys, more], [more, keys]):
                assert [line.rows for line in replay_stats.measure(servers, said, CODEC)] == [4, 7]


def test_a_server_that_is_away_is_left_out_and_said(
    server_binary: Path,
    own_server: EmbeddedServer,
    log: RedisLog,
    capsys: pytest.CaptureFixture[str],
    between: Callable[[Callable[[], object]], None],
) -> None:
    """And so is a slot that none of the servers has, though its chunks were read."""
    between(lambda: None)
    FakeActor(0).send(log)
    books = SlotAccount(totals=Totals(chunks=1))
    said = RunDescription.unpack(described(1)).model_copy(
        update={"slots": dict.fromkeys(range(2), SlotDescription.of(books))}
    )
    log.describe(1, said.pack())
    with EmbeddedServer(RUN, 64 << 20, binary=server_binary) as second:
        urls = (second.url("reader"), own_server.url("reader"))
        options = [RUN, "--json", "--redis.urls", *urls]
        assert call(capsys, *options)[0::2] == (
            0,
            "qherd: slots 1 are on none of these servers; the run may have further ones\n",
        )
        second.stop()
        code, out, err = call(capsys, *options)
    assert code == 0
    assert [line["rows"] for line in json.loads(out)["slots"]] == [4, 0]
    assert f"qherd: left out: {public_url(urls[0])}" in err
    assert "slots 1 are on none" in err
    assert call(capsys, RUN, "--redis.url", urls[0])[0] == 2


# -- which run


def test_a_server_with_one_run_needs_no_name_and_with_several_names_them(
    log: RedisLog, own_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    url = own_server.url("admin")
    password = url.split(":")[2].partition("@")[0]
    assert "has no run of qherd" in call(capsys, url)[2]
    log.claim("x")
    log.describe(1, described(1))
    assert call(capsys, url)[:1] == (0,)
    with closing(RedisLog(url, "another.run")) as other:
        other.claim("y")
    code, out, err = call(capsys, url)
    assert (code, out) == (2, "")
    assert f"has 2 runs, choose one with --run: {RUN}, another.run" in err
    code, _, err = call(capsys, url, "--run", "another.run")
    assert code == 2
    assert "no run 'another.run' describes itself" in err
    code, _, err = call(capsys, own_server.url("reader"))
    assert code == 2
    assert "give the run's name with --run" in err
    assert password not in err


def cluster_run(folder: Path, url: str) -> Path:
    """A run directory of mode cluster, with a server's URL in its config."""
    values: dict[str, Any] = {"run": RUN, "runs_dir": folder, "mode": "cluster", "redis": {"url": url}}
    return RunDirectory.create(RunConfig.model_validate(values)).path


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("QHERD_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_cluster_runs_directory_or_name_takes_the_url_from_option_or_environment(
    log: RedisLog,
    own_server: EmbeddedServer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    bare_environment: pytest.MonkeyPatch,
    between: Callable[[Callable[[], object]], None],
) -> None:
    """Not from config.yaml, which keeps no password: the message says what to give."""
    between(lambda: None)
    log.describe(1, described(1))
    url = own_server.url("admin")
    folder = cluster_run(tmp_path, url)
    code, _, err = call(capsys, folder)
    assert code == 2
    assert "--redis.url, QHERD_REDIS_URL" in err
    assert "there is no run directory" in call(capsys, RUN)[2]
    assert call(capsys, folder, "--redis.url", url)[0] == 0
    assert call(capsys, RUN, "--redis.url", url)[0] == 0
    bare_environment.chdir(folder)
    assert call(capsys, ".", "--redis.url", url)[0] == 0
    bare_environment.setenv("QHERD_REDIS_URL", url)
    assert call(capsys, folder)[0] == 0
    assert call(capsys, RUN)[0] == 0


def test_a_url_without_a_password_is_taken_from_the_directory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, bare_environment: pytest.MonkeyPatch
) -> None:
    del bare_environment
    code, _, err = call(capsys, cluster_run(tmp_path, f"unix://{tmp_path}/nothing.sock"))
    assert code == 2
    assert f"{tmp_path}/nothing.sock: Error 2 connecting" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no such run!"], "neither a run directory nor a run's name"),
        (["a", "--run", "b"], "--run b goes with a server's URL"),
        (["unix:///no/such.sock"], "/no/such.sock: Error 2"),
        (["redis://:s3cret@127.0.0.1:1", "--run", "a:b"], "neither a run directory nor a run's name"),
        (["redis://:s3cret@127.0.0.1:1"], r"redis://:***@127.0.0.1:1: Error 111"),
    ],
)
def test_a_wrong_call_is_one_message_and_2(
    capsys: pytest.CaptureFixture[str], bare_environment: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    del bare_environment
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert "s3cret" not in err


def test_an_inline_run_has_no_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = RunConfig.model_validate({"run": RUN, "runs_dir": tmp_path, "mode": "inline"})
    code, _, err = call(capsys, RunDirectory.create(config).path)
    assert code == 2
    assert "mode inline" in err


# -- a real local run


def train(cwd: Path, *more: str) -> Any:
    options = ["--run", "r", "--eval.threshold", "None", "--actors.count", "2"]
    return running("train", "CartPole-v1", *options, *more, cwd=cwd)


def under_way(run: Run) -> None:
    run.until(lambda: run.figure("r", "updates") > 0, START_S, "update")


def settled(folder: Path) -> dict[str, Any]:
    """The statistics as JSON, once both actors have written and rows come in."""
    end = time.monotonic() + 30
    while True:
        done = qherd("replay", "stats", folder, "--json", cwd=folder)
        assert done.code == 0, done
        found: dict[str, Any] = json.loads(done.out)
        if found["total"]["rows_per_second"] > 0 and all(line["rows"] for line in found["slots"]):
            return found
        assert time.monotonic() < end, found


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_running_local_run_shows_its_figures_and_a_notebook_can_attach(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "r"
    with train(tmp_path) as run:
        under_way(run)
        shared = folder / "replay.url"
        assert stat.S_IMODE(shared.stat().st_mode) == 0o600
        url = shared.read_text()
        found = settled(folder)
        assert (found["run"], found["alive"], found["capacity_rows"]) == ("r", True, 50_000)
        assert [line["slot"] for line in found["slots"]] == [0, 1]
        assert all(line["bytes"] > line["rows"] * 16 for line in found["slots"])
        assert all(line["weight_version"] >> FENCE_SHIFT == line["incarnation"] == 1 for line in found["slots"])
        assert 0 < found["total"]["rows_per_second"] < 200_000
        assert found["total"]["weight_version"] >= max(line["weight_version"] for line in found["slots"])
        assert found["total"]["refused"] == {}
        table = qherd("replay", "stats", "runs/r", cwd=tmp_path)
        assert (table.code, table.err) == (0, "")
        assert "learner at work" in table.out
        with replay.attach(url, "r") as memory:
            assert memory.poll() > 0
            assert memory.schema.num_actions == 2
            assert memory.sample(32).s_tm1.shape == (32, 4)
            assert memory.refused == {}
        refused = qherd("clean", "runs/r", "--yes", cwd=tmp_path)
        assert refused.code == 2
        assert "is alive" in refused.err
        password = url.split(":")[2].partition("@")[0]
        assert len(password) > 20
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.finish(25).code == 75
        shown = [run.out, run.err, table.out, refused.err, json.dumps(found)]
        assert not [text for text in shown if password in text]
        left = [path for path in folder.rglob("*") if path.is_file() and password.encode() in path.read_bytes()]
        assert left == []
    assert not shared.exists()
    assert summary(folder)["rows_lost"] == {}
    for command in (["replay", "stats", "runs/r"], ["clean", "runs/r", "--yes"]):
        done = qherd(*command, cwd=tmp_path)
        assert (done.code, done.out) == (2, "")
        assert "runs/r has no replay server" in done.err


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_killed_run_leaves_its_url_which_is_no_server(tmp_path: Path) -> None:
    with train(tmp_path) as run:
        under_way(run)
        run.process.kill()
        run.process.wait()
        until(lambda: not run.find("valkey-server|redis-server"), "the server's end", 5)
        assert (tmp_path / "runs" / "r" / "replay.url").exists()
        done = qherd("replay", "stats", "runs/r", cwd=tmp_path)
    assert done.code == 2
    assert "runs/r has no replay server" in done.err
