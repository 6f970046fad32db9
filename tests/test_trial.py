"""Networks with parts of the user's own are tried before a run: what does not fit is found in the driver."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.planning.memory import check_network
from learner.algorithms import Algorithm
from learner.networks.mlp import MlpEncoder
from learner.networks.q_network import QOutput
from replay.chunk import Schema

DQN = "learner.algorithms.dqn:scalar_loss"
PICTURES, VECTORS = Schema((4, 4, 1), "uint8", 2, obs_divisor=255), Schema((3,), "float32", 2)


class Kernel(nn.Module):
    """An encoder whose kernel is larger than small pictures."""

    def __init__(self, schema: Schema, config: Any) -> None:
        super().__init__()
        self.conv, self.features = nn.Conv2d(1, 2, 5), 2

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.conv(obs.movedim(-1, 1)).mean((2, 3))
        return features


class Narrow(MlpEncoder):
    """An encoder that returns other features than it names."""

    def __init__(self, schema: Schema, config: Any) -> None:
        super().__init__(schema, config)
        self.features = 7


class Wide(MlpEncoder):
    """An encoder that returns float64."""

    def forward(self, obs: Tensor) -> Tensor:
        return super().forward(obs).double()


class OneValue(nn.Module):
    """A head that has a value, and not one for each action."""

    def __init__(self, features: int, num_actions: int, spec: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)

    def forward(self, features: Tensor) -> Any:
        return QOutput(self.linear(features))


class Bare(OneValue):
    """A head that returns its values as they are."""

    def forward(self, features: Tensor) -> Any:
        return self.linear(features)


class Unmade(OneValue):
    """A head that cannot be made."""

    def __init__(self, features: int, num_actions: int, spec: Any) -> None:
        raise KeyError("atoms")


ONE_VALUE = Algorithm(DQN, head="test_trial:OneValue")
BARE = Algorithm(DQN, head="test_trial:Bare")
UNMADE = Algorithm(DQN, head="test_trial:Unmade")


def check(schema: Schema, encoder: str = "auto", algorithm: str = "dqn") -> None:
    learner = {"network": {"encoder": encoder, "hidden": [5]}, "algorithm": algorithm}
    check_network(RunConfig.model_validate({"learner": learner}), schema)


@pytest.mark.parametrize(
    ("schema", "options", "why"),
    [
        (
            PICTURES,
            {"encoder": "test_trial:Kernel"},
            r"'test_trial:Kernel' does not take observations of shape \(4, 4, 1\): RuntimeError: .*[Kk]ernel size",
        ),
        (
            VECTORS,
            {"encoder": "test_trial:Narrow"},
            r"test_trial:Narrow' returns <float32>\[2, 5\] for .*; it has to be <float32>\[2, 7\], as its features are",
        ),
        (VECTORS, {"encoder": "test_trial:Wide"}, r"returns <float64>\[2, 5\] for .*; it has to be <float32>\[2, 5\]"),
        (
            VECTORS,
            {"algorithm": "test_trial:ONE_VALUE"},
            r"head 'test_trial:OneValue' returns the values <float32>\[2, 1\] .*<float32>\[2, 2\], as the actions are",
        ),
        (VECTORS, {"algorithm": "test_trial:BARE"}, "head 'test_trial:Bare' returns a Tensor; it has to be a learner"),
        (VECTORS, {"algorithm": "test_trial:UNMADE"}, "head 'test_trial:Unmade' cannot be made: KeyError: 'atoms'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_what_was_expected(schema: Schema, options: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check(schema, **options)


def test_what_fits_is_taken_and_draws_none_of_torchs_random_numbers() -> None:
    """The program that calls ``train`` may have its own use for them."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    check(Schema((5, 9, 1), "uint8", 2), encoder="test_trial:Kernel")
    assert torch.equal(torch.random.get_rng_state(), before)
