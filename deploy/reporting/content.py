"""What a report shows, in its order: what differs, what is missing, each environment, all of them, how it was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deploy.config.repeat import command_for, flat_options
from deploy.reporting.analysis import (
    EnvironmentAnalysis,
    Improvement,
    Report,
    ScoreStatistics,
    VariantAnalysis,
)
from deploy.reporting.charts import Chart, Line, Lines, Mark, Marks, short
from deploy.reporting.comparison import (
    Environment,
    Variant,
    differences,
    differing_provenance,
    provenance_of,
)
from deploy.reporting.curves import Together
from deploy.reporting.document import Block, Code, Document, Fold, Heading, Pictures, Table, Text
from deploy.reporting.records import RunRecord
from deploy.reporting.single import blocks_of_run
from deploy.reporting.statistics import DRAWS, LEVEL, MIN_RUNS
from deploy.reporting.words import number, of_interval, one_line, optional, plural, seconds

AXES = {"env_steps": "env steps", "wall_s": "seconds"}
AXIS_LABELS = {"env_steps": "env steps", "wall_s": "seconds since the command was given"}
STATISTICS = (
    "IQM: the interquartile mean, that of the scores without the lowest and the highest quarter of the runs (rounded "
    f"down). Intervals: {LEVEL:.0%} of {DRAWS:,} bootstrap draws of whole runs, each environment's among its own; with "
    f"fewer than {MIN_RUNS} runs there are none. Performance profile: the share of runs that score above each return. "
    "Probability of improvement: that a run of the one scores above a run of the other, ties half. After Agarwal et "
    "al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice."
)
CURVES = (
    "Curves: the mean of the newest greedy evaluation during training, the last value known at each point, none after "
    "a run's end; their IQM ends where the first completed run does. Training return: the actors' episodes, their "
    "exploration included. The best policy is the one that was evaluated best during training: it is selected, so the "
    "mean as chosen, over the episodes that it was chosen by, is too high; its hold-out and its evaluation after the "
    "run, over further episodes, are not."
)
READ_OFF = 10
"""Points of a curve that stand in a table, for who cannot see it."""


def document_of(report: Report) -> Document:
    """Returns the whole report."""
    runs = list(report.runs)
    blocks: list[Block] = [Heading(report.title, 1), Text(_overview(report, runs))]
    if len(runs) > 1:
        blocks += _differences(report, runs)
    if report.missing:
        blocks += _missing(report)
    for env in report.environments:
        blocks += _environment(env)
    if report.overall:
        blocks += [Heading("All environments", 2), *_improvements(report.overall)]
    if len(runs) == 1:
        blocks += blocks_of_run(runs[0])
    return [*blocks, *_method(report, runs)]


def _overview(report: Report, runs: Sequence[RunRecord]) -> str:
    counted = sum(run.completed for run in runs)
    lacking = sum(each.expected for each in report.missing)
    missing = f" {plural(lacking, 'run')} missing." if lacking else ""
    others = len(report.missing) - lacking
    left_out = f" {plural(others, 'run')} left out." if others else ""
    spent = sum(run.wall_s or 0 for run in runs)
    return (
        f"{plural(len(runs), 'run')} in {plural(len(report.environments), 'environment')}, {counted} completed, "
        f"{seconds(spent)} of wall-clock in all.{missing}{left_out}"
    )


# -- what differs


def _differences(report: Report, runs: Sequence[RunRecord]) -> Iterator[Block]:
    """Yields the tables of options: between the variants of an environment, one table for all environments in which
    it is the same; then between environments; then versions and machines."""
    yield Heading("What differs", 2)
    tables: dict[tuple[tuple[str, ...], tuple[tuple[str, ...], ...]], list[str]] = {}
    for env in report.environments:
        if table := _options_table(env.environment.variants):
            tables.setdefault(table, []).append(env.environment.env)
    for (header, rows), envs in tables.items():
        yield Table(f"options that differ between variants, in {', '.join(envs)}", header, rows)
    firsts = [Variant(env.environment.env, env.environment.variants[0].runs) for env in report.environments]
    if table := _options_table(firsts, ("env.id",)):
        yield Fold("Options that differ between environments", (Table("options by environment", *table),))
    computed = differing_provenance(runs)
    if computed:
        rows = tuple((name, _counted(provenance_of(run).get(name, "–") for run in runs)) for name in computed)
        yield Table("versions and machines that differ", ("what", "runs by value"), rows)
    if not tables and not computed and len(report.environments) == 1:
        yield Text("Nothing but the seed: all runs have the same options, versions and kind of processor.")


def _options_table(
    variants: Sequence[Variant], passed_over: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] | None:
    """Returns header and rows of the options in which variants differ, by those of their first runs; None for none."""
    options = [flat_options(variant.runs[0].config) for variant in variants]
    paths = [path for path in differences([variant.runs[0] for variant in variants]) if path not in passed_over]
    if not paths:
        return None
    rows = tuple((path, *(_option(each[path]) for each in options)) for path in paths)
    return ("option", *(variant.label for variant in variants)), rows


def _option(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_option(each)}" for name, each in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _counted(values: Iterator[str]) -> str:
    return ", ".join(f"{value} ({plural(count, 'run')})" for value, count in Counter(values).most_common())


def _missing(report: Report) -> Iterator[Block]:
    yield Heading("Missing runs", 2)
    yield Table("runs that are not in this report", ("run", "why"), tuple((m.name, m.why) for m in report.missing))


# -- one environment


def _environment(env: EnvironmentAnalysis) -> Iterator[Block]:
    environment = env.environment
    yield Heading(environment.env, 2)
    yield Text(f"Score: {environment.score_is}. {_how_played(environment)}")
    yield _results(env)
    out = [run for variant in environment.variants for run in variant.runs if not run.completed]
    if out:
        names = "; ".join(f"{run.name}: {run.state}" for run in out)
        yield Text(f"Not counted, and dotted in the curves: {names}.")
    yield Pictures(tuple(_charts(env)))
    if env.improvements:
        yield from _improvements(env.improvements)
    yield Fold("Every run", (_every_run(environment),))
    yield Fold("The curves as numbers", tuple(_curve_tables(env)))


def _how_played(environment: Environment) -> str:
    """Returns how the final policies were played, as their evaluations have it."""
    played = [run.final for variant in environment.variants for run in variant.completed if run.final is not None]
    if not environment.final or not played:
        return "qherd eval RUN --policy final plays the final policy of a run."
    episodes = "/".join(dict.fromkeys(str(len(each.returns)) for each in played))
    epsilon = "/".join(dict.fromkeys(f"{each.epsilon:g}" for each in played))
    sticky = "/".join(dict.fromkeys(f"{each.sticky:g}" for each in played if each.sticky is not None))
    how = f"{episodes} episodes, ε {epsilon}{f', sticky actions {sticky}' if sticky else ''}."
    alike = len({(each.epsilon, each.sticky, each.max_episode_steps) for each in played}) == 1
    return how if alike else f"{how} Not all were played alike, so that their scores do not compare."


def _results(env: EnvironmentAnalysis) -> Table:
    rows = tuple(_result(env.environment, each) for each in env.variants)
    header = (
        "variant",
        "runs",
        "mean",
        "sd",
        "IQM",
        f"{LEVEL:.0%} interval",
        best_header(env.environment),
        "hold-out of the best",
        "training return, last 10 %",
        "env steps",
        "seconds",
    )
    return Table("scores over the completed runs", header, rows)


def _result(environment: Environment, each: VariantAnalysis) -> tuple[str, ...]:
    completed, statistics = each.variant.completed, each.statistics
    runs = f"{len(each.scores)} of {len(each.variant.runs)}" if len(each.scores) < len(each.variant.runs) else None
    return (
        each.variant.label,
        runs or str(len(each.scores)),
        *_statistics(statistics),
        optional(_mean(environment.best_score(run) for run in completed)),
        optional(_mean(run.summary.holdout_mean if run.summary else None for run in completed)),
        optional(_mean(run.training_return for run in completed)),
        optional(_median(run.summary.env_steps if run.summary else None for run in completed)),
        optional(_median(run.summary.wall_s if run.summary else None for run in completed)),
    )


def _statistics(found: ScoreStatistics | None) -> tuple[str, str, str, str]:
    if found is None:
        return "–", "–", "–", "–"
    return number(found.mean), optional(found.sd), number(found.iqm), of_interval(found.interval)


def best_header(environment: Environment) -> str:
    """Returns what the best policies' column is called."""
    return f"best policy (selected), {'after the run' if environment.best_after else 'as chosen'}"


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _median(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _every_run(environment: Environment) -> Table:
    header = (
        "run",
        "variant",
        "seed",
        "score",
        "standard error",
        best_header(environment),
        "training return",
        "env steps",
        "seconds",
        "how it ended",
        "commit",
    )
    rows = tuple(
        (
            run.name,
            variant.label,
            str(run.config.seed),
            optional(environment.score(run)),
            optional(run.final.stderr if environment.final and run.final is not None else None),
            optional(environment.best_score(run)),
            optional(run.training_return),
            optional(run.newest.get("env_steps")),
            optional(run.newest.get("wall_s")),
            run.state,
            str(run.written.get("git") or "–"),
        )
        for variant in environment.variants
        for run in variant.runs
    )
    return Table("every run", header, rows)


# -- pictures


def _charts(env: EnvironmentAnalysis) -> Iterator[Chart]:
    for axis, label in AXIS_LABELS.items():
        lines = tuple(line for index, each in enumerate(env.variants) for line in _lines(each, axis, index))
        if lines:
            description = f"Greedy return during training over {label}. {_described(env, axis)}"
            yield Chart(f"Return over {AXES[axis]}", description, Lines(label, "greedy return", lines))
    scored = [(index, each) for index, each in enumerate(env.variants) if each.statistics is not None]
    if sum(len(each.scores) for _, each in scored) > 1:
        yield _scores_chart(env, scored)
        yield _profile_chart(env, scored)


def _lines(each: VariantAnalysis, axis: str, series: int) -> Iterator[Line]:
    """Yields a line per run, and over them the IQM with its interval; of one run this is the run itself."""
    if (curves := each.curves.get(axis)) is None:
        return
    alone = len(curves.runs) == 1
    for run, values in zip(each.drawn[axis], curves.runs, strict=True):
        label = each.variant.label if alone else ""
        yield Line(curves.x, values, series, label, thin=not alone, dotted=not run.completed)
    if not alone:
        yield Line(curves.x, curves.iqm, series, each.variant.label, band=curves.band)


def _described(env: EnvironmentAnalysis, axis: str) -> str:
    """Returns in words what the variants' curves come to."""
    parts = []
    for each in env.variants:
        if (curves := each.curves.get(axis)) is None:
            continue
        shared = np.flatnonzero(np.isfinite(curves.iqm))
        if not len(shared):
            runs = plural(len(curves.runs), "run")
            parts.append(f"{each.variant.label}: {runs}, without a point at which all that count have a value.")
            continue
        last = int(shared[-1])
        interval = f", interval {number(curves.band[0][last])} to {number(curves.band[1][last])}" if curves.band else ""
        at = f"{short(curves.x[last])} {AXES[axis]}"
        parts.append(
            f"{each.variant.label}: {plural(len(curves.runs), 'run')}; at {at} the interquartile mean is "
            f"{number(curves.iqm[last])}{interval}."
        )
    return " ".join(parts)


def _scores_chart(env: EnvironmentAnalysis, scored: Sequence[tuple[int, VariantAnalysis]]) -> Chart:
    marks, words = [], []
    for series, each in scored:
        found = each.statistics
        assert found is not None
        marks.append(Mark(each.variant.label, tuple(each.scores.tolist()), found.iqm, found.interval, series))
        interval = "" if found.interval is None else f", interval {of_interval(found.interval)}"
        words.append(f"{each.variant.label}: IQM {number(found.iqm)}{interval}.")
    description = f"A dot per run, a stroke at the interquartile mean, a bar for its interval. {' '.join(words)}"
    kind = "Final score" if env.environment.final else "Newest evaluation"
    return Chart(f"{kind} of each run", description, Marks("return", tuple(marks)))


def _profile_chart(env: EnvironmentAnalysis, scored: Sequence[tuple[int, VariantAnalysis]]) -> Chart:
    lines, words = [], []
    for series, each in scored:
        assert each.profile is not None
        lines.append(Line(env.thresholds, each.profile, series, each.variant.label, band=each.profile_band))
        half = float(np.median(each.scores))
        words.append(f"{each.variant.label}: half of the runs score {number(half)} or more.")
    description = f"The share of runs whose score is above each return. {' '.join(words)}"
    drawing = Lines("return", "share of runs above it", tuple(lines), share=True)
    return Chart("Performance profile", description, drawing)


def _improvements(found: Sequence[Improvement]) -> Iterator[Block]:
    names = [f"{each.better} over {each.than}" for each in found]
    rows = tuple(
        (name, f"{each.probability:.2f}", of_interval(each.interval), str(each.environments))
        for name, each in zip(names, found, strict=True)
    )
    marks = tuple(
        Mark(name, (), each.probability, each.interval, series)
        for series, (name, each) in enumerate(zip(names, found, strict=True))
    )
    title = "Probability of improvement"
    words = "; ".join(f"{name} {probability}" for name, probability, _, _ in rows)
    yield Pictures((Chart(title, f"{words}.", Marks("probability of improvement", marks, reference=0.5, share=True)),))
    yield Table(title, ("variants", "probability", f"{LEVEL:.0%} interval", "environments"), rows)


def _curve_tables(env: EnvironmentAnalysis) -> Iterator[Table]:
    for each in env.variants:
        for axis, label in AXIS_LABELS.items():
            if (curves := each.curves.get(axis)) is not None:
                names = [f"seed {run.config.seed}" for run in each.drawn[axis]]
                yield _curve_table(f"{each.variant.label}: greedy return over {label}", label, names, curves)


def _curve_table(caption: str, label: str, names: Sequence[str], curves: Together) -> Table:
    points = np.unique(np.linspace(0, len(curves.x) - 1, READ_OFF + 1).astype(int))[1:]
    band = curves.band
    rows = tuple(
        (
            f"{curves.x[point]:,.0f}",
            optional(curves.iqm[point]),
            "–" if band is None or np.isnan(band[0][point]) else of_interval((band[0][point], band[1][point])),
            *(optional(value) for value in curves.runs[:, point]),
        )
        for point in points
    )
    return Table(caption, (label, "IQM", f"{LEVEL:.0%} interval", *names), rows)


# -- how it was made


def _method(report: Report, runs: Sequence[RunRecord]) -> Iterator[Block]:
    yield Heading("How these numbers were made", 2)
    yield Text(STATISTICS)
    yield Text(CURVES)
    if len(runs) > 1:
        commands = "\n".join(
            f"{command_for(variant.runs[0].config)}    # "
            + one_line(f"{env.environment.env}, {variant.label}, seeds {_seeds(variant)}")
            for env in report.environments
            for variant in env.environment.variants
        )
        yield Fold("The commands that repeat a run of each variant", (Code(commands),))
    yield Code(report.call)


def _seeds(variant: Variant) -> str:
    return " ".join(str(run.config.seed) for run in variant.runs)
