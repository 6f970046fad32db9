"""``qherd discovery``: tell Prometheus which runs there are."""

from __future__ import annotations

from pathlib import Path

import tyro
from pydantic import BaseModel, Field

from deploy.config.cli_types import as_written
from deploy.monitoring.discovery import serve


class Discovery(BaseModel):
    """Tell Prometheus which runs there are, and where their /metrics is: HTTP service discovery, until interrupted.

    It knows the runs of this machine's --runs-dir, or of a folder that several machines share. A run is on the list
    from its learner's start to its orderly end; it needs --metrics.port (0: a free one, so that several never meet).
    """

    runs_dir: tuple[Path, ...] = (Path("runs"),)
    """Where the folders of runs are; several may be given."""
    port: int = Field(9180, ge=0, le=65535)
    """The port to serve on; deploy/prometheus/prometheus.yml asks 9180."""
    host: str = "127.0.0.1"
    """The address to serve on."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(Discovery, args=arguments, prog="qherd discovery", registry=as_written())
    return serve(call.runs_dir, call.host, call.port)
