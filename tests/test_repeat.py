"""The command that repeats a run: what it is read as is the run's own configuration."""

from __future__ import annotations

import os
import shlex
from typing import Any

import pytest
import tyro

from actors.config import EnvConfig
from deploy.commands.run_options import base_config
from deploy.commands.train import Train
from deploy.config.cli_types import as_written
from deploy.config.layers import compose
from deploy.config.models import RunConfig, option_paths
from deploy.config.repeat import command_for, flat_options


def read(command: str) -> RunConfig:
    """As ``qherd train`` reads it."""
    program, subcommand, *words = shlex.split(command)
    assert (program, subcommand) == ("qherd", "train")
    default = Train(options=base_config(words))
    return tyro.cli(Train, args=words, default=default, registry=as_written()).options


def changed(**sections: Any) -> RunConfig:
    return RunConfig.model_validate(sections)


@pytest.fixture(autouse=True)
def no_options_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("QHERD_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(compose(None, "atari", None, {}), id="a preset"),
        pytest.param(compose(None, "tutorial", None, {}), id="a preset that is no environment's default"),
        pytest.param(
            changed(
                seed=7,
                mode="inline",
                log_level="debug",
                env={
                    "id": "my_module:ns/Env-v1",
                    "path": "./a folder",
                    "kwargs": {"gravity": -9.5, "text": "it's; $HOME", "deep": {"a": [1, None, True]}},
                },
                actors={"count": 3, "resources": {"a b": 0.5}},
                learner={"lr": 1e-7, "double": False, "network": {"hidden": [7, 8, 9]}},
                budget={"env_steps": 10**12, "seconds": 0.5},
            ),
            id="numbers, texts, mappings",
        ),
        pytest.param(
            changed(
                mode="cluster",
                learner={"network": {"hidden": []}},
                eval={"threshold": None},
                ray={"address": "h:6380", "autoscales": True},
                redis={"urls": ["redis://a", "redis://b"]},
            ),
            id="lists and none",
        ),
    ],
)
def test_it_is_read_as_the_same_configuration(config: RunConfig) -> None:
    assert read(command_for(config)) == config


def test_it_names_what_differs_and_nothing_else() -> None:
    config = compose("CartPole-v1", None, None, {}).model_copy(update={"seed": 3})
    assert command_for(config) == "qherd train CartPole-v1 --seed 3"


def test_neither_name_nor_folder_is_repeated() -> None:
    """A run is never overwritten: the repetition has a name of its own."""
    config = RunConfig(run="mine", env=EnvConfig(id="CartPole-v1"))
    assert "mine" not in command_for(config)


def test_no_password_is_shown() -> None:
    command = command_for(changed(mode="cluster", redis={"url": "redis://user:s3cr3t@host:6379/0"}))
    assert "s3cr3t" not in command
    assert "host:6379" in command


def test_the_options_are_all_there() -> None:
    assert list(flat_options(RunConfig())) == list(option_paths())
