"""What is exported: the network, and all that another program has to know of it."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deploy.config.errors import ConfigError
from deploy.export.observed import NONE, Observed
from learner.networks import build_network, encoder_of
from learner.networks.config import acting_spec
from learner.networks.portable import FORBIDDEN, FORMAT, PolicyState
from learner.networks.program import core_of
from learner.networks.q_network import QNetwork
from learner.policy import Description

Array = npt.NDArray[Any]


class Exported(NamedTuple):
    """A policy: the weights as they are published, the network in torch, and what it is about, as plain values."""

    description: Description
    arrays: Mapping[str, Array]
    network: QNetwork
    about: dict[str, Any]

    @classmethod
    def of(cls, description: Description, arrays: Mapping[str, Array], updates: int) -> Exported:
        """Returns the policy with these weights, of so many updates."""
        spec, schema = acting_spec(description.spec), description.schema
        network = build_network(spec, schema).requires_grad_(False).eval()
        network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
        given = {
            "dtype": schema.obs_dtype,
            "shape": list(schema.input_shape),
            "divisor": schema.obs_divisor,
            "channels_last": schema.channels_last and len(schema.obs_shape) == 3,
        }
        env = {key: value for key, value in description.env.items() if key != "path"}  # a folder of this machine
        about = {
            "format": FORMAT,
            "env": env,
            **description.about,
            "stack": description.stack,
            "network_input": given,
            "network": {"encoder": encoder_of(spec.config, schema), "core": spec.config.core, "head": spec.head},
            "core": core_of(spec, schema.num_actions),
            "updates": updates,
        }
        return cls(description, arrays, network, about)

    def q(self, given: Array, state: PolicyState = NONE) -> Array:
        """Returns what the learner's network makes of these inputs, at these recurrent states: Q values
        <float32>[N, A]."""
        with torch.no_grad():
            found = [self.network.step(tensor(given[rows]), tensors(state, rows))[0] for rows in batches(len(given))]
        return np.concatenate([output.q.numpy() for output in found])


@contextlib.contextmanager
def exporting(otherwise: str = "") -> Iterator[None]:
    """Has torch export in the block, without its warnings. Raises ConfigError, with what to do ``otherwise``, for a
    network that it does not take, as a user's own may be."""
    logging.disable(logging.WARNING)  # that torchvision is not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # of any kind
        reason = re.sub(r"\x1b\[\d*m", "", str(error)).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"torch does not export this network: {reason:.200}; a part of your own has to take batches of any "
            f"size (obs.shape[0], not len(obs)) and to branch on no values{otherwise}"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def tensor(array: Array) -> Tensor:
    """Returns an array as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(array))


def tensors(state: PolicyState, rows: slice) -> dict[str, Tensor]:
    """Returns some rows of a recurrent state as tensors."""
    return {name: tensor(array[rows]) for name, array in state.items()}


def batches(count: int) -> list[slice]:
    """Returns one row alone, and the others a hundred at a time."""
    return [slice(0, 1), *(slice(begin, begin + 100) for begin in range(1, count, 100))]


class Graph(nn.Module):
    """The network and the choice of an action: what other runtimes get."""

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self.network = exported.network

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Maps obs <dtype>[B, (stack,) *shape] to Q values <float32>[B, A] and the numbers of the best actions
        <int64>[B]."""
        q = self.network(obs).q
        return q, q.argmax(1)


class MaskedGraph(Graph):
    """The same where action masks hold."""

    def forward(self, obs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """``mask`` <uint8>[B, A]: 1 for each action that is allowed; a row of zeros allows all."""
        q = self.network(obs).q
        return q, _allowed(q, mask).argmax(1)


def _allowed(q: Tensor, mask: Tensor) -> Tensor:
    may = mask != 0
    return torch.where(may | ~may.any(1, keepdim=True), q, float(FORBIDDEN))


CELLS = ("c", "h")
"""Of a recurrent state, what the graph itself computes; the previous action and reward come from who calls it."""


class RecurrentGraph(Graph):
    """The same of a network with a recurrent core."""

    def forward(  # type: ignore[override]
        self, obs: Tensor, state: dict[str, Tensor], mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """``state`` <float32>[B, width] by name: see ``learner.networks.portable.Memory``. Its h, and c of an LSTM,
        after the observation are the third result."""
        output, after = self.network.step(obs, state)
        action = (output.q if mask is None else _allowed(output.q, mask)).argmax(1)
        return output.q, action, {name: after[name] for name in CELLS if name in after}


Inputs = dict[str, Any]
"""A graph's inputs by name: tensors, and a dict of tensors for ``state``."""


def inputs_of(observed: Observed, rows: slice) -> Inputs:
    """Returns a graph's inputs of some observations, by their names."""
    inputs: Inputs = {"obs": tensor(observed.given[rows])}
    if observed.state:
        inputs["state"] = tensors(observed.state, rows)
    if observed.masks is not None:
        inputs["mask"] = tensor(observed.masks[rows])
    return inputs


def graph_of(exported: Exported, observed: Observed) -> tuple[nn.Module, Inputs]:
    """Returns the graph and two rows of its inputs."""
    inputs = inputs_of(observed, slice(0, 2))
    if "state" in inputs:
        return RecurrentGraph(exported), inputs
    return (Graph if observed.masks is None else MaskedGraph)(exported), inputs


def free_batch(inputs: Inputs) -> tuple[Any, ...]:
    """Returns the shapes of a graph's inputs, with a batch of any size."""
    free = {0: torch.export.Dim("batch", min=1)}
    return tuple(dict.fromkeys(each, free) if isinstance(each, dict) else free for each in inputs.values())
