"""``qherd resume``: which run, and what of its configuration may be another than it was."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel

from deploy.config.changes import check_changes, with_choices_of
from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.config.layers import check_bounds, compose
from deploy.config.models import SERVER_OPTIONS, RunConfig
from deploy.process.cpu import started_s
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.driver import continue_run


class Resume(BaseModel):
    """Go on with a run from its newest checkpoint, with all that it has counted, learned and stored. Its directory
    comes first: qherd resume runs/NAME.

    Options by dotted name change what may change, such as --budget.env-steps or --learner.lr; what the run has learned
    and stored goes by the others, which stay as they were.
    """

    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    path = Path(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else None
    if path is None and not {"-h", "--help"} & set(arguments):
        raise ConfigError("qherd resume needs the run's directory: qherd resume runs/NAME")
    check_bounds(arguments)
    base = RunConfig() if path is None else config_of(path)
    call = tyro.cli(
        Resume, args=arguments, default=Resume(options=base), prog="qherd resume RUN", registry=as_written()
    )
    return resume(path or Path(), call.options, started_s())


def config_of(path: Path) -> RunConfig:
    """Returns the configuration that a run is resumed with where no option changes it: its own, with the
    environment's variables over it (a server's password is nowhere else)."""
    directory = RunDirectory.open(path)
    config = compose(None, None, directory.config_file)
    parent = path.parent if path.name else path.absolute().parent  # of "." the folder that it is in
    return config.model_copy(update={"run": directory.run, "runs_dir": parent})


def resume(path: Path, config: RunConfig, since_s: float | None = None) -> int:
    """Continues the run in ``path`` under ``config``; returns the exit code. ``since_s``: as ``driver.train``'s."""
    with closing(RunDirectory.reopen(path)) as directory:
        config = with_choices_of(directory.config, config)
        check_changes(directory.config, config)
        if any("***" in url for url in (*config.redis.servers, *config.redis.actor_servers)):
            raise ConfigError(
                f"{path}/{directory.config_file.name} keeps no password of its server: give the whole URL with "
                f"{SERVER_OPTIONS}; so too --redis.actor-url where the actors have a user of their own"
            )
        return continue_run(config, directory, since_s)
