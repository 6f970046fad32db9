"""What a Q-network is made of, as data: no torch, so that actors, ``plan`` and ``doctor`` read it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict


class NetworkConfig(BaseModel):
    """The Q-network: an encoder turns an observation into features, a head turns features into values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = "auto"
    """mlp: linear layers; minatar: one convolution for small pictures, then linear layers; auto: minatar for pictures
    of at most 16 x 16, mlp for all else; or module:Class of your own, imported in every worker."""
    hidden: tuple[int, ...] = (128, 128)
    """Units of the encoder's linear layers."""
    dueling: bool = False
    """Split the head into a value and advantages (arXiv 1511.06581)."""


@dataclass(frozen=True)
class NetworkSpec:
    """All that a Q-network is built from, beside the schema: what travels to actors and evaluator.

    ``head`` and its ``options`` are the algorithm's choice (learner/algorithms), such as ``quantiles`` and
    ``{"quantiles": 51}``.
    """

    config: NetworkConfig = field(default_factory=NetworkConfig)
    head: str = "values"
    options: Mapping[str, float] = field(default_factory=dict)
