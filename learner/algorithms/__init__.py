"""Algorithms by name: a loss over online network, target network and batch, and the head that it needs.

A new one is a file here, a line in ``ALGORITHMS`` and, where it has options, a section of ``LearnerConfig``. Nothing
here imports torch before ``build_loss`` is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from replay.registry import load, make

if TYPE_CHECKING:
    from learner.algorithms.loss import Loss
    from learner.config import LearnerConfig

__all__ = ["ALGORITHMS", "Algorithm", "algorithm_of", "build_loss"]


class Algorithm(NamedTuple):
    """``loss``: ``module:function``, which builds the loss from a ``LearnerConfig``; ``head``: a name in
    ``learner.networks.HEADS``; ``section``: the field of ``LearnerConfig`` with its options, which are the head's, too;
    ``why``: one line for the help."""

    loss: str
    head: str
    section: str | None = None
    why: str = ""


ALGORITHMS: dict[str, Algorithm] = {
    "dqn": Algorithm("learner.algorithms.dqn:scalar_loss", "values", why="expected values, Huber loss"),
    "c51": Algorithm("learner.algorithms.c51:categorical_loss", "atoms", "c51", "probabilities of returns on atoms"),
    "qr_dqn": Algorithm("learner.algorithms.qr_dqn:quantile_loss", "quantiles", "qr_dqn", "quantiles of the return"),
    "iqn": Algorithm(
        "learner.algorithms.iqn:implicit_quantile_loss", "implicit_quantiles", "iqn", "the return's quantile function"
    ),
}


def algorithm_of(name: str) -> Algorithm:
    """Returns the algorithm of this name, or a user's own by ``module:Name``, an ``Algorithm``.

    Raises:
        ValueError: an unknown name, or nothing there that is an ``Algorithm``.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if ":" not in name:
        raise ValueError(f"algorithm {name!r} is unknown: use {', '.join(ALGORITHMS)}, or module:Name of your own")
    found = load({}, name, "algorithm")
    if not isinstance(found, Algorithm):
        raise ValueError(f"algorithm {name!r} is a {type(found).__name__}; it has to be a learner.algorithms.Algorithm")
    return found


def build_loss(config: LearnerConfig) -> Loss:
    """Builds the loss that a configuration asks for."""
    name = algorithm_of(config.algorithm).loss
    build = load({}, name, "loss")
    loss: Loss = make(name, "loss", lambda: build(config))
    return loss
