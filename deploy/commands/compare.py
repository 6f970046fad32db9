"""``qherd compare``: runs side by side in the terminal: what differs in their options, and what they have come to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from pydantic import BaseModel
from rich.table import Table

from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.config.repeat import flat_options
from deploy.monitoring.tables import add_row, print_table
from deploy.process.output import printable
from deploy.process.signals import quiet_interrupt

if TYPE_CHECKING:
    from deploy.reporting.records import RunRecord


class Compare(BaseModel):
    """Show runs side by side: first the options and versions in which they differ, then how far they came, their
    scores, and how they ended. Many runs, seeds and curves: qherd report.
    """

    runs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN...")]
    """Directories of runs, two or more."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON: an object for each run."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(Compare, args=arguments, prog="qherd compare", registry=as_written())
    if len(call.runs) < 2:
        raise ConfigError(f"one run is given, {call.runs[0]}; a comparison needs two or more")
    with quiet_interrupt():
        from deploy.reporting.comparison import differences, differing_provenance, provenance_of
        from deploy.reporting.sources import read_sources

    records, _ = read_sources(call.runs)
    if len(records) != len(call.runs):
        raise ConfigError("compare takes runs; of a study, qherd report shows all")
    options, versions = differences(records), differing_provenance(records)
    columns = [
        {
            "options": {path: flat_options(record.config)[path] for path in ["seed", *options]},
            "versions": {name: provenance_of(record).get(name, "") for name in versions},
            "results": {name: value(record) for name, value in RESULTS.items()},
        }
        for record in records
    ]
    if call.as_json:
        named = zip(call.runs, columns, strict=True)
        print(json.dumps([{"run": str(path), **column} for path, column in named], default=str))
    else:
        print_table(_table([str(path) for path in call.runs], columns))
    return 0


RESULTS: Mapping[str, Callable[[RunRecord], Any]] = {
    "state": lambda run: run.state,
    "env steps": lambda run: run.summary.env_steps if run.summary else int(run.newest.get("env_steps", 0)),
    "updates": lambda run: run.summary.updates if run.summary else int(run.newest.get("updates", 0)),
    "seconds": lambda run: run.summary.wall_s if run.summary else run.newest.get("wall_s"),
    "solved after env steps": lambda run: run.summary and run.summary.solved_env_steps,
    "final policy, mean return": lambda run: run.final and run.final.mean,
    "newest evaluation in training": lambda run: run.newest_screen,
    "best policy, by what chose it": lambda run: run.summary and run.summary.eval_mean,
    "best policy, hold-out": lambda run: run.summary and run.summary.holdout_mean,
    "actors' return, last tenth": lambda run: run.training_return,
}


def _table(names: Sequence[str], columns: Sequence[Mapping[str, Mapping[str, Any]]]) -> Table:
    table = Table("", *map(printable, names))
    for part in ("options", "versions", "results"):
        for name in columns[0][part]:
            values = [column[part][name] for column in columns]
            if any(value is not None for value in values):
                add_row(table, [name, *map(_shown, values)])
        table.add_section()
    return table


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
