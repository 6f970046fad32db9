"""TD errors: hand-worked numbers first, then the tabular update, then what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from learner.td import (
    Transform,
    categorical_projection,
    double_q_learning,
    huber,
    q_learning,
    scaled_log_policy,
    signed_hyperbolic,
    signed_parabolic,
)

A_TM1 = torch.tensor([0, 1, 2])
R_T = torch.tensor([1.0, -1.0, 0.5])
DISCOUNT_T = torch.tensor([0.5, 0.0, 1.0])
Q_TM1 = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
Q_T = torch.tensor([[2.0, 8.0, 4.0], [9.0, 9.0, 9.0], [-1.0, -3.0, -2.0]])
SELECTOR = torch.tensor([[5.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 9.0]])


def test_q_learning_by_hand() -> None:
    """1 + 0.5 * 8 - 1;  -1 + 0 - 5;  0.5 + 1 * -1 - 9."""
    error = q_learning(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T)
    torch.testing.assert_close(error, torch.tensor([4.0, -6.0, -9.5]))


def test_double_q_learning_by_hand() -> None:
    """The selector chooses actions 0, 1 and 2: 1 + 0.5 * 2 - 1;  -1 - 5;  0.5 - 2 - 9."""
    error = double_q_learning(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T, SELECTOR)
    torch.testing.assert_close(error, torch.tensor([1.0, -6.0, -10.5]))


def test_double_with_itself_as_selector_is_the_maximum() -> None:
    both = double_q_learning(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T, Q_T)
    torch.testing.assert_close(both, q_learning(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T))


def test_a_terminal_step_looks_at_no_value() -> None:
    """Discount 0: whatever the next state is worth, the error is r - q."""
    zero = torch.zeros(3)
    for error in (
        q_learning(Q_TM1, A_TM1, R_T, zero, Q_T * 1e6),
        double_q_learning(Q_TM1, A_TM1, R_T, zero, Q_T * 1e6, SELECTOR),
    ):
        torch.testing.assert_close(error, R_T - torch.tensor([1.0, 5.0, 9.0]))


def test_no_gradient_through_the_targets() -> None:
    """Only the value of the action taken is moved, up where the error is positive."""
    q_tm1, q_t, selector = (q.clone().requires_grad_() for q in (Q_TM1, Q_T, SELECTOR))
    error = q_learning(q_tm1, A_TM1, R_T, DISCOUNT_T, q_t)
    error = error + double_q_learning(q_tm1, A_TM1, R_T, DISCOUNT_T, q_t, selector)
    error.sum().backward()  # type: ignore[no-untyped-call]
    assert q_t.grad is None
    assert selector.grad is None
    assert q_tm1.grad is not None
    torch.testing.assert_close(q_tm1.grad, -2 * torch.eye(3))


@pytest.mark.parametrize("discount", [0.0, 0.9])
def test_one_sgd_step_on_one_hot_states_is_the_tabular_update(discount: float) -> None:
    """Q <- (1 - a) Q + a (r + g max Q'), here Q[1, 2] <- 0.75 * Q[1, 2] + 0.25 * (r + g max Q[3])."""
    torch.manual_seed(1)
    table, rate = nn.Linear(5, 3, bias=False).double(), 0.25
    before = table.weight.detach().T.clone()
    s_tm1, s_t = torch.eye(5, dtype=torch.float64)[[1]], torch.eye(5, dtype=torch.float64)[[3]]
    r_t, discount_t = torch.tensor([2.0], dtype=torch.float64), torch.tensor([discount], dtype=torch.float64)
    error = q_learning(table(s_tm1), torch.tensor([2]), r_t, discount_t, table(s_t))
    huber(error, delta=100.0).sum().backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(table.parameters(), lr=rate).step()
    expected = before.clone()
    expected[1, 2] = (1 - rate) * before[1, 2] + rate * (2.0 + discount * before[3].max())
    torch.testing.assert_close(table.weight.detach().T, expected, rtol=0, atol=1e-12)
    assert (expected != before).sum() == 1


def test_huber_inside_at_and_outside_delta() -> None:
    """delta 2: 0.5 * 1 * 1, 0.5 * 2 * 2, 2 * (3 - 1), and the same below 0; the gradient is the error, clipped."""
    error = torch.tensor([0.0, 1.0, 2.0, 3.0, -1.0, -2.0, -3.0], requires_grad=True)
    loss = huber(error, 2.0)
    torch.testing.assert_close(loss, torch.tensor([0.0, 0.5, 2.0, 4.0, 0.5, 2.0, 4.0]))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert error.grad is not None
    torch.testing.assert_close(error.grad, error.detach().clamp(-2, 2))
    torch.testing.assert_close(loss, nn.functional.huber_loss(error, torch.zeros(7), reduction="none", delta=2.0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q_tm1": Q_TM1[0]}, r"\[B, A\]"),
        ({"q_t": Q_T[:, :2]}, r"\[B, A\]"),
        ({"q_t": Q_T[:1]}, r"\[B, A\]"),
        ({"r_t": R_T.unsqueeze(1)}, r"\[3\], got .*\(3, 1\)"),
        ({"discount_t": DISCOUNT_T[:1]}, r"\[3\]"),
        ({"a_tm1": A_TM1.unsqueeze(1)}, r"\[3\]"),
        ({"a_tm1": A_TM1.int()}, "int64, got torch.int32"),
        ({"a_tm1": A_TM1.float()}, "int64, got torch.float32"),
    ],
)
def test_what_would_broadcast_into_a_wrong_answer_is_refused(changed: dict[str, Tensor], message: str) -> None:
    good = {"q_tm1": Q_TM1, "a_tm1": A_TM1, "r_t": R_T, "discount_t": DISCOUNT_T, "q_t": Q_T}
    bad: dict[str, Any] = good | changed
    with pytest.raises(ValueError, match=message):
        q_learning(**bad)
    bad["q_t_value"] = bad.pop("q_t")
    with pytest.raises(ValueError, match=message):
        double_q_learning(**bad, q_t_selector=Q_T)


def test_double_refuses_a_selector_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"\[B, A\]"):
        double_q_learning(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T, SELECTOR[:, :2])


def test_values_under_a_transform_by_hand() -> None:
    """h(x) = 2 x: the target of value 8 is 2 (1 + 0.5 * 4), of a terminal step 2 * -1; double chooses as without."""
    double = Transform(lambda x: 2 * x, lambda x: x / 2)
    error = q_learning(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T, double)
    torch.testing.assert_close(error, torch.tensor([6.0 - 1, -2.0 - 5, 2 * (0.5 - 0.5) - 9]))
    error = double_q_learning(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T, SELECTOR, double)
    torch.testing.assert_close(error, torch.tensor([2 * (1 + 0.5) - 1, -2.0 - 5, 2 * (0.5 - 1) - 9]))


def test_the_signed_hyperbolic_by_hand_and_its_inverse() -> None:
    """sqrt(4) - 1 + 0.003 of 3, odd; inverted over twelve orders of magnitude."""
    torch.testing.assert_close(signed_hyperbolic(torch.tensor([3.0, -3.0, 0.0])), torch.tensor([1.003, -1.003, 0.0]))
    x = torch.cat([-(10.0 ** torch.arange(-6, 7)), 10.0 ** torch.arange(-6, 7)]).double()
    torch.testing.assert_close(signed_parabolic(signed_hyperbolic(x)), x, rtol=1e-6, atol=1e-9)
    single = torch.cat([-(10.0 ** torch.arange(-6, 10)), 10.0 ** torch.arange(-6, 10)])
    assert single.dtype == torch.float32
    torch.testing.assert_close(signed_parabolic(signed_hyperbolic(single)), single, rtol=2e-6, atol=0)


def test_a_scaled_log_policy_by_hand_and_without_overflow() -> None:
    """Values 0 and tau ln 3: probabilities 1/4 and 3/4. Far apart: tau ln p is their difference."""
    q = torch.tensor([[0.0, 0.5 * 1.0986123], [0.0, 1e4]])
    expected = torch.tensor([[0.5 * -1.3862944, 0.5 * -0.2876821], [-1e4, 0.0]])
    torch.testing.assert_close(scaled_log_policy(q, 0.5), expected)


def test_categorical_projection_by_hand() -> None:
    """Atoms 0, 1, 2. 0.25 lies a quarter of the way to 1; 1 is an atom, and keeps all (an integer place loses it in a
    well-known mistake); 5 and -3 lie beyond, and go to the ends."""
    atoms = torch.tensor([0.0, 1.0, 2.0])
    support = torch.tensor([[0.25, 1.0, 5.0], [-3.0, 1.5, 2.0]])
    probability = torch.tensor([[0.4, 0.5, 0.1], [0.2, 0.2, 0.6]])
    expected = torch.tensor([[0.3, 0.6, 0.1], [0.2, 0.1, 0.7]])
    torch.testing.assert_close(categorical_projection(support, probability, atoms), expected)


@given(
    places=st.lists(st.floats(-20, 20), min_size=1, max_size=7),
    ends=st.tuples(st.floats(-10, 10), st.floats(0.1, 10)),
    count=st.integers(2, 9),
)
def test_a_projection_keeps_probability_and_mean(places: list[float], ends: tuple[float, float], count: int) -> None:
    """Of what lies between the ends the mean is kept; the probabilities always sum to 1."""
    low, high = ends[0], ends[0] + ends[1]
    atoms = torch.linspace(low, high, count, dtype=torch.float64)
    support = torch.tensor([places], dtype=torch.float64)
    probability = torch.full_like(support, 1 / len(places))
    projected = categorical_projection(support, probability, atoms)
    assert (projected >= 0).all()
    torch.testing.assert_close(projected.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close((projected * atoms).sum(), support.clamp(low, high).mean())


@pytest.mark.parametrize("shapes", [((3,), (3,), (5,)), ((2, 3), (2, 4), (5,)), ((2, 3), (2, 3), (1,))])
def test_what_cannot_be_projected_is_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"support and probability have to be \[B, M\]"):
        categorical_projection(*(torch.zeros(shape) for shape in shapes))
