"""The learner's configuration. Field docs are the command line's help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from learner.algorithms import algorithm_of
from learner.networks import NetworkConfig, NetworkSpec
from replay.kept import Kept

PUBLISH_MIN_S = 0.1
"""Seconds between two broadcasts of the weights, at the least (not in the inline mode)."""


class QrDqnConfig(BaseModel):
    """QR-DQN (arXiv 1710.10044)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantiles: Kept[int] = Field(51, ge=1, le=1024)
    """Quantiles of the return per action."""
    kappa: float = Field(1.0, gt=0)
    """|TD error| of a pair of quantiles beyond which the loss is linear."""


class LearnerConfig(BaseModel):
    """TD learning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: Kept[NetworkConfig] = NetworkConfig()
    algorithm: Kept[str] = "dqn"
    """dqn: expected values, Huber loss; qr_dqn: quantiles of the return, whose mean is acted on; or module:Name of your
    own, a learner.algorithms.Algorithm."""
    qr_dqn: QrDqnConfig = QrDqnConfig()
    lr: float = Field(5e-4, gt=0)
    """Adam's learning rate."""
    adam_eps: float = Field(1e-8, gt=0)
    """Adam's epsilon."""
    batch: int = Field(128, ge=1)
    """Transitions of one update."""
    gamma: Kept[float] = Field(0.99, ge=0, le=1)
    """Discount of one env step."""
    n_step: Kept[int] = Field(3, ge=1)
    """Rewards summed before the bootstrap."""
    double: bool = True
    """Double Q-learning: the online network chooses the bootstrap action, the target network values it."""
    huber_delta: float = Field(1.0, gt=0)
    """|TD error| beyond which the loss is linear."""
    reward_scale: Kept[float] = Field(1.0, gt=0)
    """Factor on the rewards that are trained on; reported returns stay the env's own."""
    max_grad_norm: float = Field(10.0, gt=0)
    """Global norm that gradients are clipped to."""
    max_skipped_updates: int = Field(100, ge=1)
    """Updates in a row whose loss or gradient is not finite, each of them skipped, after which the run stops."""
    target_period_updates: int = Field(500, ge=1)
    """Updates between two copies of the online network to the target network."""
    target_tau: float = Field(1.0, gt=0, le=1)
    """Share of the online network in each of these copies; below 1 the target is a Polyak average."""
    average_tau: float = Field(1.0, gt=0, le=1)
    """Share of the online network in each update of the running average, the policy that is evaluated and saved."""
    publish_every_updates: int = Field(100, ge=1)
    """Updates between two broadcasts of the weights, at most ten a second."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, mps."""
    threads: int = Field(1, ge=1)
    """torch's threads. Small networks are slower with more than one."""
    cpus: float | None = Field(None, ge=0)
    """CPUs that the learner asks Ray for. The default is 1 on a cluster, 0 on one machine."""
    gpus: float | None = Field(None, ge=0)
    """GPUs that it asks Ray for, which thus places it on a node that has them. The default goes by learner.device."""
    resources: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Custom resources of Ray that it asks for, as YAML: '{learner: 1}'."""

    @field_validator("algorithm")
    @classmethod
    def _is_known(cls, name: str) -> str:
        """A user's own is imported where it is used: its folder may not be on the path yet."""
        return name if ":" in name else (algorithm_of(name), name)[1]

    @property
    def network_spec(self) -> NetworkSpec:
        """What the algorithm's Q-network is built from, by the learner and by actors."""
        algorithm = algorithm_of(self.algorithm)
        options = {} if algorithm.section is None else getattr(self, algorithm.section).model_dump()
        return NetworkSpec(self.network, algorithm.head, options)


class CheckpointConfig(BaseModel):
    """Checkpoints: what a run is resumed from. At its end, also at an interrupted one, a run writes one in any case."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every_s: float = Field(30.0, gt=0)
    """Seconds between two of them."""
    every_updates: int = Field(5_000, ge=1)
    """Updates between two of them in the inline mode, which knows no seconds."""
    keep: int = Field(3, ge=1)
    """How many are kept, the newest; older ones are removed when a newer one is whole."""
    dir: Path | None = None
    """Where they are, as the learner's node sees it, in a folder of the run's name. The default is the run's own: on a
    cluster give one that every node on which the learner may run sees under this name."""
    rows_max_bytes: int = Field(64 << 20, ge=0)
    """A replay memory up to this size is part of each checkpoint. A bigger one is read from its server again: in the
    local mode that keeps an append-only file in the run's folder then. An inline run has no server, and resumes with an
    empty one."""
