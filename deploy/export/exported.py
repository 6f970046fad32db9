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
from learner.networks import build_network, encoder_of
from learner.networks.config import acting_spec
from learner.networks.portable import FORBIDDEN, FORMAT
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
            "network": {"encoder": encoder_of(spec.config, schema), "head": spec.head},
            "updates": updates,
        }
        return cls(description, arrays, network, about)

    def q(self, given: Array) -> Array:
        """Returns what the learner's network makes of these inputs: Q values <float32>[N, A]."""
        parts = [torch.from_numpy(np.ascontiguousarray(given[rows])) for rows in batches(len(given))]
        with torch.no_grad():
            return np.concatenate([self.network(part).q.numpy() for part in parts])


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
        may = mask != 0
        return q, torch.where(may | ~may.any(1, keepdim=True), q, float(FORBIDDEN)).argmax(1)


def graph_of(exported: Exported, given: Array, masks: Array | None) -> tuple[nn.Module, dict[str, Tensor]]:
    """Returns the graph and two rows of its inputs, by their names."""
    inputs = {"obs": torch.from_numpy(np.ascontiguousarray(given[:2]))}
    if masks is None:
        return Graph(exported), inputs
    return MaskedGraph(exported), {**inputs, "mask": torch.from_numpy(masks[:2])}
