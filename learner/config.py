"""The learner's configuration. Field docs are the command line's help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from learner.algorithms import algorithm_of
from learner.networks import NetworkConfig, NetworkSpec
from replay.kept import Kept
from replay.options import Options

PUBLISH_MIN_S = 0.1
"""Seconds between two broadcasts of the weights, at the least (not in the inline mode)."""
GATHER_BYTES = 64 << 20
"""Bytes of rows that are gathered at once, at the most: some batches of pictures, a whole cycle of small rows."""


MAX_RETURN = 1e18
"""Of C51's bounds: the squares of greater ones are beyond float32."""
LEAST_SPACING, SPACING_SHARE = 1e-30, 1e-4
"""Of C51's atoms: the least distance between two, and its least share of the greatest |return|. float32 has 6e-8 of a
number, so that the shares by which a projection divides probabilities are exact to a thousandth."""


class QrDqnConfig(Options):
    """QR-DQN (arXiv 1710.10044)."""

    quantiles: Kept[int] = Field(51, ge=1, le=1024)
    """Quantiles of the return per action."""
    kappa: float = Field(1.0, ge=1e-6, allow_inf_nan=False)
    """|TD error| of a pair of quantiles beyond which the loss is linear."""


class IqnConfig(Options):
    """IQN (arXiv 1806.06923)."""

    samples: int = Field(32, ge=1, le=1024)
    """Random quantiles of the action taken, per transition."""
    target_samples: int = Field(32, ge=1, le=1024)
    """Random quantiles that they are compared with, per transition."""
    fractions: int = Field(32, ge=1, le=1024)
    """Quantiles whose mean is the expected value, which is acted on."""
    cosines: Kept[int] = Field(64, ge=1, le=1024)
    """Cosines that a quantile's fraction is embedded by."""
    kappa: float = Field(1.0, ge=1e-6, allow_inf_nan=False)
    """|TD error| of a pair of quantiles beyond which the loss is linear."""


class C51Config(Options):
    """C51 (arXiv 1707.06887). Returns beyond its bounds are taken for the bounds: choose them by the discounted returns
    that are trained on, after learner.reward_scale."""

    atoms: Kept[int] = Field(51, ge=2, le=1024)
    """Returns whose probabilities are learned, evenly spaced from v_min to v_max."""
    v_min: Kept[float] = Field(-10.0, ge=-MAX_RETURN, le=MAX_RETURN, allow_inf_nan=False)
    """The least of them."""
    v_max: Kept[float] = Field(10.0, ge=-MAX_RETURN, le=MAX_RETURN, allow_inf_nan=False)
    """The greatest of them."""

    @model_validator(mode="after")
    def _is_a_range(self) -> C51Config:
        if not self.v_min < self.v_max:
            raise ValueError(f"v_min has to be below v_max, got {self.v_min:g} and {self.v_max:g}")
        spacing = (self.v_max - self.v_min) / (self.atoms - 1)
        least = max(LEAST_SPACING, SPACING_SHARE * max(abs(self.v_min), abs(self.v_max)))
        if spacing < least:
            raise ValueError(
                f"{self.atoms} atoms from {self.v_min} to {self.v_max} are {spacing:g} apart, which float32 does not "
                f"resolve there: at least {least:g} is needed; give fewer atoms, or bounds further apart"
            )
        return self


class MunchausenConfig(Options):
    """Munchausen (arXiv 2007.14430), for dqn, qr_dqn and iqn: the bootstrap follows a softmax policy, and its log
    probability of the action taken is added to the reward; of an n-step window to the first one. learner.double has no
    effect then."""

    enabled: bool = False
    """Whether it is used."""
    alpha: float = Field(0.9, ge=0, le=1)
    """Share of the log probability that is added to the reward."""
    tau: float = Field(0.03, ge=1e-6, allow_inf_nan=False)
    """Temperature of the softmax, in the unit of the values that are trained on (rewards x learner.reward_scale): 0.03
    suits rewards of -1 to 1."""
    clip: float = Field(-1.0, lt=0)
    """Lower bound of the log probability x tau, before alpha."""


class AnnealConfig(Options):
    """Shorter windows and a longer horizon as learning goes on (BBF: arXiv 2305.19452): at first n_step and gamma as
    here, after ``updates`` those of the learner; n_step and 1 - gamma change exponentially. Windows that have closed
    stay as they are; of sequences, an update's have its n_step, and each reward the gamma that it came with."""

    updates: Kept[int] = Field(0, ge=0)
    """Updates until learner.n_step and learner.gamma are reached; 0: they hold from the start."""
    n_step: Kept[int] = Field(10, ge=1)
    """n_step of the first update."""
    gamma: Kept[float] = Field(0.97, ge=0, le=1)
    """Discount of the first update."""


class LearnerConfig(Options):
    """TD learning."""

    network: Kept[NetworkConfig] = NetworkConfig()
    algorithm: Kept[str] = "dqn"
    """dqn: expected values, Huber loss; c51, qr_dqn, iqn: distributions of the return, whose mean is acted on, as
    probabilities of fixed returns, as quantiles, as quantiles at random fractions; or module:Name of your own, a
    learner.algorithms.Algorithm."""
    c51: C51Config = C51Config()
    qr_dqn: QrDqnConfig = QrDqnConfig()
    iqn: IqnConfig = IqnConfig()
    munchausen: MunchausenConfig = MunchausenConfig()
    value_rescale: Kept[bool] = False
    """Learn values under a signed hyperbolic function (arXiv 1805.11593), for dqn: rewards of any size without
    clipping."""
    lr: float = Field(5e-4, gt=0, allow_inf_nan=False)
    """Adam's learning rate."""
    adam_eps: float = Field(1e-8, gt=0, allow_inf_nan=False)
    """Adam's epsilon."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay as AdamW has it (arXiv 1711.05101): a step also takes lr x this share of each weight, but of no
    bias and no norm."""
    batch: int = Field(128, ge=1)
    """Transitions of one update; with a recurrent core (learner.network.core) sequences."""
    gamma: Kept[float] = Field(0.99, ge=0, le=1)
    """Discount of one env step."""
    n_step: Kept[int] = Field(3, ge=1)
    """Rewards summed before the bootstrap."""
    anneal: AnnealConfig = AnnealConfig()
    double: bool = True
    """Double Q-learning: the online network chooses the bootstrap action, the target network values it."""
    huber_delta: float = Field(1.0, gt=0)
    """|TD error| beyond which the loss is linear; inf: half of the squared error everywhere."""
    reward_scale: Kept[float] = Field(1.0, gt=0, allow_inf_nan=False)
    """Factor on the rewards that are trained on; reported returns stay the env's own."""
    reward_clip: Kept[bool] = False
    """Train on the rewards' signs, -1, 0 or 1 (times learner.reward_scale), as Atari's agents do; reported returns stay
    the env's own."""
    priority_eta: float = Field(0.9, ge=0, le=1)
    """Of sequences (learner.network.core): share of the greatest |TD error| in a sequence's priority; the rest is the
    mean."""
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
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Custom resources of Ray that it asks for, as YAML: '{learner: 1}'."""

    @field_validator("algorithm")
    @classmethod
    def _is_known(cls, name: str) -> str:
        """A user's own is imported where it is used: its folder may not be on the path yet."""
        return name if ":" in name else (algorithm_of(name), name)[1]

    @model_validator(mode="after")
    def _options_apply(self) -> LearnerConfig:
        if not (shrinks := self.lr * self.weight_decay) < 1:
            raise ValueError(f"learner.lr x learner.weight_decay is {shrinks:g}; it has to be below 1")
        if self.munchausen.enabled and self.algorithm == "c51":
            raise ValueError("learner.munchausen is for dqn, qr_dqn and iqn, not for c51: use one of them")
        if self.value_rescale and self.algorithm in ("c51", "qr_dqn", "iqn"):
            raise ValueError(
                f"learner.value_rescale is for dqn, not for {self.algorithm}: leave it out "
                "(--learner.no-value-rescale, where a preset has it), and use learner.reward_scale"
            )
        if self.value_rescale and self.munchausen.enabled:
            raise ValueError(
                "learner.value_rescale and learner.munchausen exclude each other: leave the first out "
                "(--learner.no-value-rescale, where a preset has it), and use learner.reward_scale"
            )
        return self

    @property
    def network_spec(self) -> NetworkSpec:
        """What the algorithm's Q-network is built from, by the learner and by actors."""
        algorithm = algorithm_of(self.algorithm)
        options = {} if algorithm.section is None else getattr(self, algorithm.section).model_dump()
        return NetworkSpec(self.network, algorithm.head, options, self.reward_scale, self.reward_clip)


class CheckpointConfig(Options):
    """Checkpoints: what a run is resumed from. At its end, also at an interrupted one, a run writes one in any case."""

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
