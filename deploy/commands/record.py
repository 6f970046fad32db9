"""``qherd record``: a video of a run's best policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel, Field

from actors.seeds import MAX_SEED, PLAYBACK
from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.playback.film import film
from deploy.playback.players import Moved
from deploy.run_directory.directory import RunDirectory


class Record(BaseModel):
    """Write a video of a run's best policy."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    env: Moved = Moved()
    out: Path | None = None
    """The file to write, .mp4 or .gif. The default is best.mp4 in the run's directory."""
    seed: int = Field(PLAYBACK, ge=0, le=MAX_SEED)
    """Seed of the episode."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(Record, args=arguments, prog="qherd record", registry=as_written())
    return record(call.run, call.out, call.seed, env_path=call.env.path)


def record(run: Path, out: Path | None, seed: int, *, env_path: Path | None) -> int:
    """Plays one greedy episode and writes it as MP4 or GIF. ``env_path``: see ``evaluate``."""
    directory = RunDirectory.open(run)
    out = out or directory.path / "best.mp4"
    if out.suffix not in (".mp4", ".gif"):
        raise ConfigError(f"--out {out}: the video's name has to end in .mp4 or .gif")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    if out.exists():
        raise ConfigError(f"--out {out} exists already: choose another name")
    played = film(directory, out, seed, env_path)
    print(f"{out}: return {played.mean:.1f} in {played.lengths[0]} env steps")
    return 0
