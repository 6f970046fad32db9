"""Makes the README's pictures from real runs.

python docs/pictures.py curve RUN [RUN ...]     docs/curve.svg: greedy return over time, a line per run
python docs/pictures.py terminal CAPTURE        docs/terminal.svg of a terminal's text with its colours
                                                (tmux capture-pane -e -p > CAPTURE, while a run shows its table)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).parent


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
    if command == "curve" and paths:
        curve([Path(path) for path in paths])
    elif command == "terminal" and len(paths) == 1:
        terminal(Path(paths[0]))
    else:
        sys.exit(__doc__)
