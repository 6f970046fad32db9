"""scrape.json: where a run's /metrics is, as Prometheus wants it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from deploy.config.models import RUN_NAME
from deploy.process.host import host_and_port

_ADDRESS = r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253}):\d{1,5}"


class Labels(BaseModel):
    """What Prometheus puts on the target's own series, such as ``up``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[str, StringConstraints(pattern=f"^{RUN_NAME}$")]


class Registration(BaseModel):
    """A run's scrape.json: one target group, as Prometheus wants it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: tuple[Annotated[str, StringConstraints(pattern=f"^{_ADDRESS}$")]]
    labels: Labels


def registration(run: str, host: str, port: int) -> str:
    """Returns the text of scrape.json."""
    return Registration(targets=(host_and_port(host, port),), labels=Labels(run=run)).model_dump_json() + "\n"
