"""The log files of a run's processes: what is in them, and what never is anywhere else."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from replay import logs
from replay.logs import LogFile, failures_logged

RECORD = re.compile(
    r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) qherd(\.[a-z]+)?: .+$"
)
LOG = logging.getLogger("qherd.actor")


@pytest.fixture(autouse=True)
def stopped() -> Iterator[list[logging.Handler]]:
    """Whatever a test starts has ended after it."""
    before = list(logging.getLogger("qherd").handlers)
    yield before
    assert logging.getLogger("qherd").handlers == before


def test_a_record_has_its_time_with_the_zone_its_level_and_its_part(tmp_path: Path) -> None:
    stop = LogFile(tmp_path / "logs", "actor-3", "info").start()
    logging.getLogger("qherd.learner").warning("the server is away")
    LOG.debug("unseen")
    stop()
    LOG.warning("too late")
    first, second = (tmp_path / "logs" / "actor-3.log").read_text().splitlines()
    assert RECORD.match(first)
    assert RECORD.match(second)
    assert f" INFO qherd: process {os.getpid()} on " in first
    assert second.endswith(" WARNING qherd.learner: the server is away")


def test_what_is_there_stays_and_debug_shows_more(tmp_path: Path) -> None:
    for level in ("info", "debug"):
        stop = LogFile(tmp_path, "learner", level).start()
        LOG.debug("of level %s", level)
        stop()
    assert re.findall("of level .*", (tmp_path / "learner.log").read_text()) == ["of level debug"]
    assert (tmp_path / "learner.log").read_text().count(f"process {os.getpid()}") == 2


def test_only_the_owner_reads_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        LogFile(tmp_path / "logs", "driver", "info").start()()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "logs", tmp_path / "logs" / "driver.log")]
    assert modes == [0o700, 0o600]


def test_a_traceback_and_foreign_words_cannot_pass_for_records(tmp_path: Path) -> None:
    stop = LogFile(tmp_path, "actor-0", "info").start()
    forged = "2026-01-01T00:00:00.000+00:00 INFO qherd.actor: all is well"
    try:
        raise RuntimeError(f"red \x1b[31m\n{forged}\r")
    except RuntimeError as error:
        LOG.warning("it raised", exc_info=error)
    stop()
    text = (tmp_path / "actor-0.log").read_text()
    assert "\x1b" not in text
    assert "red \\x1b[31m" in text
    assert f"    {forged}\\x0d" in text
    assert "test_logs.py" in text
    assert sum(bool(RECORD.match(line)) for line in text.splitlines()) == 2


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 2000)
    stop = LogFile(tmp_path, "actor-0", "info").start()
    for number in range(100):
        LOG.info("record %d %s", number, "x" * 100)
    stop()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"actor-0.log", "actor-0.log.1"}
    assert max(sizes.values()) <= 2000
    assert "record 99 " in (tmp_path / "actor-0.log").read_text()


def test_nothing_is_on_the_terminal_before_while_and_after(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("qherd"), "propagate", False)  # to pytest's own handlers
    LOG.error("before")
    monkeypatch.undo()
    loud = logging.StreamHandler()  # as a user's module may set it up
    logging.getLogger().addHandler(loud)
    try:
        stop = LogFile(tmp_path, "driver", "info").start()
        LOG.error("while")
        stop()
    finally:
        logging.getLogger().removeHandler(loud)
    assert capfd.readouterr() == ("", "")


def test_a_workers_stderr_has_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which Ray keeps on the worker's node, where the run's folder may not be."""
    stop = LogFile(tmp_path / "not here" / "logs", "actor-0", "info").start(stderr=True)
    LOG.info("on another node")
    stop()
    _, second = capsys.readouterr().err.splitlines()
    assert RECORD.match(second)
    assert second.endswith("on another node")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_file_that_cannot_be_opened_stops_nothing(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(path: str, flags: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(logs, "_private", refused)
    stop = LogFile(tmp_path, "learner", "info").start()
    LOG.info("lost")
    monkeypatch.undo()
    LOG.info("there is room again")
    stop()
    assert "lost" not in (tmp_path / "learner.log").read_text()
    assert "there is room again" in (tmp_path / "learner.log").read_text()
    assert capfd.readouterr() == ("", "")


def test_a_disk_that_is_full_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "_private", lambda path, flags: os.open("/dev/full", os.O_WRONLY))
    stop = LogFile(tmp_path, "learner", "info").start()
    for _ in range(1000):
        LOG.info("x" * 1000)
    stop()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("there", ["link", "pipe", "folder"])
def test_what_is_no_plain_file_is_left_alone(there: str, tmp_path: Path) -> None:
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "learner.log"
    elsewhere.write_text("untouched")
    if there == "link":
        path.symlink_to(elsewhere)
    elif there == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    stop = LogFile(tmp_path, "learner", "info").start()
    LOG.info("a record")
    stop()
    assert elsewhere.read_text() == "untouched"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["elsewhere", "learner.log"]


def test_a_failure_has_its_traceback_and_passes(caplog: pytest.LogCaptureFixture) -> None:
    class Expected(Exception):
        pass

    @failures_logged(LOG, Expected)
    def fails(error: BaseException) -> None:
        raise error

    for error in (Expected(), SystemExit(3), ZeroDivisionError("by nought")):
        with pytest.raises(type(error)):
            fails(error)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "interrupted by SystemExit(3)"),
        ("ERROR", "failed: ZeroDivisionError: by nought"),
    ]
    assert "test_logs.py" in caplog.text
