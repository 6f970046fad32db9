"""The trackers of a run, as its driver uses them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from deploy.config.errors import ConfigError, RunDirError
from deploy.config.models import RunConfig, TrackConfig, dump
from deploy.monitoring.metrics import TrackingMetrics
from deploy.run_directory.directory import RunDirectory
from deploy.tracking.relay import Relay
from deploy.tracking.tracker import Ended, Ending, Record
from learner.policy import DESCRIPTION
from replay.metrics import flat

READY_S = 60.0
"""Seconds that a tracker's library may take to be imported, on a busy machine."""
EVERY_S = 5.0
"""Seconds between two points of the curves; a row takes MLflow 30 ms on SQLite. An evaluation has one of its own."""
END_S = 20.0
"""Seconds that the end of a run waits for its trackers, at the most."""
HURRIED_S = 4.0
"""Likewise of a run that was interrupted, or whose tracker refuses what it is given."""


def trackers_of(config: TrackConfig) -> Tracking:
    """Starts the trackers that a run's options ask for; as a rule there are none."""
    return Tracking([Relay(name) for name in ("wandb", "mlflow") if getattr(config, name)])


class Tracking:
    """The trackers of a run. A context manager: their processes end with it."""

    def __init__(self, relays: Sequence[Relay]) -> None:
        self._relays = relays
        self._offered_s = float("-inf")
        self._newest: Mapping[str, float] = {}
        self._offered: Mapping[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for relay in self._relays:
            relay.close()

    def check(self) -> None:
        """Raises ConfigError where a tracker cannot be used. Sends nothing of the run."""
        until_s = time.monotonic() + READY_S
        for relay in self._relays:
            if not relay.wait_ready(until_s):
                why = relay.refused or f"the process of its library has not answered within {READY_S:g} s, or has ended"
                raise ConfigError(f"--track.{relay.name}: {why}; or leave it out (--track.no-{relay.name})")

    def describe(self, config: RunConfig, directory: RunDirectory) -> None:
        """Takes down what a record begins with; it begins with the first row, since before that a run may leave
        nothing."""
        self._record = Record(
            directory.fences.nonce,
            directory.run,
            config.env.id,
            config.track.project,
            dump(config),
            str(directory.config_file),
            str(directory.path),
        )

    def offer(self, row: Mapping[str, float], *, evaluated: bool = False) -> None:
        """Records a row of metrics, if it is time, or if a policy was ``evaluated``. The row must not change any
        more."""
        self._newest = row
        if evaluated or time.monotonic() - self._offered_s >= EVERY_S:
            self._offered_s = time.monotonic()
            self._offer_newest()

    def _offer_newest(self) -> None:
        for relay in self._relays:
            if not self._offered:
                relay.begin(self._record)
            relay.offer(self._newest)
        self._offered = self._newest

    def news(self) -> Iterator[str]:
        """Yields what the user is to be told, once."""
        for relay in self._relays:
            while relay.news:
                yield relay.news.popleft()

    def counts(self) -> dict[str, float]:
        """Returns how many rows are not recorded, as metrics.jsonl has it; empty without trackers."""
        return flat(TrackingMetrics(sum(relay.lost for relay in self._relays))) if self._relays else {}

    def end(self, directory: RunDirectory, ended: Ended, summary: Mapping[str, Any]) -> None:
        """Adds the summary and the best policy to the records and closes them; waits for that a bounded time."""
        if not self._offered:
            return
        if self._newest is not self._offered:
            self._offer_newest()
        ending = Ending(ended, int(summary["env_steps"]), dict(summary), _policy_files(directory))
        until_s = time.monotonic() + (HURRIED_S if ended == "interrupted" else END_S)
        for relay in self._relays:
            left_s = max(0.0, until_s - time.monotonic())
            relay.end(ending, min(left_s, HURRIED_S) if relay.failing else left_s)
            if relay.lost:
                relay.news.append(f"{relay.name}: {relay.lost} rows, or the end, of this run are not recorded")


def ended_by(reason: str) -> Ended:
    """Returns how a run ended, by its reason."""
    if reason.startswith("failed"):
        return "failed"
    return "interrupted" if reason == "interrupted" else "finished"


def _policy_files(directory: RunDirectory) -> dict[str, str]:
    """Returns the files that ``learner.load_policy`` needs, by their paths in a run's directory."""
    try:
        manifest = directory.best.manifest()
    except RunDirError:
        return {}
    if manifest is None:
        return {}
    names = (DESCRIPTION, "checkpoints/best.json", f"checkpoints/{manifest['file']}")
    files = {name: directory.path / Path(name) for name in names}
    return {name: str(path) for name, path in files.items()} if all(map(Path.is_file, files.values())) else {}
