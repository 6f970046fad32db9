"""``qherd clean``: one run's keys go, after asking; nothing else ever does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from chunk_makers import FakeActor
from cli_runs import QHERD, environment
from lending import NONE, plenty

from deploy.cli import main
from deploy.commands import clean as clean_module
from deploy.config.models import RunConfig
from deploy.run_directory.directory import RunDirectory
from deploy.server.embedded import EmbeddedServer
from replay.chunk_log import inspector
from replay.chunk_log.inspector import RunInspector
from replay.chunk_log.protocol import ChunkId
from replay.chunk_log.redis_log import RedisLog
from replay.chunk_log.urls import public_url

STRANGERS = (
    "qherd:a-b:chunks:9",
    "qherd:ab:chunks:0",
    "qherd:a.b:about",
    "qherd:aa:meta",
    "qherd:A:meta",
    "qherd:b:meta",
    "qherd:a*:meta",
    "qherd:a?:meta",
    "qherd:[a]:meta",
    "qherd:a",
    "xqherd:a:meta",
    "qherd:qherd:a:meta",
    "qherd::meta",
    "other",
)
"""Keys that are not run a's."""


@pytest.fixture(scope="module")
def own_server(server_binary: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer("clean", 64 << 20, binary=server_binary, roles={"admin": "~* &* +@all"}) as started:
        yield started


@pytest.fixture
def url(own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty server's URL, which nothing else names."""
    for name in [name for name in os.environ if name.startswith("QHERD_")]:
        monkeypatch.delenv(name)
    found = own_server.url("admin")
    with redis.Redis.from_url(found) as admin:
        admin.flushall()
        yield found
        admin.flushall()


@pytest.fixture
def admin(url: str) -> Iterator[Any]:
    with redis.Redis.from_url(url) as client:
        yield client


def fill(url: str, run: str, slots: int = 3, nonce: str = "nonce") -> None:
    """What a run that ended leaves."""
    with closing(RedisLog(url, run)) as log:
        assert log.claim(nonce)
        log.publish(1, plenty(), bytes(1000))
        log.describe(1, b"{}")
        log.release_lease(1)
        for slot in range(slots):
            FakeActor(slot).send(log)


def everything(admin: Any) -> dict[bytes, bytes]:
    return {key: admin.dump(key) for key in admin.scan_iter()}


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``qherd clean`` in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["clean", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def directory(folder: Path, run: str, url: str | None = None, mode: str = "cluster") -> RunDirectory:
    values: dict[str, Any] = {"run": run, "runs_dir": folder, "mode": mode, "redis": {"url": url}}
    return RunDirectory.create(RunConfig.model_validate(values))


# -- what goes and what stays


def test_one_runs_keys_go_and_everything_else_stays(
    url: str, admin: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, also names that share a prefix or look like patterns; and in batches."""
    monkeypatch.setattr(inspector, "UNLINK_KEYS", 7)
    for key in STRANGERS:
        admin.set(key, "theirs")
    fill(url, "a-b")
    others = everything(admin)
    assert len(others) == len(STRANGERS) + 7
    fill(url, "a", slots=40)
    code, out, err = call(capsys, "a", "--redis.url", url, "--yes")
    assert (code, err) == (0, "")
    assert "removed 44 keys of run 'a'" in out
    assert everything(admin) == others


@pytest.mark.parametrize("run", ["a*", "a?", "[ab]", "[^b]", "a[", "a]", "a\\", "\\*", "*", "a-c", "a^", "é"])
def test_a_name_is_never_a_pattern(url: str, admin: Any, run: str) -> None:
    """The command refuses such names; the search itself does not depend on that."""
    for key in STRANGERS:
        admin.set(key, "theirs")
    own = {f"qherd:{run}:{what}".encode() for what in ("chunks:0", "meta", "x")}
    for name in own:
        admin.set(name, "ours")
    with closing(RunInspector(url, run)) as keys:
        assert set(keys.keys()) == own
        assert keys.remove(keys.keys()) == 3
    assert {key.decode() for key in admin.scan_iter()} == set(STRANGERS) - {key.decode() for key in own}


def test_the_claim_of_the_name_goes_last(url: str) -> None:
    """What is left of a removal that was cut off still belongs to the run."""
    fill(url, "a")
    with closing(RunInspector(url, "a")) as keys:
        assert keys.keys()[-1] == b"qherd:a:meta"
        assert len(keys.keys()) == 7


@pytest.mark.parametrize("run", ["a*", "a:b", "", "*", "a b", "-x", "redis://:s3cret@127.0.0.1:1"])
def test_what_is_no_runs_name_is_refused(url: str, admin: Any, capsys: pytest.CaptureFixture[str], run: str) -> None:
    admin.set("qherd:a:b:c", "theirs")
    code, out, err = (
        call(capsys, "--redis.url", url, "--yes", "--", run)
        if run == "-x"
        else call(capsys, run, "--redis.url", url, "--yes")
    )
    assert (code, out) == (2, "")
    assert "s3cret" not in err
    assert admin.dbsize() == 1


def test_the_run_directory_stays_and_its_keys_go(
    url: str, admin: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the server from the environment."""
    run = directory(tmp_path, "a", url)
    fill(url, "a", nonce=run.fences.nonce)
    before = sorted(run.path.rglob("*"))
    code, _, err = call(capsys, run.path, "--yes")
    assert code == 2
    assert "keeps no password" in err
    monkeypatch.setenv("QHERD_REDIS_URL", url)
    assert call(capsys, run.path, "--yes")[0] == 0
    assert admin.dbsize() == 0
    assert sorted(run.path.rglob("*")) == before


# -- what is refused


def test_another_runs_keys_under_the_same_name_stay(
    url: str, admin: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The directory's nonce is not the one that claims the name on the server."""
    run = directory(tmp_path, "a", url)
    fill(url, "a", nonce="somebody else's")
    before = everything(admin)
    code, out, err = call(capsys, run.path, "--redis.url", url, "--yes")
    assert (code, out) == (2, "")
    assert "belong to another run of that name" in err
    assert everything(admin) == before
    admin.delete("qherd:a:meta")  # a server that lost it belongs to nobody else
    assert call(capsys, run.path, "--redis.url", url, "--yes")[0] == 0


@pytest.mark.parametrize("credit", [plenty(), NONE], ids=["credit", "none"])
def test_a_run_that_is_alive_is_refused_until_its_credit_lapses(
    url: str, admin: Any, capsys: pytest.CaptureFixture[str], credit: bytes
) -> None:
    fill(url, "a")
    with closing(RedisLog(url, "a")) as log:
        log.publish(1, credit)
    code, out, err = call(capsys, "a", "--redis.url", url, "--yes")
    assert (code, out) == (2, "")
    assert "is alive" in err
    assert "stop it first" in err
    assert admin.dbsize() == 8
    assert admin.delete("qherd:a:credit"), "as it lapses"
    assert call(capsys, "a", "--redis.url", url, "--yes")[0] == 0


def test_a_run_that_came_alive_while_the_user_thought_is_refused(
    url: str, admin: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(url, "a")

    def resumed_meanwhile(run: str) -> bool:
        with closing(RedisLog(url, run)) as log:
            log.publish(2, plenty())
        return True

    monkeypatch.setattr(clean_module, "_confirmed", resumed_meanwhile)
    code, _, err = call(capsys, "a", "--redis.url", url)
    assert code == 2
    assert "is alive" in err
    assert admin.dbsize() == 8


def test_a_run_without_keys_is_no_success(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "a", "--redis.url", url, "--yes")
    assert code == 2
    assert f"run 'a' has no keys on {public_url(url)}" in err


def test_a_local_run_has_nothing_to_clean(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, directory(tmp_path, "a", mode="local").path, "--yes")
    assert code == 2
    assert "starts and ends with the run" in err


def test_a_user_without_the_right_to_is_refused(
    server_binary: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    del url
    with EmbeddedServer("a", 64 << 20, binary=server_binary) as server:
        fill(server.url("learner"), "a")
        code, _, err = call(capsys, "a", "--redis.url", server.url("actor"), "--yes")
        assert code == 2
        assert "ermissions" in err
        with closing(RedisLog(server.url("learner"), "a")) as log:
            assert log.last_id(0) == ChunkId(1, 1)
        assert call(capsys, "a", "--redis.url", server.url("learner"), "--yes")[0] == 0


# -- asking


def test_without_a_terminal_nobody_is_asked_and_nothing_goes(url: str, admin: Any, tmp_path: Path) -> None:
    fill(url, "a")
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as tmp:
        done = subprocess.run(
            [QHERD, "clean", "a"],
            cwd=tmp_path,
            env=environment(Path(tmp), "x", {"QHERD_REDIS_URL": url}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert "qherd clean a --yes does not ask" in done.stderr
    assert admin.dbsize() == 7


ANSWERS: dict[str, tuple[bytes, int]] = {
    "y": (b"y\n", 0),
    "yes": (b" YES \n", 0),
    "n": (b"n\n", 1),
    "nothing": (b"\n", 1),
    "another word": (b"yesterday\n", 1),
    "end of input": (b"\x04", 1),
    "ctrl-c": (b"\x03", 130),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_user_is_asked_and_obeyed(url: str, admin: Any, tmp_path: Path, answer: str) -> None:
    """On a real terminal, with what there is to lose and where; without the password."""
    typed, expected = ANSWERS[answer]
    fill(url, "a")
    code, shown = on_a_terminal(["clean", "a", "--redis.url", url], typed, tmp_path)
    assert code == expected, shown
    assert "run 'a' has 7 keys, " in shown
    assert f"on {public_url(url)}" in shown.replace("\r\n", "")
    assert "remove them for good? [y/N]" in shown
    assert url.split(":")[2].partition("@")[0] not in shown
    assert "Traceback" not in shown
    assert admin.dbsize() == (0 if expected == 0 else 7)


def on_a_terminal(arguments: list[str], typed: bytes, cwd: Path) -> tuple[int, str]:
    """Run ``qherd`` with a terminal as its standard streams, type at its question; exit code and what was shown."""
    again = typed == b"\x03"  # a signal between the question and the wait for its answer is seen with the next one
    program = (
        "import os, pty, select, sys\n"
        "pid, terminal = pty.fork()\n"
        f"if not pid: os.execv({str(QHERD)!r}, {['qherd', *arguments]!r})\n"
        "shown, asked = b'', False\n"
        "while True:\n"
        "    if select.select([terminal], [], [], 5)[0]:\n"
        "        try: data = os.read(terminal, 4096)\n"
        "        except OSError: break\n"
        "        if not data: break\n"
        "        shown += data\n"
        f"    elif asked and {again}: os.write(terminal, {typed!r})\n"
        "    if shown.endswith(b'[y/N] ') and not asked:\n"
        f"        os.write(terminal, {typed!r})\n"
        "        asked = True\n"
        "os.write(1, shown)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as tmp:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=cwd,
            env=environment(Path(tmp), "x"),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.stderr == ""
    return done.returncode, done.stdout
