"""What a Q-network is made of, as data: no torch, so that actors, ``plan`` and ``doctor`` read it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field

from replay.options import Options


class ImpalaConfig(Options):
    """The encoder impala (arXiv 1802.01561)."""

    width: int = Field(1, ge=1, le=16)
    """Factor on its 16, 32 and 32 channels."""
    pool: Literal["flat", "max6", "gap"] = "flat"
    """What its linear layers get: all pixels; the maxima of 6 x 6 fields; gap: the mean of each channel."""
    spectral_norm: bool = False
    """Divide the weights of its residual convolutions by their spectral norm (arXiv 1802.05957)."""


class NetworkConfig(Options):
    """The Q-network: an encoder turns an observation into features, a head turns features into values. Between the two
    there may be a recurrent core."""

    encoder: str = "auto"
    """mlp: linear layers; minatar: one convolution for small pictures; nature: the three of DQN's, for pictures of at
    least 36 x 36; impala: fifteen, with residual blocks; each before linear layers. entries: for a Dict or Tuple, one
    of these for each picture and an mlp for the rest. auto: nature or minatar for pictures by their size, entries for a
    Dict or Tuple with a picture, mlp for all else; or module:Class of your own, imported in every worker."""
    hidden: tuple[Annotated[int, Field(ge=1, le=16_384)], ...] = (128, 128)
    """Units of the encoder's linear layers."""
    layer_norm: bool = False
    """Normalise each layer's output before its ReLU (arXiv 1607.06450); of convolutions over channels and pixels."""
    impala: ImpalaConfig = ImpalaConfig()
    dueling: bool = False
    """Split the head into a value and advantages (arXiv 1511.06581)."""
    core: Literal["none", "lstm", "gru"] = "none"
    """A recurrent core between encoder and head, for what a single observation does not show: lstm, or gru, which has a
    quarter fewer parameters. It is trained on sequences (replay.sequences)."""
    core_size: int = Field(128, ge=1, le=4096)
    """Units of the core."""
    core_previous: bool = False
    """Give the core the previous action and reward, too, the reward as it is trained on."""


@dataclass(frozen=True)
class NetworkSpec:
    """All that a Q-network is built from, beside the schema: what travels to actors and evaluator.

    ``head`` and its ``options`` are the algorithm's choice (learner/algorithms), such as ``quantiles`` and
    ``{"quantiles": 51}``. ``reward_scale`` and ``reward_clip`` are the learner's, for a core that is given rewards.
    """

    config: NetworkConfig = field(default_factory=NetworkConfig)
    head: str = "values"
    options: Mapping[str, float] = field(default_factory=dict)
    reward_scale: float = 1.0
    reward_clip: bool = False


def acting_spec(spec: NetworkSpec) -> NetworkSpec:
    """Returns the network that computes the same with published weights, which have their spectral norm divided out."""
    impala = spec.config.impala.model_copy(update={"spectral_norm": False})
    return replace(spec, config=spec.config.model_copy(update={"impala": impala}))
