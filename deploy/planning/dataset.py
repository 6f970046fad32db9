"""The dataset that a run learns from: whether it is here and of the run's environment, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.errors import EnvError
from actors.spaces import numbered_actions, observations_of
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from learner.dataset import DatasetSpec, episodes_of, reading, rows_of
from learner.minari_store import folder_of, open_dataset
from replay.chunk import ACTION_MASK, Schema


def check_without_actors(config: RunConfig) -> None:
    """Raises ConfigError where a run has no actors and cannot do without."""
    option = config.replay.dataset_option
    if config.actors.count:
        return
    if option is None:
        raise ConfigError("actors.count is 0: give at least 1, or a --replay.dataset to learn from")
    if config.mode != "inline":
        raise ConfigError(
            f"actors.count is 0, and the mode {config.mode} needs an actor at least: give --mode inline, which learns "
            "from a dataset alone"
        )
    if option.share not in (None, 1):
        raise ConfigError(
            f"actors.count is 0, and --replay.dataset {config.replay.dataset} leaves a part of each batch to the "
            f"actors: give --replay.dataset {option.id}"
        )


def dataset_rows(config: RunConfig) -> int:
    """Returns the rows of the run's dataset; 0 where it has none. Raises DatasetError where it is not here."""
    option = config.replay.dataset_option
    return 0 if option is None else rows_of(open_dataset(option.id))


def dataset_spec(config: RunConfig, about: Mapping[str, Any]) -> DatasetSpec | None:
    """Returns what the learner is given of the run's dataset; ``about``: see ``Checked.about``."""
    option = config.replay.dataset_option
    return None if option is None else DatasetSpec(option.id, folder_of(option.id), about)


def check_dataset(config: RunConfig, schema: Schema, about: Mapping[str, Any]) -> None:
    """Raises ConfigError or DatasetError where the run's dataset is missing, or of another environment than the one
    that ``schema`` and ``about`` are of."""
    option = config.replay.dataset_option
    if option is None:
        return
    if config.mode == "cluster":
        raise ConfigError("--replay.dataset is for the modes inline and local: a cluster's learner may not see it")
    if option.share is not None and option.share * config.learner.batch < 0.5:
        raise ConfigError(
            f"{option.share:g} of learner.batch = {config.learner.batch} is less than half a transition: give "
            f"--replay.dataset {option.id},SHARE with a share of at least {0.5 / config.learner.batch:.2g}"
        )
    found = open_dataset(option.id)
    _check_environment(config, found, f"dataset {option.id}", about)
    if not (found.total_steps and found.total_episodes):
        raise ConfigError(f"dataset {option.id} has no env step")
    if not schema.extras:
        return
    with reading(lambda: f"dataset {option.id} cannot be read"):
        infos = next(episodes_of(found, [column.name for column in schema.extras])).infos or {}
    for column in schema.extras:
        if column.name not in infos:
            remedy = "give --env.action-mask ignore, or " if column.name == ACTION_MASK else ""
            raise ConfigError(
                f"dataset {option.id} has no {column.name} in its infos, which this run's rows have: {remedy}choose a "
                "dataset that has"
            )


def _check_environment(config: RunConfig, found: Any, name: str, about: Mapping[str, Any]) -> None:
    """Raises ConfigError where a ``minari.MinariDataset`` is of another environment, with the schemas of both."""
    ids = [None if found.env_spec is None else found.env_spec.id, config.env.id.rpartition(":")[2]]
    try:
        observations = observations_of(name, found.observation_space).about
        theirs = {"observation": observations, "actions": numbered_actions(name, found.action_space).about}
    except EnvError as error:
        raise ConfigError(f"{error}; so this run's environment, {config.env.id}, is another one") from error
    if ids[0] in (None, ids[1]) and _plain(theirs) == _plain({key: about[key] for key in theirs}):
        return
    (obs, actions), (own_obs, own_actions) = (
        (each["observation"]["space"], each["actions"]["space"]) for each in (theirs, about)
    )
    raise ConfigError(
        f"{name} is of another environment: {ids[0] or 'unnamed'}, observations {obs}, actions {actions}; this run's "
        f"is {ids[1]}, observations {own_obs}, actions {own_actions}"
    )


def _plain(value: Any) -> Any:
    """Returns the description of spaces without their texts, which have bounds: versions of an environment differ in
    these, and nothing is stored otherwise."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if key != "space"}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
