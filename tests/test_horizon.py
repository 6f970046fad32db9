"""Windows that become shorter and see farther as learning goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import AnnealConfig, LearnerConfig
from learner.horizon import Horizon, horizon_at, longest_n_step
from replay.chunk import BOUNDARY, FIRST, TERMINATED, TRUNCATED
from replay.nstep import LaneWindows


def config(updates: int, n_step: int = 10, gamma: float = 0.97, **final: Any) -> LearnerConfig:
    final = {"n_step": 3, "gamma": 0.997, **final}
    return LearnerConfig(anneal=AnnealConfig(updates=updates, n_step=n_step, gamma=gamma), **final)


@pytest.mark.parametrize(
    ("updates", "n", "gamma"),
    [
        (0, 10, 0.97),
        (500, 5, 1 - 0.03 * 0.1**0.5),  # half way: 10 sqrt(0.3) = 5.48, and sqrt(0.03 · 0.003) from 1
        (900, 3, 1 - 0.03 * 0.1**0.9),  # 10 · 0.3^0.9 = 3.38
        (1000, 3, 0.997),
        (10**9, 3, 0.997),
    ],
)
def test_bbfs_schedule_by_hand(updates: int, n: int, gamma: float) -> None:
    found = horizon_at(config(1000), updates)
    assert found.n == n
    assert found.gamma == pytest.approx(gamma, abs=1e-12)


def test_a_discount_of_1_is_gone_to_linearly() -> None:
    annealed = config(10, gamma=0.5, n_step=3).model_copy(update={"gamma": 1.0})
    assert [horizon_at(annealed, updates).gamma for updates in (0, 5, 10)] == [0.5, 0.75, 1.0]


def test_without_a_schedule_the_learners_own_hold() -> None:
    assert horizon_at(LearnerConfig(n_step=4, gamma=0.5), 0) == Horizon(4, 0.5)
    assert longest_n_step(LearnerConfig(n_step=4)) == 4
    assert longest_n_step(config(5)) == 10
    assert longest_n_step(config(5, n_step=2)) == 3


def extend(windows: LaneWindows, first: int, rewards: list[float], flags: list[int]) -> dict[int, tuple[float, ...]]:
    """Adds rows to the only lane; returns r_t, discount_t and the row bootstrapped from of what closed, by row."""
    column, rows = (len(rewards), 1), np.arange(first, first + len(rewards))
    zeros = np.zeros(column, np.float32)
    reward, flag = np.array(rewards, np.float32).reshape(column), np.array(flags, np.uint8).reshape(column)
    closed = windows.extend(reward, flag, rows.reshape(column), zeros, zeros)
    return {row: tuple(rest) for row, *rest in zip(*(column.tolist() for column in closed[:4]), strict=True)}


def test_open_windows_close_by_the_horizon_of_then() -> None:
    """Rows 0 to 2 wait for 4 rows after them; with 2 rewards and gamma 1/2, 0 and 1 close by the rows that are there:
    1 + 2/2 and 2 + 4/2; 2 with the next one."""
    windows = LaneWindows(1, 4, 0.9, longest=4)
    assert extend(windows, 0, [1, 2, 4], [FIRST, 0, 0]) == {}
    windows.n, windows.gamma = 2, 0.5
    assert extend(windows, 3, [8], [0]) == {0: (2.0, 0.25, 2), 1: (4.0, 0.25, 3)}
    assert extend(windows, 4, [16], [0]) == {2: (8.0, 0.25, 4)}


def test_a_longer_horizon_keeps_what_has_closed() -> None:
    windows = LaneWindows(1, 1, 0.5, longest=3)
    assert extend(windows, 0, [1, 2], [FIRST, 0]) == {0: (1.0, 0.5, 1)}
    windows.n = 3
    assert extend(windows, 2, [4, 8], [0, 0]) == {}
    assert extend(windows, 4, [16], [0]) == {1: (6.0, 0.125, 4)}


@given(st.data())
@settings(max_examples=100)
def test_every_row_is_yielded_once_by_the_horizon_under_which_it_closes(data: st.DataObject) -> None:
    """A naive oracle, over chunks each with a horizon of its own."""
    longest, first, ended = 5, True, False
    windows = LaneWindows(1, longest, 0.5, longest=longest)
    rewards: list[float] = []
    flags: list[int] = []
    closed: dict[int, tuple[float, ...]] = {}
    for _ in range(data.draw(st.integers(1, 6))):
        windows.n, windows.gamma = data.draw(st.integers(1, longest)), data.draw(st.sampled_from([0.25, 0.5, 1.0]))
        begin = len(rewards)
        for _ in range(data.draw(st.integers(1, 7))):
            end = 0 if ended else data.draw(st.sampled_from([0, 0, 0, TERMINATED, TRUNCATED]))
            flags.append((FIRST if first else 0) | (BOUNDARY if ended else end))
            rewards.append(float(len(rewards) % 8 + 1))
            first, ended = ended, bool(end)
        still_open = (row for row in range(len(rewards)) if row not in closed)
        expected = {row: found for row in still_open if (found := window(row, rewards, flags, windows))}
        assert extend(windows, begin, rewards[begin:], flags[begin:]) == expected
        closed |= expected


def window(row: int, rewards: list[float], flags: list[int], windows: LaneWindows) -> tuple[float, ...] | None:
    """What a row yields by the rows so far; None where its window is open, or where it is a boundary row."""
    r_t, discount = 0.0, 1.0
    if flags[row] & BOUNDARY:
        return None
    for step in range(row, len(rewards) - 1):
        r_t += discount * rewards[step]
        discount *= 0.0 if flags[step] & TERMINATED else windows.gamma
        if flags[step + 1] & BOUNDARY or step + 1 - row == windows.n:
            return r_t, discount, step + 1
    return None
