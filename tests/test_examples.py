"""The examples run as they stand, and come to what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import grid_env
import numpy as np
import pytest
from cli_runs import running_program
from policies import a_run
from test_known_answer import GAMMA as KNOWN_GAMMA
from test_known_answer import value_iteration

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOKS = ("train_and_watch.py", "read_replay.py", "use_policy.py")
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


def cells(name: str) -> list[str]:
    """Those of a script that is a notebook, too, by their first lines."""
    return re.findall(r"^# %%.*$", (EXAMPLES / name).read_text(), re.M)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_script_is_a_notebook_too(name: str) -> None:
    """It begins with a cell, and uses nothing that a notebook has not."""
    text = (EXAMPLES / name).read_text()
    assert text.startswith("# %% [markdown]\n# # ")
    assert {"# %%", "# %% [markdown]"} == set(cells(name))
    assert not re.search(r"__file__|__name__|\bargv\b|argparse", text)


def run_example(name: str, folder: Path, **environ: str) -> str:
    """What it prints, run as a script in ``folder``; nothing is left of it."""
    with running_program([sys.executable, EXAMPLES / name], cwd=folder, env=environ) as run:
        done = run.finish(100)
    assert (done.code, done.err, done.leftovers) == (0, "", []), done
    return done.out


SHORT = {"EVAL_EVERY_UPDATES": "100", "EVAL_SCREEN_EPISODES": "2", "EVAL_THRESHOLD": "null", "REPLAY_MIN_ROWS": "100"}


def test_a_run_is_trained_and_watched(tmp_path: Path) -> None:
    options = {**SHORT, "MODE": "inline", "BUDGET_ENV_STEPS": "1500"}
    out = run_example("train_and_watch.py", tmp_path, **{f"QHERD_{name}": value for name, value in options.items()})
    (run,) = (tmp_path / "runs").iterdir()
    first, *_, last, end = out.splitlines()
    assert first == "starting: 0 env steps, greedy return None"
    assert re.fullmatch(r"over: \d+ env steps, greedy return [\d.]+", last)
    assert end == f"budget of env steps: {run}"
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_a_replay_memory_is_read(tmp_path: Path) -> None:
    out = run_example("read_replay.py", tmp_path, **{f"QHERD_{name}": value for name, value in SHORT.items()})
    assert "1000 transitions, 3 steps long at most" in out
    shares = re.search(r"mean reward ([\d.]+); ([\d.]+)% end the episode", out)
    assert shares
    assert 2 < float(shares[1]) <= 3, "a reward of 1 an env step, over three of them"
    assert 1 < float(shares[2]) < 40


def test_a_policy_is_loaded_and_used(tmp_path: Path) -> None:
    """The one that obeys masks, in a bare environment."""
    run = a_run(tmp_path, "masked_env:MaskedGrid-v0")
    out = run_example("use_policy.py", tmp_path, RUN=str(run), PYTHONPATH=str(Path(__file__).parent))
    assert [line.rpartition(" ")[0] for line in out.splitlines()] == [f"seed {seed}: return" for seed in range(3)]


@pytest.mark.long
def test_the_command_prints_the_tables_and_draws_them(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "q_table.py"), "--out", "picture.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "    2    0.620  1.000  0.800  0.800      0.620  1.000" in done.stdout
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
