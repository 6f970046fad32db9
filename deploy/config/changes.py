"""What of a run's configuration is another than it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from deploy.config.errors import ConfigError
from deploy.config.layers import option_at
from deploy.config.models import RunConfig, dump, kept_options, option_paths

WHERE = ("run", "runs_dir", "log_level", "checkpoint.keep", "metrics.", "redis.", "ray.", "track.")
"""Options that say where a run is and what is kept of it, not what it does."""


def with_choices_of(before: RunConfig, after: RunConfig) -> RunConfig:
    """Returns the configuration ``after`` with what the run has where ``auto`` is asked for: that was chosen as the run
    began."""
    env, network = after.env, after.learner.network
    if env.action_mask == "auto":
        env = env.model_copy(update={"action_mask": before.env.action_mask})
    if network.encoder == "auto":
        network = network.model_copy(update={"encoder": before.learner.network.encoder})
    learner = after.learner.model_copy(update={"network": network})
    return after.model_copy(update={"env": env, "learner": learner})


def check_changes(before: RunConfig, after: RunConfig) -> None:
    """Raises ConfigError for an option that a run has to keep and that is another."""
    old, new = dump(before), dump(after)
    for path in kept_options(before.mode):
        was, asked = option_at(old, path), option_at(new, path)
        if was != asked:
            raise ConfigError(
                f"{path} is {was} in this run, and {asked} was asked for: it shapes what the run has learned and "
                "stored; leave it, or start a new run"
            )


class Difference(NamedTuple):
    """An option that has another value than it had."""

    path: str
    was: Any
    asked: Any


def differences(before: RunConfig, after: RunConfig) -> Iterator[Difference]:
    """Yields what two configurations have a run do otherwise; what ``auto`` asks for was chosen as the run began."""
    old, new = dump(before), dump(with_choices_of(before, after))
    for path in option_paths():
        was, asked = option_at(old, path), option_at(new, path)
        if was != asked and not path.startswith(WHERE):
            yield Difference(path, was, asked)
