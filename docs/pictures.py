"""Makes the README's pictures from real runs.

python -m docs.pictures peers                   docs/peers.svg: qherd and its peers, by the rows in results/
python -m docs.pictures curve RUN [RUN ...]     docs/curve.svg: greedy return over time, a line per run
python -m docs.pictures terminal CAPTURE        docs/terminal.svg of a terminal's text with its colours
                                                (tmux capture-pane -e -p > CAPTURE, while a run shows its table)
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from rich.console import Console
from rich.text import Text

from docs.results import AFTER, RESULTS, Row, by_env_and_agent, read_folder

DOCS = Path(__file__).parent
PANELS = {"MinAtar/Breakout-v1": "minatar", "MinAtar/SpaceInvaders-v1": "minatar", "LunarLander-v3": "classic"}
"""Environments side by side, and the folders of results/ that their rows are in."""
AGENTS = {"qherd": "tab:blue", "SB3 DQN": "tab:orange", "SB3 QR-DQN": "tab:green"}


Points = dict[str, list[tuple[float, float]]]
"""Minutes of training and return of final policies by whose they are."""


def peers() -> str:
    """Returns the picture of what final policies are worth over the minutes of their training, a dot per run.

    A ring is what a peer's policy was worth after qherd's minutes.
    """
    mpl.use("svg")
    from matplotlib import pyplot as plt

    points = {env: _points(by_env_and_agent(read_folder(RESULTS / folder).rows)[env]) for env, folder in PANELS.items()}
    figure, panels = plt.subplots(ncols=len(PANELS), figsize=(9, 3.2), layout="constrained")
    for axes, (env, agents) in zip(panels, points.items(), strict=True):
        for name, found in agents.items():
            colour, style = AGENTS[name.removesuffix(AFTER)], "none" if name.endswith(AFTER) else "full"
            axes.plot(*zip(*found, strict=True), "o", color=colour, fillstyle=style, label=name)
        axes.set(title=env, xlabel="minutes of training")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("return of the final policy")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "peers"}):  # the same file each time
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Description": json.dumps(points)})
    plt.close(figure)
    return drawn.getvalue()


def _points(agents: Mapping[str, Sequence[Row]]) -> Points:
    """Returns the points of the runs on the peers' CPU."""
    cpus = {_cpu(row) for agent, rows in agents.items() if agent.endswith(AFTER) for row in rows}
    found = Points()
    for name in (name for agent in AGENTS for name in (f"{agent}{AFTER}", agent)):
        for row in agents.get(name, ()):
            if _cpu(row) in cpus and row.seconds is not None and row.score is not None:
                found.setdefault(name, []).append((round(row.seconds / 60, 2), row.score))
    return found


def _cpu(row: Row) -> str:
    return row.machine.partition(", ")[0]


def curve(runs: list[Path]) -> None:
    """Greedy return over wall-clock seconds; a dot where the run was confirmed to have solved its environment."""
    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for run in runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((run / "summary.json").read_text())
        points = [(row["wall_s"], row["greedy_return"]) for row in rows if "greedy_return" in row]
        (line,) = axes.plot(*zip(*points, strict=True), drawstyle="steps-post", label=f"seed {summary['seed']}")
        if summary["solved_s"]:
            axes.plot(summary["solved_s"], summary["eval_mean"], "o", color=line.get_color())
    axes.axhline(200, color="grey", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="seconds since the command was given", ylabel="greedy return", title="LunarLander-v3, two CPU cores"
    )
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "curve.svg")


def terminal(capture: Path) -> None:
    """A terminal's text as a picture."""
    text = Text.from_ansi(capture.read_text().rstrip())
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=max(map(len, text.plain.splitlines())), file=nowhere)
        console.print(text)
        console.save_svg(str(DOCS / "terminal.svg"), title="qherd train LunarLander-v3")


if __name__ == "__main__":
    command, *paths = sys.argv[1:] or ["help"]
    if command == "peers" and not paths:
        (DOCS / "peers.svg").write_text(peers())
    elif command == "curve" and paths:
        curve([Path(path) for path in paths])
    elif command == "terminal" and len(paths) == 1:
        terminal(Path(paths[0]))
    else:
        sys.exit(__doc__)
