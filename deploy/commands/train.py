"""``qherd train``: train a Q-network, or go on with the run of that name."""

from __future__ import annotations

from typing import Annotated

import tyro

from deploy.commands.run_options import RunOptions, base_config
from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig, dump
from deploy.config.numbers import write_yaml
from deploy.process.cpu import started_s
from deploy.process.signals import quiet_interrupt


class Train(RunOptions):
    """Train a Q-network with actors, a replay server and a learner. ENV, if given, comes first: a Gymnasium
    environment, or module:EnvId for one of your own.

    Options by dotted name come on top of the environment variables (QHERD_LEARNER_LR=5e-4), these on top of --config,
    this on top of the preset.
    """

    dry_run: bool = False
    """Print the resolved configuration and stop."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run --run where there is one of that name already: for launchers that repeat their command."""
    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    base = base_config(arguments)
    call = tyro.cli(Train, args=arguments, default=Train(options=base), prog="qherd train [ENV]", registry=as_written())
    config = call.options
    if call.dry_run:
        print(write_yaml(dump(config)), end="")
        return 0
    with quiet_interrupt():  # not above: --help and --dry-run do not wait half a second for the sessions
        from deploy.commands.resume import resume
        from deploy.sessions.driver import train

    if not call.resume:
        return train(config, started_s())
    if config.run is None:
        raise ConfigError("--resume needs to know the run: give its name with --run")
    path = config.runs_dir / config.run
    return resume(path, config, started_s()) if path.exists() else train(config, started_s())
