"""The file that a run's policy is loaded by, in any program: policy.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deploy.config.models import RunConfig, dump, env_of
from deploy.run_directory.directory import RunDirectory, checkpoint_folder
from deploy.run_directory.files import replace_file
from learner.policy import DESCRIPTION, Description
from replay.chunk import Schema


def policy_description(
    config: RunConfig, directory: RunDirectory, schema: Schema, about: Mapping[str, Any]
) -> Description:
    """Returns what the run's policy is loaded by; ``about``: the environment's own observations and actions."""
    path, kwargs = env_of(config).path, dump(config)["env"]["kwargs"]
    env = {"id": config.env.id, "kwargs": kwargs, "path": None if path is None else str(path)}
    elsewhere = None if config.checkpoint.dir is None else str(checkpoint_folder(config, directory))
    return Description(env, dict(about), config.env.frame_stack, schema, config.learner.network_spec, elsewhere)


def describe_policy(config: RunConfig, directory: RunDirectory, schema: Schema, about: Mapping[str, Any]) -> None:
    """Writes the file that ``learner.load_policy`` reads. Raises RunDirError where the disk refuses it."""
    described = json.dumps(policy_description(config, directory, schema, about).dump()) + "\n"
    replace_file(directory.path / DESCRIPTION, described.encode())
