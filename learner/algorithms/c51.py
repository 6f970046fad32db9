"""C51: the return's probabilities on fixed atoms (Bellemare et al., arXiv 1707.06887)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learner.algorithms.bootstrap import Bootstrapping, double, greedy
from learner.algorithms.loss import Loss, LossOutput, Network, Transitions, distribution_of, of_action
from learner.config import LearnerConfig
from learner.networks.heads import atoms_of
from learner.td import categorical_projection, taken


@dataclass(frozen=True)
class CategoricalLoss:
    """The cross entropy between the target's distribution, projected onto the atoms, and that of the action taken."""

    bootstrapping: Bootstrapping
    v_min: float
    v_max: float
    atoms: int

    def __call__(self, online: Network, target: Network, batch: Transitions) -> LossOutput:
        """See ``Loss``."""
        atoms = atoms_of(self.v_min, self.v_max, self.atoms, batch.r_t)
        with torch.no_grad():
            at_t = target(batch.s_t)
            policy = self.bootstrapping(online, target, batch, at_t.q)
            probability = policy.mean(distribution_of(at_t, "c51").softmax(2))  # [B, N]
            support = policy.r_t.unsqueeze(1) + batch.discount_t.unsqueeze(1) * atoms
            target_tm1 = categorical_projection(support, probability, atoms)
        at_tm1 = online(batch.s_tm1)
        log_probability = torch.log_softmax(of_action(distribution_of(at_tm1, "c51"), batch.a_tm1), 1)
        q_tm1 = at_tm1.q.detach()
        error = (target_tm1 * atoms).sum(1) - taken(q_tm1, batch.a_tm1)
        return LossOutput(-(target_tm1 * log_probability).sum(1), error, q_tm1)


def categorical_loss(config: LearnerConfig) -> Loss:
    """Builds the loss of ``learner.c51``."""
    options = config.c51
    return CategoricalLoss(double if config.double else greedy, options.v_min, options.v_max, options.atoms)
