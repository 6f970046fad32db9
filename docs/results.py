"""Makes docs/results.md and its pictures from the rows in results/ alone: ``python -m docs.results``; with ``repeat
NAME`` it has a folder's studies trained again and writes their rows. A test holds the page equal to it."""

from __future__ import annotations

import argparse
import csv
import gzip
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from deploy.reporting.analysis import ScoreStatistics
from deploy.reporting.charts import (
    DARK_GRID,
    DARK_INK,
    DARK_SERIES,
    GRID,
    INK,
    SERIES,
    Chart,
    Mark,
    Marks,
    colours,
    svg,
)
from deploy.reporting.statistics import MIN_RUNS
from deploy.reporting.words import number, of_interval, optional, plural
from deploy.studies.study_file import read_study

RESULTS = Path(__file__).resolve().parent.parent / "results"
PAGE = Path(__file__).with_suffix(".md")
PICTURES = Path(__file__).with_suffix("")
PEERS, PUBLISHED = "peers.csv", "published.yaml"
AFTER = " after qherd's seconds"
"""What follows a peer's name where its policy is that of a moment of its training."""
LARGE_BYTES = 200_000
"""Rows that take more are compressed."""
TITLES = {
    "classic": "Classic control and LunarLander",
    "minatar": "MinAtar",
    "pong": "Pong",
    "recurrent": "What has to be remembered",
}
HEAD = """\
# Results

<!-- made by python -m docs.results (make results-page) from the files in results/: edit those -->

Scores of qherd's own presets, of other libraries in the same environments, and what has been published. Each score is
that of a **final policy**, which no score has selected: the mean return over {episodes} greedy episodes on fresh seeds,
the same ones for every agent that was trained with a seed. Hyper-parameters were settled on seeds from 100 on; of seeds
0 to 9 one run each counts, however it went. IQM and interval are over runs
([the statistics](reports.md#the-statistics)); with fewer than {min_runs} runs there is no interval. Seconds are those
of a training from its command to its end, with the evaluations during it, the median over runs, whose machines differ:
each row has its own. qherd's rows of commits before `ac08eb0` leave the first 2 to 5 of them out.

`make results-NAME` trains the studies of `results/NAME`, in `studies/`, where a run that is finished is not trained
again, and writes their rows anew; `make results-page` makes this page from the rows. The other libraries run with the
settings that have been published for them (`benchmarks/published_settings.py`), in a venv of their own: `python -m
benchmarks.study_peers results/NAME/FILE.yaml --csv results/NAME/peers.csv`. They have trained for the same env steps;
*after qherd's seconds* is the policy that they had in the midst of that training, when as many seconds were over as
qherd's runs have taken on that CPU, of which qherd's had up to two cores and a peer mostly one. SB3's DQN was trained
in classic control and two games of MinAtar, sb3-contrib's QR-DQN in these two.
"""
REACHED = """
## What is reached

The interval of qherd's IQM beside the best of the published figures below, whatever its env steps. That figure is taken
as it stands, without its own error: most are of a single run, whose luck nobody knows, and Breakout's of ten episodes.

| environment | env steps | qherd's IQM, interval | runs | published | |
|---|--:|---|--:|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One run. ``score`` is None where it does not count; ``seconds`` and ``cpu`` where they were not written down."""

    env: str
    agent: str
    seed: int
    score: float | None
    state: str
    env_steps: int
    seconds: float | None
    cpu_seconds: float | None
    commit: str
    machine: str


@dataclass(frozen=True)
class Folder:
    """The studies of a folder of results/: their rows, peers' rows after them, and what has no row yet, by file."""

    name: str
    rows: tuple[Row, ...]
    files: tuple[Path, ...]
    missing: Mapping[Path, str]


# -- the rows


def read_folder(path: Path) -> Folder:
    """Reads the rows of all studies of a folder, and of the peers."""
    rows, files, missing = list[Row](), list[Path](), dict[Path, str]()
    for study in sorted(path.glob("*.yaml")):
        found = rows_file(study.with_suffix(".csv"))
        there = [] if found is None else read_rows(found, ours=True)
        files += [] if found is None else [found]
        rows += there
        if lacking := _lacking(study, there):
            missing[study] = lacking
    if (peers := rows_file(path / PEERS)) is not None:
        files.append(peers)
        rows += read_rows(peers, ours=False)
    return Folder(path.name, tuple(rows), tuple(files), missing)


def _lacking(study: Path, rows: Iterable[Row]) -> str:
    """Returns which of a study's runs have no row, in words; nothing where all have one."""
    there, lacking = {(row.env, row.agent, row.seed) for row in rows}, dict[tuple[str, str], list[int]]()
    for run in read_study(study, Path("studies"), environ={}).runs:
        agent = _agent_of(run.variant)
        if (run.env, agent, run.seed) not in there:
            lacking.setdefault((run.env, agent), []).append(run.seed)
    return "; ".join(
        f"{env}{agent.removeprefix('qherd')}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        for (env, agent), seeds in lacking.items()
    )


def _agent_of(variant: str) -> str:
    """Returns what the page calls a variant of a study."""
    return "qherd" if variant == "default" else f"qherd, {variant}"


def rows_file(file: Path) -> Path | None:
    """Returns where the rows of ``file`` are, which may be compressed; None where there are none."""
    return next((found for found in (file, file.with_name(f"{file.name}.gz")) if found.exists()), None)


def values_of(file: Path) -> list[dict[str, str]]:
    """Reads a file of ``qherd report --csv``, or with the same columns."""
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
    return list(csv.DictReader(text.splitlines()))


def read_rows(file: Path, *, ours: bool) -> list[Row]:
    """Reads the rows of a file, and after that of a peer what its policy was worth after qherd's seconds."""
    rows = list[Row]()
    for values in values_of(file):
        row = _row(values, ours=ours)
        rows.append(row)
        if values.get("after_mean"):
            score, env_steps = float(values["after_mean"]), int(values["after_env_steps"])
            agent, seconds = f"{row.agent}{AFTER}", float(values["after_s"])
            rows.append(replace(row, agent=agent, score=score, env_steps=env_steps, seconds=seconds, cpu_seconds=None))
    return rows


def _row(values: Mapping[str, str], *, ours: bool) -> Row:
    variant = values["variant"]
    counted = values["counted"] == "1" and values["score_is"] == "final policy"
    return Row(
        env=values["env"],
        agent=_agent_of(variant) if ours else variant,
        seed=int(values["seed"]),
        score=float(values["score"]) if counted else None,
        state=values["exit_reason"],
        env_steps=int(float(values["env_steps"] or 0)),
        seconds=_number(values.get("wall_s")),
        cpu_seconds=_number(values.get("cpu_s")),
        commit=values["git"],
        machine=_machine(values),
    )


def _machine(values: Mapping[str, str]) -> str:
    cores, gpu = values.get("machine.cores"), values.get("learner_device") or "CPU"
    parts = [values["arithmetic.cpu"], f"{float(cores):g} cores" if cores else "", "" if gpu == "CPU" else gpu]
    return ", ".join(filter(None, parts))


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def by_env_and_agent(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """Returns the rows by environment and agent, both in their order, by seed."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row.env, {}).setdefault(row.agent, []).append(row)
    return {
        env: {agent: sorted(some, key=lambda row: row.seed) for agent, some in agents.items()}
        for env, agents in found.items()
    }


def statistics_of(rows: Iterable[Row]) -> ScoreStatistics | None:
    """Returns the statistics of the rows that count; None where none does."""
    scores = [row.score for row in rows if row.score is not None]
    return ScoreStatistics.of(np.array(scores)) if scores else None


# -- the page


def page(results: Path = RESULTS) -> str:
    """Returns the page's text."""
    folders, published = folders_of(results), yaml.safe_load((results / PUBLISHED).read_text())
    envs = [(env, agents) for folder in folders for env, agents in by_env_and_agent(folder.rows).items()]
    own = ((env, agents["qherd"]) for env, agents in envs if "qherd" in agents)  # else variants beside each other alone
    reached = "".join(_reached(env, rows, published["figures"]) for env, rows in own)
    parts = [HEAD.format(episodes=100, min_runs=MIN_RUNS), REACHED, reached]
    for folder in folders:
        parts += _section(folder, published)
    return "".join(parts)


def folders_of(results: Path) -> list[Folder]:
    """Returns the folders with studies, those with a title first."""
    order = [*TITLES]
    found = [read_folder(path) for path in sorted(results.iterdir()) if path.is_dir() and any(path.glob("*.yaml"))]
    return sorted(found, key=lambda folder: order.index(folder.name) if folder.name in order else len(order))


def compared(figures: Mapping[str, Any], env: str) -> Mapping[str, Any] | None:
    """Returns the published figure that an environment's runs are compared with; None where none is."""
    return next((figure for figure in figures.get(env, ()) if figure.get("compared")), None)


def verdict(found: ScoreStatistics, bar: float) -> str:
    """Returns how the interval of the IQM lies to a published figure.

    ===========================  ===============
    the interval                 in words
    ===========================  ===============
    above it                     better
    is that one number           the same
    has it inside or as a bound  not told apart
    below it                     worse
    none: fewer than MIN_RUNS    too few runs
    ===========================  ===============
    """
    if found.interval is None:
        return "too few runs"
    low, high = found.interval
    if low == high == bar:
        return "the same"
    return "**better**" if low > bar else "**worse**" if high < bar else "not told apart"


def _reached(env: str, rows: Sequence[Row], figures: Mapping[str, Any]) -> str:
    figure, found = compared(figures, env), statistics_of(rows)
    if found is None:
        return f"| {env} | – | – | 0 of {len(rows)} count | – | |\n"
    iqm = f"{number(found.iqm)}{'' if found.interval is None else f' ({of_interval(found.interval)})'}"
    shown, told = "none known", ""
    if figure is not None:
        shown = f"{number(figure['score'])}, {figure['who']}, {figure['env_steps']:,} env steps"
        told = verdict(found, figure["score"])
    return f"| {env} | {_steps(rows)} | {iqm} | {found.count} | {shown} | {told} |\n"


def _steps(rows: Sequence[Row]) -> str:
    return f"{round(median(row.env_steps for row in rows), -3):,.0f}"


def _section(folder: Folder, published: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n## {TITLES.get(folder.name, folder.name)}\n"
    for file, lacking in folder.missing.items():
        yield f"\nNot run yet of [{file.name}](../results/{folder.name}/{file.name}): {lacking}.\n"
    for env, agents in by_env_and_agent(folder.rows).items():
        yield f"\n### {env}\n\n![{chart(env, agents, published).description}]({PICTURES.name}/{picture_name(env)})\n"
        yield "\n| | runs | env steps | mean | sd | IQM | 95 % interval | seconds | CPU seconds |\n"
        yield "|---|--:|--:|--:|--:|--:|---|--:|--:|\n"
        yield from (_agent(agent, rows) for agent, rows in agents.items())
        yield from (_figure(figure, published["sources"]) for figure in published["figures"].get(env, ()))
        if remark := published["remarks"].get(env):
            yield f"\n{remark}\n"
        yield from _each_run(agents)
    if folder.files:
        links = ", ".join(f"[{file.name}](../results/{folder.name}/{file.name})" for file in folder.files)
        commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(row.commit for row in folder.rows))
        machines = "; ".join(dict.fromkeys(row.machine for row in folder.rows))
        yield f"\nRows: {links}, each with its command and versions. At {_commits(commits)}, on {machines}.\n"


def _commits(commits: str) -> str:
    return f"commit{'s' if ',' in commits else ''} {commits}"


def _agent(agent: str, rows: Sequence[Row]) -> str:
    found = statistics_of(rows)
    cells = ["–"] * 4 if found is None else [optional(found.mean), optional(found.sd), number(found.iqm)]
    if found is not None:
        cells.append(of_interval(found.interval))
    count = 0 if found is None else found.count
    runs = str(count) if count == len(rows) else f"{count} of {len(rows)}"
    times = (_median(row.seconds for row in rows), _median(row.cpu_seconds for row in rows))
    return f"| **{agent}** | {runs} | {_steps(rows)} | {' | '.join([*cells, *times])} |\n"


def _median(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):,.0f}" if known else "–"


def _figure(figure: Mapping[str, Any], sources: Mapping[str, Any]) -> str:
    source = sources[figure["source"]]
    name = f"[{source['name']}]({source['url']})" if "url" in source else source["name"]
    who = f"{figure['who']}, published: {name}, {figure['what']}"
    score, sd = number(figure["score"]), optional(figure.get("sd"))
    return f"| {who} | {figure['seeds']} | {figure['env_steps']:,} | {score} | {sd} | – | – | – | – |\n"


def _each_run(agents: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Yields the score of each run by seed, and those that do not count."""
    for agent, rows in agents.items():
        scores = ", ".join(number(row.score) for row in rows if row.score is not None)
        seeds = ", ".join(str(row.seed) for row in rows if row.score is not None)
        if scores:
            yield f"\n{agent}, seed{'s' if ',' in seeds else ''} {seeds}: {scores}.\n"
        for row in rows:
            if row.score is None:
                yield f"\n{agent}, seed {row.seed} does not count: {row.state}.\n"


# -- the pictures


def picture_name(env: str) -> str:
    """Returns the name of an environment's picture."""
    return f"{re.sub(r'[^a-z0-9]+', '-', env.lower())}.svg"


def chart(env: str, agents: Mapping[str, Sequence[Row]], published: Mapping[str, Any]) -> Chart:
    """Returns the picture of all runs in an environment, with the published figure as a dotted line."""
    marks, words = [], []
    for series, (agent, rows) in enumerate(agents.items()):
        found = statistics_of(rows)
        if found is None:
            words.append(f"{agent}: no run that counts.")
            continue
        scores = tuple(row.score for row in rows if row.score is not None)
        marks.append(Mark(agent, scores, found.iqm, found.interval, series))
        interval = "" if found.interval is None else f", interval {of_interval(found.interval)}"
        words.append(f"{agent}: IQM {number(found.iqm)}{interval}, {plural(found.count, 'run')}.")
    figure = compared(published["figures"], env)
    if figure is not None:
        words.append(f"Dotted: {number(figure['score'])}, published, {figure['who']}.")
    reference = None if figure is None else float(figure["score"])
    drawing = Marks("return of the final policy", tuple(marks), reference=reference)
    return Chart(env, f"{env}, a dot per run, a stroke at the IQM, a bar for its interval. {' '.join(words)}", drawing)


def standalone(drawn: Chart) -> str:
    """Returns a picture as a file of its own, in the colours of light or dark mode."""
    text = svg(drawn, "p")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    width, height = (round(1.6 * float(each)) for each in size.groups())
    light, dark = colours(INK, GRID, SERIES), colours(DARK_INK, DARK_GRID, DARK_SERIES)
    style = f"<style>svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    opened = text.index(">") + 1
    return f'{text[: opened - 1]} width="{width}" height="{height}">{style}{text[opened:]}\n'


def pictures(results: Path = RESULTS) -> dict[str, Chart]:
    """Returns the pictures by their names."""
    published = yaml.safe_load((results / PUBLISHED).read_text())
    return {
        picture_name(env): chart(env, agents, published)
        for folder in folders_of(results)
        for env, agents in by_env_and_agent(folder.rows).items()
    }


def write_page() -> None:
    """Writes the page and its pictures, and removes pictures of environments that are gone."""
    PAGE.write_text(page())
    PICTURES.mkdir(exist_ok=True)
    drawn = pictures()
    for file in PICTURES.glob("*.svg"):
        if file.name not in drawn:
            file.unlink()
    for name, each in drawn.items():
        (PICTURES / name).write_text(standalone(each))


# -- training again


def repeat(folder: Path, studies_dir: Path, options: Sequence[str]) -> int:
    """Trains the studies of a folder of results/ and writes their rows; returns the exit code: 1 where runs have
    failed, whose rows are written, too."""
    files, failed = sorted(folder.glob("*.yaml")), 0
    if not files:
        names = ", ".join(sorted({path.parent.name for path in folder.parent.glob("*/*.yaml")}))
        print(f"{folder} has no study; there are {names}", file=sys.stderr)
        return 2
    qherd = str(Path(sys.executable).with_name("qherd"))
    for file in files:
        command = [qherd, "study", str(file), "--studies-dir", str(studies_dir), *options]
        code = subprocess.run(command, check=False).returncode
        if code not in (0, 1):
            return code
        if not {"--dry-run", "--dry_run"} & set(options):
            study = studies_dir / read_study(file, studies_dir, environ={}).name
            told = subprocess.run([qherd, "report", str(study), "--csv"], stdout=subprocess.PIPE, check=False)
            code = max(code, told.returncode and 1, 1 - _keep_rows(file.with_suffix(".csv"), told.stdout))
        failed = max(failed, code)
    return failed


def _keep_rows(file: Path, rows: bytes) -> bool:
    """Writes a study's rows; returns whether it did: what has fewer runs that count than are published does not replace
    them. Paths in their commands are those within the clone."""
    before, rows = rows_file(file), rows.replace(f"{RESULTS.parent}/".encode(), b"")
    found = list(csv.DictReader(rows.decode().splitlines()))
    had, come = (sum(row.get("counted") == "1" for row in of) for of in (values_of(before) if before else [], found))
    if come < had:
        print(f"{before} has {had} runs that count, and the study {come}: it is left as it was", file=sys.stderr)
        return False
    if found:
        write_rows(file, rows)
    return True


def write_rows(file: Path, rows: bytes) -> None:
    """Writes rows into ``file``, or compressed beside it."""
    packed, large = file.with_name(f"{file.name}.gz"), len(rows) > LARGE_BYTES
    (packed if large else file).write_bytes(gzip.compress(rows, mtime=0) if large else rows)
    (file if large else packed).unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of this file; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.results", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    again = commands.add_parser("repeat", help="train a folder's studies; further options are those of qherd study")
    again.add_argument("name", help="of the folder in results/")
    again.add_argument("--studies-dir", type=Path, default=Path("studies"))
    options, more = parser.parse_known_args(arguments)
    if options.command == "repeat":
        return repeat(RESULTS / options.name, options.studies_dir, more)
    write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main())
