"""What a run shows while it works: a live table on a terminal, a plain line every 5 s elsewhere."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import IO, Self, cast

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from deploy.config.models import RunConfig
from deploy.process.output import Output

LOG = logging.getLogger("qherd.driver")
LINE_EVERY_S = 5.0
ROWS: tuple[tuple[str, Callable[[Mapping[str, float]], str]], ...] = (
    ("greedy return", lambda f: f"{f['greedy_return']:.1f}" if "greedy_return" in f else "not yet"),
    ("exploring return", lambda f: f"{f['exploring_return']:.1f}" if "exploring_return" in f else "not yet"),
    ("env steps", lambda f: f"{f.get('env_steps', 0):,.0f}  ({f.get('env_steps_per_second', 0):,.0f}/s)"),
    ("updates", lambda f: f"{f.get('updates', 0):,.0f}  ({f.get('updates_per_second', 0):,.0f}/s)"),
    ("replay fill", lambda f: f"{f.get('replay_rows', 0) / max(1, f.get('replay_capacity_rows', 1)):.0%}"),
    ("samples per insert", lambda f: f"{f.get('samples_per_insert', 0):.2f}"),
    ("staleness (versions)", lambda f: f"{f.get('weight_staleness_versions', 0):.0f}"),
    ("actors alive", lambda f: f"{f.get('actors_alive', 0):.0f}"),
)
NEWS: tuple[tuple[str, Callable[[Mapping[str, float]], str]], ...] = (
    ("confirmed return", lambda f: f"{f['confirmed_return']:.1f}" if "confirmed_return" in f else ""),
    ("evaluation", lambda f: "fails" if f.get("evaluation_failing") else ""),
    ("servers down", lambda f: f"{f.get('servers_down', 0):.0f}" if f.get("servers_down") else ""),
)
"""Rows that are left out while they have nothing to show."""


class Display:
    """Shows a run's metrics on ``stream``, by default stdout. A context manager: what it draws ends with it. ``gone()``
    is called when nobody can see them any more."""

    def __init__(
        self,
        run: str,
        config: RunConfig,
        gone: Callable[[], None] = lambda: None,
        stream: IO[str] | None = None,
        *,
        worked_s: float = 0.0,
    ) -> None:
        """``worked_s``: how long the run has been at work already."""
        self._run, self._config = run, config
        self._output = Output(gone, stream)
        self._console = Console(file=cast("IO[str]", self._output))
        self._fancy = self._console.is_terminal and not os.environ.get("CI")
        self._messages: list[str] = []
        self._row: Mapping[str, float] = {}
        self._live: Live | None = None
        self._last_line_s = -LINE_EVERY_S
        self._started_s = time.monotonic() - worked_s
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
        )
        goal = "to solved" if config.eval.threshold is not None else "budget"
        self._task = self._bar.add_task(goal, total=1.0, shown="")
        self._bar.tasks[self._task].start_time = self._bar.get_time() - worked_s

    def __enter__(self) -> Self:
        if self._fancy:
            self._live = Live(self._drawing(), console=self._console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, at)

    def notify(self, message: str) -> None:
        """Shows and logs a message: what the run waits for, or what went wrong and is being mended."""
        LOG.info("%s", message)
        if self._live is None:
            self._print(message)
        else:
            self._messages = [*self._messages[-4:], f"{self._seconds():6.1f} s  {message}"]
            self._live.update(self._drawing())

    def update(self, row: Mapping[str, float]) -> None:
        """Shows a new row of metrics, by key."""
        self._row = row
        if self._live is not None:
            self._live.update(self._drawing())
        elif time.monotonic() - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            self._print("  ".join(f"{name} {shown}" for name, shown in _shown(row)))

    def _print(self, text: str) -> None:
        self.print(f"{self._seconds():6.1f} s  {text}")

    def print(self, text: str) -> None:
        """Prints a text as it stands, after what was drawn."""
        print(text, file=self._output, flush=True)

    def _seconds(self) -> float:
        return time.monotonic() - self._started_s

    def _drawing(self) -> Group:
        table = Table.grid(padding=(0, 3))
        for name, shown in _shown(self._row):
            table.add_row(f"[dim]{name}[/]", shown)
        self._bar.update(self._task, completed=self._share(), shown=self._goal())
        title = f"qherd  {self._config.env.id}  [dim]{self._run}[/]"
        return Group(Panel(Group(table, self._bar), title=title, title_align="left"), *map(Text, self._messages))

    def _share(self) -> float:
        """Returns how far the run is: towards the threshold from the first return seen, or through its budget."""
        threshold = self._config.eval.threshold
        if threshold is not None:
            newest = self._row.get("greedy_return")
            first = self._row.get("first_greedy_return")
            if newest is None or first is None or first >= threshold:
                return 0.0
            return min(1.0, max(0.0, (newest - first) / (threshold - first)))
        budget, seconds = self._config.budget, self._config.budget.seconds
        bounds = (("env_steps", budget.env_steps), ("updates", budget.updates))
        shares = [self._row.get(name, 0) / bound for name, bound in bounds if bound]
        trained_s = self._row.get("wall_s", 0.0) - self._row.get("start_s", 0.0)
        return min(1.0, max([*shares, trained_s / seconds if seconds else 0.0]))

    def _goal(self) -> str:
        threshold = self._config.eval.threshold
        if threshold is None:
            return ""
        newest = self._row.get("greedy_return")
        return f"{newest:.0f} of {threshold:g}" if newest is not None else f"goal {threshold:g}"


def _shown(row: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yields the rows with their present values."""
    for name, show in (*ROWS, *NEWS):
        if shown := show(row):
            yield name, shown
