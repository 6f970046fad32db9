"""Weights as one versioned value: header + safetensors. Free of torch, since actors read it too."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from replay.chunk_log.protocol import FENCE_SHIFT, WEIGHTS_HEADER_BYTES, WeightsHeader

Arrays = Mapping[str, npt.NDArray[Any]]


def version(fence: int, count: int) -> int:
    """Returns the version of the ``count``-th weights that the learner with this fence publishes: it never goes
    back."""
    return (fence << FENCE_SHIFT) + count


def version_count(weights_version: int) -> int:
    """Returns how many weights the run had published with this version, under whichever fence."""
    return weights_version & ((1 << FENCE_SHIFT) - 1)


def pack(weights_version: int, updates: int, env_steps: int, arrays: Arrays) -> bytes:
    """Packs header and weights as one value."""
    body = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return WeightsHeader(weights_version, updates, env_steps, zlib.crc32(body)).pack() + body


def unpack(value: bytes) -> tuple[WeightsHeader, dict[str, npt.NDArray[Any]]]:
    """Returns what ``pack`` packed. Raises ValueError where header and body do not belong together."""
    header = WeightsHeader.unpack(value)
    body = value[WEIGHTS_HEADER_BYTES:]
    if header is None or zlib.crc32(body) != header.crc:
        raise ValueError(f"weights of {len(value)} bytes do not match their checksum")
    return header, load(body)
