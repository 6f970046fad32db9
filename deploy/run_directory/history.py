"""The history of a run's metrics: metrics.jsonl and TensorBoard's events, appended to, and rewound to a checkpoint."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from deploy.config.errors import RunDirError
from deploy.run_directory.events import open_events, write_restart, write_scalars
from deploy.run_directory.files import naming, replace_file
from learner.report import Resumed
from replay.foreign import Unreadable, parse_json, read_big_file, read_end

T = TypeVar("T")
SUPERSEDED = "metrics.superseded.jsonl"
"""Rows after the checkpoint that was resumed from."""
END_BYTES = 1 << 16
"""The newest row is looked for in so much of the end first: some ten rows."""


class MetricHistory:
    """The rows of one run: one a second, with the run's metrics by key."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / "metrics.jsonl"
        self._metrics: IO[str] | None = None
        self._events: Any = None

    def open(self) -> None:
        """Opens both files for appending (TensorBoard's import takes a while: do it while Ray starts).

        Raises:
            RunDirError: the disk refuses it.
        """
        with naming(self._path):
            self._metrics = self._path.open("a")
            self._events = open_events(self._folder / "tb")

    def append(self, row: Mapping[str, float]) -> None:
        """Appends one row, at the step ``env_steps``.

        Raises:
            RunDirError: the disk refuses it.
        """
        metrics, events = self._opened()
        with naming(self._path):
            metrics.write(json.dumps({key: _rounded(value) for key, value in row.items()}) + "\n")
            metrics.flush()
            write_scalars(events, row)

    def _opened(self) -> tuple[IO[str], Any]:
        if self._metrics is None:
            self.open()
        assert self._metrics is not None
        return self._metrics, self._events

    def newest(self) -> dict[str, float]:
        """Returns the newest row; empty before the first.

        Raises:
            RunDirError: the file cannot be read.
        """
        for end_bytes in (END_BYTES, None):
            complete, all_of_it = self._complete_lines(end_bytes)
            for line in reversed(complete):
                if (row := _row(line)) is not None:
                    return row
            if all_of_it:
                break
        return {}

    def rows(self) -> list[Mapping[str, float]]:
        """Returns the complete rows; what was no number is left out of them.

        Raises:
            RunDirError: the file cannot be read.
        """
        return [row for line in self._lines()[0] if (row := _row(line)) is not None]

    def columns(self, names: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        """Returns values of the complete rows by name, each <float64>[rows], NaN where a row has none.

        They are found in the text of the rows: parsing a row of some hundred metrics takes twenty times as long as
        finding five of them.

        Raises:
            RunDirError: the file cannot be read.
        """
        lines = [line for line in self._lines()[0] if line.startswith("{") and line.endswith("}\n")]
        return {name: np.array([_value(line, f'"{name}": ') for line in lines]) for name in names}

    def rewind(self, resumed: Resumed) -> None:
        """Truncates the history to a checkpoint: later rows move to metrics.superseded.jsonl, and TensorBoard passes
        over its later events.

        Raises:
            RunDirError: the disk refuses it.
        """
        complete, torn = self._lines()
        kept, passed = list[str](), list[str]()
        for line in complete:
            row = _row(line)
            (kept if row is not None and _upto(row, resumed) else passed).append(line)
        if passed or torn:
            superseded = self._folder / SUPERSEDED
            with naming(superseded), superseded.open("a") as file:
                file.writelines([*passed, *torn])
            replace_file(self._path, "".join(kept).encode())
        if self._metrics is not None:  # it appends to the file that was replaced
            self.close()
            self.open()
        with naming(self._folder / "tb"):
            write_restart(self._opened()[1], resumed.env_steps)

    def close(self) -> None:
        """Closes both files, if they are open."""
        if self._metrics is not None:
            for file in (self._metrics, self._events):
                with contextlib.suppress(OSError):  # what is left in its buffer after a write that was refused
                    file.close()
            self._metrics = None

    def _complete_lines(self, end_bytes: int | None) -> tuple[list[str], bool]:
        """Returns the complete lines in the last ``end_bytes``, or of all (None), and whether they are all."""
        if end_bytes is None:
            return self._lines()[0], True
        end, all_of_it = _readable(lambda: read_end(self._path, end_bytes), (b"", True))
        lines = end.decode(errors="replace").splitlines(keepends=True)
        return [line for line in lines[0 if all_of_it else 1 :] if line.endswith("\n")], all_of_it

    def _lines(self) -> tuple[list[str], list[str]]:
        """Returns the complete lines, and the one that a driver was killed in, if any."""
        lines = _readable(lambda: read_big_file(self._path), b"").decode(errors="replace").splitlines(keepends=True)
        torn = [lines.pop() + "\n"] if lines and not lines[-1].endswith("\n") else []
        return lines, torn


def _readable(read: Callable[[], T], missing: T) -> T:
    """Returns what is read, and ``missing`` where there is no file. Raises RunDirError where it cannot be read."""
    try:
        return read()
    except FileNotFoundError:
        return missing
    except Unreadable as error:
        raise RunDirError(f"{error}; move it away to go on without it") from error


def _row(line: str) -> dict[str, float] | None:
    """Returns a row, without what was no number; None where the line is none."""
    try:
        row = {name: value for name, value in parse_json(line).items() if value is not None}
        finite = all(math.isfinite(value) for value in row.values())  # raises for what is no number or too big for one
        return row if finite else None
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None


def _value(line: str, key: str) -> float:
    """Returns the number after ``key`` in a row's text; NaN where there is none."""
    start = line.find(key)
    if start < 0:
        return math.nan
    start += len(key)
    end = line.find(",", start)
    try:
        value = float(line[start : end if end >= 0 else -2])  # the last one ends with the row: }, and a new line
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _upto(row: Mapping[str, Any], resumed: Resumed) -> bool:
    """Returns whether a row is not after the checkpoint."""
    updates, env_steps = row.get("updates", 0), row.get("env_steps", 0)
    return bool(updates <= resumed.updates and env_steps <= resumed.env_steps)


def _rounded(value: float) -> float | None:
    """Returns six digits; None for what is no number, for which JSON has no word."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
