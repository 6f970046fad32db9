"""The textbook's table and qherd's network, side by side on grids of four and of nine states.

``python examples/q_table.py`` learns both, prints their Q values beside the exact ones of value iteration, and draws
them: ``--out`` names the picture.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from grid import ACTIONS, GRIDS, MOVES, Grid

from actors.policy import make_policy
from deploy.config.models import RunConfig
from deploy.planning.preconditions import probe_env
from deploy.process import arithmetic
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.inline import InlineSession
from learner.weights import unpack

Q = npt.NDArray[np.float64]
"""<float64>[states, ACTIONS]"""
GAMMA, ALPHA, EPSILON = 0.9, 0.5, 0.5
TABLE_STEPS, UPDATES = 5_000, 3_000
TABLE_TOLERANCE, NETWORK_TOLERANCE = 1e-6, 0.02
"""How near to Q* each comes, in every state and action; Q* lies between -0.6 and 1."""
TIE = 0.02
"""Actions whose values differ by less are drawn as equally good: round the pit both ways are."""


def q_table(grid: Grid, steps: int = TABLE_STEPS, seed: int = 0) -> Q:
    """Q-learning in a table (Watkins 1989): after each step ``Q(s, a) <- (1 - alpha) Q(s, a) + alpha (r + gamma max_b
    Q(s', b))``, acting at random with probability epsilon. A grid has no chance in it, so alpha need not fall."""
    rng, q = np.random.default_rng(seed), np.zeros((grid.states, ACTIONS))
    starts = [state for state in range(grid.states) if state != grid.goal]
    state = int(rng.choice(starts))
    for _ in range(steps):
        action = int(rng.integers(ACTIONS) if rng.random() < EPSILON else q[state].argmax())
        following, reward, terminated = grid.move(state, action)
        target = reward + (0.0 if terminated else GAMMA * q[following].max())
        q[state, action] = (1 - ALPHA) * q[state, action] + ALPHA * target
        state = int(rng.choice(starts)) if terminated else following
    return q


def q_network(name: str, updates: int = UPDATES, seed: int = 0) -> Q:
    """Deep Q-learning by qherd itself, in one process: the state is one-hot, the network 64-64 with ReLU."""
    with tempfile.TemporaryDirectory(prefix="qherd-example-") as folder:
        config = network_config(name, folder, seed)
        schema = probe_env(config)
        session = InlineSession(config, RunDirectory.create(config), schema, lambda text: None)
        while session.loop.learner.updates < updates:
            session.advance()
        policy = make_policy(config.learner.network_spec, schema)
        policy.load(unpack(session.loop.candidate())[1])
        session.stop(1.0)
    grid = GRIDS[name]
    values, _ = policy(np.eye(grid.states, dtype=np.float32), policy.initial_state(grid.states))
    q: Q = values.astype(np.float64)
    q[grid.goal] = 0.0  # where the episode is over: nothing was ever learned of it
    return q


def network_config(name: str, folder: str, seed: int) -> RunConfig:
    """What ``qherd train`` would be given: the tutorial's one-step max target and uniform replay, on a grid."""
    values: dict[str, Any] = {
        "runs_dir": folder, "run": "grid", "mode": "inline", "seed": seed,
        "env": {"id": "grid:ExampleGrid-v0", "path": Path(__file__).parent, "kwargs": {"name": name}},
        "actors": {"count": 1, "lanes": 8, "epsilon": EPSILON, "epsilon_alpha": 0, "epsilon_anneal_env_steps": 0},
        "replay": {"capacity_rows": 5_000, "min_rows": 500, "samples_per_insert": 16},
        "learner": {
            "network": {"hidden": (64, 64)}, "lr": 1e-3, "batch": 64, "gamma": GAMMA, "n_step": 1, "double": False,
            "target_period_updates": 20, "average_tau": 0.01, "device": "cpu",
        },
        "eval": {"every_updates": 10**9},
    }  # fmt: skip
    return RunConfig.model_validate(values)


def as_text(grid: Grid, learned: dict[str, Q]) -> str:
    """A line per state, with every side's values of up, right, down and left."""
    heads = "".join(f"{side:^32}" for side in learned)
    lines = [f"       {heads}", "state  " + ("     up  right   down   left    ") * len(learned)]
    for state in range(grid.states):
        cells = ("".join(f"{value:7.3f}" for value in q[state]) for q in learned.values())
        lines.append(f"{state:5}  " + "    ".join(cells) + {grid.goal: "    goal", grid.pit: "    pit"}.get(state, ""))
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Q]], path: Path) -> None:
    """A panel for each grid and side: each cell's four values at the walls they lead to, the best ones' arrows."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    sides = list(next(iter(results.values())))
    size = (3.6 * len(sides), 3.9 * len(results))
    figure, panels = plt.subplots(len(results), len(sides), figsize=size, layout="constrained", squeeze=False)
    for row, (name, learned) in zip(panels, results.items(), strict=True):
        for axes, (side, q) in zip(row, learned.items(), strict=True):
            off = np.abs(q - learned[sides[-1]]).max()
            axes.set_title(
                f"{name}: {side}\n" + (f"off by {off:.1g} at most" if side != sides[-1] else ""), fontsize=10
            )
            image = _panel(axes, GRIDS[name], q)
    figure.colorbar(image, ax=panels, shrink=0.6, label="Q(s, a)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axes: Any, grid: Grid, q: Q) -> Any:
    """One grid; returns what the colours mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Polygon, Rectangle

    colours = ScalarMappable(Normalize(0.0, 1.4), "YlGn")
    for state in range(grid.states):
        row, column = divmod(state, grid.side)
        if state == grid.goal:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="gold", edgecolor="black"))
            axes.text(column, row, "goal\n+1", ha="center", va="center", weight="bold")
            continue
        for action, (down, right) in enumerate(MOVES):
            across = 0.5 * np.array([down, right])  # along the wall that the action leads to
            wall = np.array([column + 0.5 * right, row + 0.5 * down])
            corners = np.stack([(column, row), wall + across, wall - across])
            colour = colours.to_rgba(q[state, action])
            axes.add_patch(Polygon(corners, facecolor=colour, edgecolor="white", linewidth=0.5))
            at = (column + 0.36 * right, row + 0.38 * down)
            axes.text(*at, f"{q[state, action]:.2f}", ha="center", va="center", fontsize=7)
            if q[state, action] > q[state].max() - TIE:
                arrow = {"arrowstyle": "-|>", "linewidth": 1.8, "color": "black", "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", (column + 0.22 * right, row + 0.26 * down), (column, row), arrowprops=arrow)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black"))
        if state == grid.pit:
            axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor="firebrick", lw=2))
            axes.text(column - 0.44, row - 0.32, "pit", color="firebrick", fontsize=7, weight="bold")
    axes.set(xlim=(-0.55, grid.side - 0.45), ylim=(grid.side - 0.45, -0.55), aspect="equal")
    axes.axis("off")
    return colours


def main() -> None:
    """The command of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("q_table.png"), help="the picture")
    options = parser.parse_args()
    results = {}
    for name, grid in GRIDS.items():
        exact = grid.value_iteration(GAMMA)
        results[name] = learned = {"table": q_table(grid), "network": q_network(name), "Q* (value iteration)": exact}
        print(f"{name}\n{as_text(grid, learned)}\n", flush=True)
    draw(results, options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    arithmetic.pin()
    main()
