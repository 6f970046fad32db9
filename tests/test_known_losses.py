"""Every loss through the whole pipeline, on the MDP whose Q* is known, and on a return whose distribution is known.

The network is a table, as in test_known_answer.py; what differs is what the table holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import two_point_env
from grid_env import ACTIONS, GOAL, STATES, move
from test_known_answer import GAMMA, advance_until, config, local_run_apart, value_iteration

from actors.policy import make_policy
from deploy.config.models import RunConfig
from deploy.planning.preconditions import probe_env
from deploy.process.signals import Stop
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.inline import InlineSession
from deploy.sessions.ray_session import RaySession
from learner.algorithms.loss import distribution_of
from learner.networks import build_network
from learner.weights import unpack
from replay.chunk import Schema
from replay.nstep import signed_parabolic

Array = npt.NDArray[Any]
TAU, ALPHA, CLIP = 0.05, 0.9, -1.0
MUNCHAUSEN = {"enabled": True, "tau": TAU, "alpha": ALPHA, "clip": CLIP}
QUANTILES = {"quantiles": 5}
ATOMS = {"atoms": 41, "v_min": -1.0, "v_max": 1.0}
FRACTIONS = {"samples": 8, "target_samples": 8, "fractions": 16, "cosines": 8}
IQN: dict[str, Any] = {"algorithm": "iqn", "iqn": FRACTIONS, "lr": 0.002, "network": {"hidden": (64,)}}
"""With a hidden layer: of a table each state has one unit of the fractions' embedding, which may be dead."""


def soft_value_iteration() -> Array:
    """The fixed point of Munchausen value iteration <float64>[STATES - 1, ACTIONS] (arXiv 2007.14430, equation 3)."""
    q = np.zeros((STATES, ACTIONS))
    for _ in range(400):
        shifted = (q - q.max(1, keepdims=True)) / TAU
        log_policy = TAU * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
        soft = (np.exp(log_policy / TAU) * (q - log_policy)).sum(1)
        for state in range(GOAL):
            for action in range(ACTIONS):
                following, reward, terminated = move(state, action)
                bonus = ALPHA * np.clip(log_policy[state, action], CLIP, 0)
                q[state, action] = reward + bonus + (0 if terminated else GAMMA * soft[following])
    return q[:GOAL]


def learned(run: RunConfig, schema: Schema, policy: bytes) -> Array:
    """Q values <float32>[STATES - 1, ACTIONS] of all states but the goal, as an actor computes them."""
    acting = make_policy(run.learner.network_spec, schema)
    acting.load(unpack(policy)[1])
    return acting(np.eye(STATES, dtype=np.float32)[:GOAL], acting.initial_state(GOAL))[0]


def run_inline(run: RunConfig, updates: int) -> tuple[bytes, Schema]:
    schema = probe_env(run)
    session = InlineSession(run, RunDirectory.create(run), schema, print)
    while session.loop.learner.updates < updates:
        progress = session.advance()
    assert not progress.refused
    policy = session.loop.candidate()
    session.stop(1.0)
    return policy, schema


LOSSES: list[Any] = [
    pytest.param({"huber_delta": float("inf")}, 1500, 1e-3, id="squared"),
    pytest.param({"network": {"hidden": (), "dueling": True}}, 1500, 1e-3, id="dueling"),
    pytest.param({"value_rescale": True}, 1500, 2e-3, id="rescaled"),
    pytest.param({"munchausen": MUNCHAUSEN}, 1800, 2e-3, id="munchausen"),
    pytest.param({"algorithm": "c51", "c51": ATOMS}, 2000, 1e-2, id="c51"),
    pytest.param({"algorithm": "qr_dqn", "qr_dqn": QUANTILES}, 1500, 1e-2, id="qr_dqn"),
    pytest.param(
        {"algorithm": "qr_dqn", "qr_dqn": QUANTILES, "munchausen": MUNCHAUSEN}, 1800, 1e-2, id="munchausen qr_dqn"
    ),
    pytest.param(IQN, 1500, 3e-2, id="iqn"),
    pytest.param({**IQN, "munchausen": MUNCHAUSEN}, 2500, 3e-2, id="munchausen iqn"),
]
"""Options of the learner, the updates after which their table is within half of the tolerance, and that."""


@pytest.mark.long
@pytest.mark.parametrize(("options", "updates", "tolerance"), LOSSES)
def test_inline_reaches_the_fixed_point(
    tmp_path: Path, options: dict[str, Any], updates: int, tolerance: float
) -> None:
    """Value iteration's, or Munchausen's. Values are between -0.6 and 1."""
    run = config(tmp_path, **{f"learner__{name}": value for name, value in options.items()})
    policy, schema = run_inline(run, updates)
    q = learned(run, schema, policy)
    if run.learner.value_rescale:
        q = signed_parabolic(q)
    expected = soft_value_iteration() if run.learner.munchausen.enabled else value_iteration()
    np.testing.assert_allclose(q, expected, rtol=0, atol=tolerance)


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["c51", "qr_dqn", "iqn"])
def test_inline_finds_the_distribution_of_two_returns(tmp_path: Path, algorithm: str) -> None:
    """A return of -1 in one of four episodes, else 1: what each kind of head holds of that, and its mean 0.5."""
    sections: dict[str, dict[str, Any]] = {
        "c51": {"atoms": 3, "v_min": -1.0, "v_max": 1.0},
        "qr_dqn": {"quantiles": 8},
        "iqn": FRACTIONS,
    }
    if algorithm != "c51":  # Huber's parabola moves quantiles towards the mean
        sections[algorithm] = {**sections[algorithm], "kappa": 0.02}
    changes = {"learner__algorithm": algorithm, f"learner__{algorithm}": sections[algorithm], "learner__lr": 0.002}
    if algorithm == "iqn":
        changes["learner__network"] = IQN["network"]
    env = {"id": "two_point_env:TwoPoint-v0", "path": Path(two_point_env.__file__).parent}
    run = config(tmp_path, env=env, **changes)
    policy, schema = run_inline(run, 2500)
    acting = make_policy(run.learner.network_spec, schema)
    acting.load(unpack(policy)[1])
    q, _ = acting(np.ones((1, 1), np.float32), acting.initial_state(1))
    np.testing.assert_allclose(q, 0.5, atol=0.06)
    network = build_network(run.learner.network_spec, schema).requires_grad_(False)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in unpack(policy)[1].items()})
    state = torch.ones(1, 1)
    if algorithm == "c51":
        np.testing.assert_allclose(distribution_of(network(state), "c51")[0, 0].softmax(0), [0.25, 0, 0.75], atol=0.03)
        return
    tau = torch.tensor([[0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375]])  # the midpoints of eight
    head: Any = network.head
    held = network(state).distribution if algorithm == "qr_dqn" else head.quantiles(network.features(state), tau)
    np.testing.assert_allclose(held[0, 0], np.where(tau[0] < 0.25, -1, 1), atol=0.25)


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_local_run_with_a_distributional_loss_reaches_it_too(tmp_path: Path) -> None:
    """Ray, an embedded Valkey, two actors that act on the means of quantiles."""
    local_run_apart("test_known_losses", tmp_path, 150)


def local_run(folder: Path) -> None:
    """In a process of its own, since Ray reads how to authenticate when it is imported."""
    run = config(
        folder, mode="local", learner__algorithm="qr_dqn", learner__qr_dqn=QUANTILES, eval__cpu_share=1.0,
        actors__fetch_every_s=0.05,
    )  # fmt: skip
    schema = probe_env(run)
    session = RaySession(run, RunDirectory.create(run), schema, print, Stop())
    try:
        progress = advance_until(session, lambda p: p.verdict is not None and p.verdict.updates > 2500)
    finally:
        session.stop(20.0)
    assert progress.policy is not None
    np.testing.assert_allclose(learned(run, schema, progress.policy), value_iteration(), rtol=0, atol=1e-2)
