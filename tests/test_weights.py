"""Published weights as one value: whole, versioned, refused where damaged."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from learner.weights import pack, unpack, version
from replay.chunk_log.protocol import WEIGHTS_HEADER_BYTES, WeightsHeader

ARRAYS = {
    "head.linear.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "head.linear.bias": np.array([-1.0, np.pi, 0.0], np.float32),
}


def test_there_and_back() -> None:
    """Arrays to the bit, also those that are not contiguous; the header says where they come from."""
    header, arrays = unpack(pack(7, 100, 3200, ARRAYS))
    assert header[:3] == (7, 100, 3200)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert_array_equal(arrays[name], array)


def test_actors_read_the_header_alone() -> None:
    """The first bytes suffice: actors ask for these with every chunk."""
    value = pack(7, 100, 3200, ARRAYS)
    header = WeightsHeader.unpack(value[:WEIGHTS_HEADER_BYTES])
    assert header is not None
    assert (header.version, header.updates, header.env_steps) == (7, 100, 3200)


def test_versions_never_go_back() -> None:
    """A later learner's first version is above all of an earlier one's, up to 2^40 of them."""
    assert version(1, 1) < version(1, 2) < version(1, 2**40 - 1) < version(2, 0) < version(2, 1)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "header only"])
def test_damaged_weights_are_refused(damage: str) -> None:
    value = bytearray(pack(7, 100, 3200, ARRAYS))
    value[-1] ^= damage == "flip"
    damaged = {"flip": value, "cut": value[:-1], "empty": b"", "header only": value[:WEIGHTS_HEADER_BYTES]}[damage]
    with pytest.raises(ValueError, match=f"{len(damaged)} bytes do not match their checksum"):
        unpack(bytes(damaged))
