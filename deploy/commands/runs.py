"""``qherd runs``: a table of the runs in a folder: what they train, how far they are, and how they ended."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import BaseModel
from rich.table import Table

from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.monitoring.tables import add_row, print_table
from deploy.run_directory.files import is_plain
from deploy.run_directory.standing import Standing, standing_of
from replay.errors import QherdError

ENDED_WIDTH = 60
"""Characters of how a run ended, in the table."""


class Runs(BaseModel):
    """List the runs in a folder: whether each is at work, how far it is, its newest and its best greedy return, and how
    it ended. The newest begun comes last.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = Path("runs")
    """Where the folders of runs are: runs, or a study's, studies/NAME/runs."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON: a list with an object for each run."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(Runs, args=arguments, prog="qherd runs", registry=as_written())
    found = runs_in(call.folder)
    if call.as_json:
        print(json.dumps([_figures(each) for each in found]))
    elif found:
        print_table(_table(found))
    else:
        print(f"no runs in {call.folder}: qherd train begins one", file=sys.stderr)
    return 0


def runs_in(folder: Path) -> list[Standing]:
    """Returns how the runs in a folder stand, in the order in which they were begun.

    Raises:
        ConfigError: there is no such folder, or it is a run's own.
    """
    if is_plain(folder / "config.yaml"):
        raise ConfigError(f"{folder} is a run; give the folder that it is in: qherd runs {folder.parent}")
    try:
        paths = [path for path in folder.iterdir() if is_plain(path / "config.yaml")]
        begun = {path: (path / "config.yaml").stat().st_mtime for path in paths}
    except FileNotFoundError:
        if folder == Path("runs"):  # the default: nothing was begun here
            return []
        raise ConfigError(f"there is no folder {folder}") from None
    except NotADirectoryError:
        raise ConfigError(f"{folder} is no folder") from None
    return [_standing(path) for path in sorted(paths, key=lambda path: (begun[path], path.name))]


def _standing(path: Path) -> Standing:
    try:
        return standing_of(path)
    except QherdError as error:
        return Standing(path, "damaged", str(error))


def _figures(standing: Standing) -> dict[str, Any]:
    return {"run": standing.path.name, **vars(standing), "path": str(standing.path)}


def _table(found: Sequence[Standing]) -> Table:
    numbers = ("seed", "env steps", "updates", "seconds", "greedy", "best")
    table = Table("run", "state", "environment", *numbers, "how it ended")
    for column in table.columns[3:9]:
        column.justify = "right"
    for each in found:
        ended = each.ended if len(each.ended) <= ENDED_WIDTH else f"{each.ended[: ENDED_WIDTH - 3]}..."
        counts = (each.seed, each.env_steps, each.updates)
        figures = ("" if count is None else f"{count:,}" for count in counts)
        seconds = "" if each.wall_s is None else f"{each.wall_s:,.0f}"
        returns = ("" if value is None else f"{value:.1f}" for value in (each.greedy, each.best))
        add_row(table, [each.path.name, each.state, each.env or "", *figures, seconds, *returns, ended])
    return table
