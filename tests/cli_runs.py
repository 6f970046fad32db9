"""The command line as a user runs it: in a process of its own, with a temporary folder of its own.

Whatever a run starts inherits ``HERD_TEST_MARK``, or has the temporary folder in its command line; so leftovers are
found, and nobody else's processes are touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QHERD = Path(sys.executable).with_name("qherd")
MARK = "HERD_TEST_MARK"
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str
    leftovers: list[str]


@dataclass
class Run:
    """A command that runs: ``process``, its folder ``tmp`` for temporary files, its ``cwd``."""

    process: subprocess.Popen[str]
    tmp: Path
    cwd: Path
    mark: str
    _files: tuple[Path, Path] = field(repr=False)

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    def until(self, condition: Callable[[], bool], deadline_s: float, what: str) -> None:
        """Wait for the condition; fail where the command ends before, or the deadline comes first."""
        end = time.monotonic() + deadline_s
        while not condition():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > end:
                why = f"exit code {self.process.returncode}" if ended else f"{deadline_s} s are over"
                raise AssertionError(f"no {what}: {why}\n--- out\n{self.out}\n--- err\n{self.err}")
            time.sleep(0.05)

    def finish(self, deadline_s: float) -> Finished:
        """Wait for the command's own end."""
        try:
            self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still there after {deadline_s} s\n--- out\n{self.out}\n--- err\n{self.err}"
            ) from None
        return Finished(self.process.returncode, self.out, self.err, list(self.others().values()))

    def others(self) -> dict[int, str]:
        """Process ids and command lines of what this command has started and what is alive."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in (os.getpid(), self.process.pid):
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    environ = (entry / "environ").read_bytes()
                    if command and (self.mark.encode() in environ or f"{self.tmp}/" in command):
                        found[int(entry.name)] = command
        return found

    def find(self, pattern: str) -> list[int]:
        """Process ids of those whose command line has ``pattern``."""
        return [pid for pid, command in self.others().items() if re.search(pattern, command)]

    def rows(self, run: str) -> list[dict[str, Any]]:
        """The whole rows of the run's metrics.jsonl so far."""
        path = self.cwd / "runs" / run / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def figure(self, run: str, name: str) -> float:
        """The newest value of a figure, 0 before there is one."""
        rows = self.rows(run)
        return float(rows[-1].get(name, 0)) if rows else 0.0


def environment(tmp: Path, mark: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would configure qherd or Ray."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("QHERD_", "RAY_")) and name != "CI"
    }
    return {**kept, "TMPDIR": str(tmp), MARK: mark, "COLUMNS": "120", **(more or {})}


@contextlib.contextmanager
def running(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[Run]:
    """``qherd`` with these arguments; what is left of it afterwards is ended."""
    with running_program([QHERD, *map(str, arguments)], cwd=cwd, env=env) as run:
        yield run


@contextlib.contextmanager
def running_program(command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[Run]:
    """A program; what is left of it afterwards is ended."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder:
        base, mark = Path(folder), uuid.uuid4().hex
        files, tmp = (base / "out", base / "err"), base / "t"
        tmp.mkdir()
        with files[0].open("w") as out, files[1].open("w") as err:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment(tmp, mark, env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        run = Run(process, tmp, cwd, mark, files)
        try:
            yield run
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            end_all(run)


def end_all(run: Run) -> None:
    """Kill what a command that was killed could not end itself (Ray's processes linger for minutes)."""
    end = time.monotonic() + 10
    while (left := run.others()) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def qherd(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, deadline_s: float = 60) -> Finished:
    """Run ``qherd`` to its end."""
    with running(*arguments, cwd=cwd, env=env) as run:
        return run.finish(deadline_s)


def summary(folder: Path) -> dict[str, Any]:
    """A run's summary.json."""
    read: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return read
