"""What the commands that take all options of a run have in common: ENV, --preset and --config below the options."""

from __future__ import annotations

from pathlib import Path

import tyro
from pydantic import BaseModel, ConfigDict

from deploy.config.layers import check_bounds, compose
from deploy.config.models import RunConfig


class RunOptions(BaseModel):
    """What comes before the options."""

    model_config = ConfigDict(frozen=True)

    preset: str | None = None
    """Start from these values: acrobot, atari, cartpole, lunarlander, minatar, mountaincar, r2d2 or tutorial. The
    default goes by the environment."""
    config: Path | None = None
    """A YAML file of options, over the preset."""


def base_config(arguments: list[str]) -> RunConfig:
    """Returns all layers below the command line's own options; takes ENV, which comes first, out of ``arguments``.

    Raises:
        ConfigError: a layer, or a number on the command line, is out of its bounds.
    """
    env_id = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    given, _ = tyro.cli(RunOptions, args=arguments, return_unknown_args=True, add_help=False)
    base = compose(env_id, given.preset, given.config)
    check_bounds(arguments)
    return base
