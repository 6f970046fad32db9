"""What a tracker is for qherd, and the trackers by name. Imports none of their libraries."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

PROJECT = "qherd"
"""W&B's project and MLflow's experiment, where neither the option nor the tracker's own variable names one."""
Ended = Literal["finished", "interrupted", "failed"]
SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
URLS = ("MLFLOW_TRACKING_URI", "WANDB_BASE_URL")
"""Variables that may have a password in them."""


class Refused(Exception):
    """A tracker that cannot be used here: no package, no credentials. The text has the remedy."""


class Record(NamedTuple):
    """A run, as a tracker's record of it begins."""

    key: str
    """What the record is found again by when the run is resumed."""
    run: str
    env: str
    project: str | None
    config: dict[str, Any]
    """All options, nested, without the servers' passwords."""
    config_file: str
    folder: str
    """The run's directory."""


class Ending(NamedTuple):
    """A run, as it ends for now."""

    ended: Ended
    env_steps: int
    summary: dict[str, Any]
    """What summary.json has."""
    policy: dict[str, str]
    """The best policy's files, by their paths within the artifact; empty where there is none."""


class Tracker(Protocol):
    """A record of one run in a tracker. All calls come from one thread of a process of its own, and may take their
    time, or raise: what they raise is counted, and the run continues."""

    def check(self) -> None:
        """Raises Refused where the tracker cannot be used here."""

    def begin(self, record: Record) -> str:
        """Begins the record, or continues that of the same key; returns where it is. Called again where it raises."""

    def log(self, row: Mapping[str, float]) -> None:
        """Adds a point to each curve, at the row's ``env_steps``."""

    def end(self, ending: Ending) -> None:
        """Adds summary and best policy, and closes the record."""


def without_secrets(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """Returns a text of a library's without the keys and passwords in the environment's variables, and as one line.
    Before it is cut: of a secret on the border the end alone would be gone."""
    urls = (re.match(r"[\w+.-]+://[^:/@]*:(.*)@", environ.get(name, "")) for name in URLS)
    passwords = (url[1] for url in urls if url)  # which urllib does not find where it has brackets or slashes
    for secret in filter(None, [*(environ.get(name) for name in SECRETS), *passwords]):
        text = text.replace(secret, "***")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)


def missing(name: str, error: ImportError) -> str:
    """Returns the remedy where a tracker's library cannot be imported."""
    return (
        f"the extra {name} is not installed ({error}): pip install 'qherd[{name}]', or in a clone "
        f".venv/bin/python -m pip install -c constraints.txt -e '.[{name}]'"
    )


def make_tracker(name: str) -> Tracker:
    """Returns the tracker of that name. Imports its module, not yet its library."""
    if name == "wandb":
        from deploy.tracking.wandb_tracker import WandbTracker

        return WandbTracker()
    from deploy.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker()
