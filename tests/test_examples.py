"""The examples do what they say: table and network both come to the optimal Q values, and there is a picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grid_env
import numpy as np
import pytest
from policies import a_run
from test_known_answer import GAMMA as KNOWN_GAMMA
from test_known_answer import value_iteration

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import grid  # noqa: E402
import q_table  # noqa: E402


def test_the_nine_states_are_those_of_the_known_answer_tests() -> None:
    """And so is Q*, by two value iterations."""
    nine = grid.GRIDS["9 states"]
    for state in range(grid_env.GOAL):
        for action in range(grid_env.ACTIONS):
            assert nine.move(state, action) == grid_env.move(state, action)
    assert q_table.GAMMA == KNOWN_GAMMA
    np.testing.assert_allclose(nine.value_iteration(KNOWN_GAMMA)[: grid_env.GOAL], value_iteration(), atol=1e-12)


def test_q_of_the_four_states_by_hand() -> None:
    """From 2, beside the goal, right is worth 1; from 0, down to it -0.1 + 0.9; over the pit -0.5 + 0.9."""
    exact = grid.GRIDS["4 states"].value_iteration(0.9)
    assert exact[2, 1] == 1
    assert exact[0, 2] == pytest.approx(0.8)
    assert exact[0, 1] == pytest.approx(0.4)


@pytest.mark.parametrize("name", grid.GRIDS)
def test_the_table_comes_to_q_star(name: str) -> None:
    exact = grid.GRIDS[name].value_iteration(q_table.GAMMA)
    for seed in range(5):
        learned = q_table.q_table(grid.GRIDS[name], seed=seed)
        np.testing.assert_allclose(learned, exact, rtol=0, atol=q_table.TABLE_TOLERANCE)
    early = q_table.q_table(grid.GRIDS[name], steps=20)
    assert np.abs(early - exact).max() > q_table.NETWORK_TOLERANCE, "it had nothing to learn"


@pytest.mark.parametrize("name", grid.GRIDS)
def test_the_network_comes_to_q_star(name: str) -> None:
    exact = grid.GRIDS[name].value_iteration(q_table.GAMMA)
    learned = q_table.q_network(name, updates=2000, seed=1)
    np.testing.assert_allclose(learned, exact, rtol=0, atol=q_table.NETWORK_TOLERANCE)


def test_a_policy_is_loaded_and_used(tmp_path: Path) -> None:
    """The one that obeys masks, in a bare environment."""
    run = a_run(tmp_path, "masked_env:MaskedGrid-v0")
    command = [sys.executable, str(EXAMPLES / "use_policy.py"), str(run), "--episodes", "2"]
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        command, cwd=tests, env={"PYTHONPATH": tests}, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.rpartition(" ")[0] for line in done.stdout.splitlines()] == ["seed 0: return", "seed 1: return"]


@pytest.mark.long
def test_the_command_prints_the_tables_and_draws_them(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "q_table.py"), "--out", "picture.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "    2    0.620  1.000  0.800  0.800      0.620  1.000" in done.stdout
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
