"""A network with parts of the user's own, tried once before a run: nothing but that shows what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.networks import build_network
from learner.networks.choice import described
from learner.networks.config import NetworkSpec
from learner.networks.q_network import QOutput
from replay.chunk import Schema

TRIED = 2
"""Observations, all zero."""


def try_network(spec: NetworkSpec, schema: Schema) -> None:
    """Computes values of two observations.

    Raises:
        ValueError: a part raises, or returns something else than features, or than a value for each action.
    """
    encoder, head = f"encoder {spec.config.encoder!r}", f"head {spec.head!r}"
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        network: Any = build_network(spec, schema)
        obs = torch.from_numpy(np.zeros((TRIED, *schema.input_shape), schema.obs_dtype))
        features = _returned(encoder, f"does not take {described(schema)}", lambda: network.features(obs))
        _check(f"{encoder} returns", features, (TRIED, network.encoder.features), "its features")
        if network.core is not None:
            features = features.new_zeros(TRIED, network.core.features)
        what = "the encoder's features" if network.core is None else "the core's features"
        output = _returned(head, f"does not take {what}", lambda: network.head(features))
    if not isinstance(output, QOutput):
        raise ValueError(f"{head} returns a {type(output).__name__}; it has to be a learner.networks.q_network.QOutput")
    _check(f"{head} returns the values", output.q, (TRIED, schema.num_actions), "the actions")


def _returned(part: str, refusal: str, compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except Exception as error:  # a user's module may raise anything
        raise ValueError(f"{part} {refusal}: {type(error).__name__}: {error}") from error


def _check(what: str, returned: Any, shape: tuple[int, ...], of: str) -> None:
    if not isinstance(returned, Tensor) or returned.dtype != torch.float32 or tuple(returned.shape) != shape:
        found = f"<{returned.dtype}>{list(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
        raise ValueError(
            f"{what} {found.replace('torch.', '')} for {TRIED} observations; it has to be <float32>{list(shape)}, as "
            f"{of} are {shape[1]}"
        )
