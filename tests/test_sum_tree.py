"""The sum tree against numpy: the same sums, the same leaves, and never a leaf of weight 0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.dispatcher import Dispatcher

from replay.compiled import compiled
from replay.samplers.prioritised import PrioritisedSampler
from replay.sum_tree import SumTree

WEIGHTS = st.one_of(st.just(0.0), st.floats(0, 1e12), st.floats(0, 1e-300))


def test_hand_worked() -> None:
    """Weights 1, 0, 2, 4: the running sum passes 0 at leaf 0, 1 at leaf 2 (not at the empty leaf 1), 3 at leaf 3."""
    tree = SumTree(4)
    tree.set(np.arange(4), np.array([1.0, 0.0, 2.0, 4.0]))
    assert tree.total == 7
    assert tree.find(np.array([0.0, 0.99, 1.0, 2.99, 3.0, 6.99])).tolist() == [0, 0, 2, 2, 3, 3]


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    capacity=st.integers(1, 70),
    changes=st.lists(st.lists(st.tuples(st.integers(0, 1 << 30), WEIGHTS), max_size=20), max_size=8),
)
def test_every_sum_is_exact_after_any_changes(capacity: int, changes: list[list[tuple[int, float]]]) -> None:
    """No drift: the tree equals one that is made anew from its leaves; of a leaf set twice the last weight counts."""
    tree, naive = SumTree(capacity), np.zeros(capacity)
    for change in changes:
        leaves = np.array([leaf % capacity for leaf, _ in change], np.int64)
        tree.set(leaves, np.array([weight for _, weight in change]))
        for leaf, (_, weight) in zip(leaves.tolist(), change, strict=True):
            naive[leaf] = weight
    np.testing.assert_array_equal(tree.weights, naive)
    fresh = SumTree(capacity)
    fresh.set(np.arange(capacity), naive)
    assert tree.total == fresh.total == pytest.approx(naive.sum())


@settings(max_examples=300, derandomize=True, deadline=None)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=70), shares=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_found_leaf_holds_its_mass_and_never_weighs_nothing(weights: list[float], shares: list[float]) -> None:
    """Also at the very end of the range and beyond it, where rounding may lead (torchrl loops there)."""
    naive = np.array(weights)
    tree = SumTree(len(weights))
    tree.set(np.arange(len(weights)), naive)
    if tree.total == 0:
        return
    masses = np.array(shares) * tree.total
    found = tree.find(masses)
    assert (naive[found] > 0).all()
    ends = np.cumsum(naive)
    slack = 1e-12 * tree.total
    assert (masses <= ends[found] + slack).all()
    assert (masses >= ends[found] - naive[found] - slack).all()


def test_plan_is_what_is_allocated() -> None:
    """Memory is planned and printed at start."""
    for capacity in (1, 2, 3, 1000, 1024, 1025):
        tree = SumTree(capacity)
        assert PrioritisedSampler.planned_bytes(capacity) == tree._nodes.nbytes
        assert len(tree.weights) == capacity


@pytest.mark.parametrize("fault", [RuntimeError("no locator available"), OSError(28, "No space left on device")])
def test_without_a_folder_for_the_compiled_code_it_compiles_anew(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """A package folder and a home that cannot be written, as in a container with a read-only root; a full disk."""

    def refuse(*_: object) -> None:
        raise fault

    monkeypatch.setattr(Dispatcher, "enable_caching", refuse)
    assert compiled("int64(int64)")(lambda number: number + 1)(1) == 2
