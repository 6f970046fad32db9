"""The runs that a report is of: directories of runs, and of studies with what each is expected to hold."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deploy.config.errors import ConfigError, RunDirError
from deploy.reporting.analysis import Missing
from deploy.reporting.records import DETAILS, RunRecord, read_run
from deploy.run_directory.directory import RunDirectory
from deploy.studies.study_file import KEPT, StudyRun, read_study


def read_sources(given: Sequence[Path]) -> tuple[list[RunRecord], list[Missing]]:
    """Reads all runs of the directories given.

    Raises:
        RunDirError: one is no run and no study, or a run that was given itself is damaged or has no rows yet.
        ConfigError: nothing can be reported, a run is given twice, or a study's file is damaged.
    """
    studies = [path for path in given if (path / KEPT).is_file()]
    titles = Counter(path.absolute().name for path in studies)
    runs, missing = list[RunRecord](), list[Missing]()
    for path in given:
        if path in studies:
            title = path.absolute().name
            title = title if titles[title] == 1 else str(path)  # of two machines, or of before and after a change
            found, lacking = _read_study(path, f"{title}: " if len(studies) > 1 else "")
            runs += found
            missing += lacking
        else:
            runs.append(read_run(path, details=len(given) == 1))
    if not runs:
        why = "; ".join(f"{each.name}: {each.why}" for each in missing)[:500] or "none is given: name runs or studies"
        raise ConfigError(f"no run can be reported: {why}")
    _check_different(runs)
    named = Counter(run.name for run in runs)
    runs = [run if named[run.name] == 1 else replace(run, name=str(run.path)) for run in runs]
    if len(runs) == 1 and not runs[0].columns.keys() >= set(DETAILS):  # the only one of a study that can be reported
        runs = [read_run(runs[0].path, runs[0].variant, details=True)]
    return runs, missing


def _check_different(runs: Sequence[RunRecord]) -> None:
    """Raises ConfigError for a run that is given twice, or with a copy of its directory."""
    paths, by_nonce = set[Path](), dict[str, Path]()
    for run in runs:
        if (path := run.path.resolve()) in paths:
            raise ConfigError(f"{path} is given twice, and would count as two runs")
        paths.add(path)
        with contextlib.suppress(RunDirError):  # to be reported a run needs no fences.json
            other = by_nonce.setdefault(RunDirectory(run.path).fences.nonce, run.path)
            if other is not run.path:
                raise ConfigError(f"{run.path} and {other} are one run, of which one is a copy: give one of them")


def _read_study(path: Path, prefix: str) -> tuple[list[RunRecord], list[Missing]]:
    """Reads a study's runs, the variants in the order of its file. ``prefix``: what sets them apart from other
    studies'.

    Raises:
        ConfigError: its file is damaged.
    """
    runs, missing = list[RunRecord](), list[Missing]()
    expected = read_study(path / KEPT, path.parent, environ={}).runs
    order = list(dict.fromkeys(run.variant for run in expected))
    for run in sorted(expected, key=lambda run: order.index(run.variant)):
        folder = path / "runs" / run.name
        try:
            runs.append(_read_expected(folder, run, f"{prefix}{run.variant}"))
        except RunDirError as error:
            missing.append(Missing(run.name, _why(folder, error)))
    for name in sorted(
        {each.name for each in (path / "runs").glob("*") if each.is_dir()} - {run.name for run in expected}
    ):
        missing.append(Missing(name, f"left out: {KEPT} does not have it", expected=False))
    return runs, missing


def _read_expected(folder: Path, run: StudyRun, variant: str) -> RunRecord:
    """Reads one run of a study. Raises RunDirError where it cannot be read, or is another than the study's."""
    found = read_run(folder, variant)
    began_as = RunDirectory(folder).run
    for what, there, expected in (
        ("run", began_as, run.name),
        ("env.id", found.env, run.env),
        ("seed", found.config.seed, run.seed),
    ):
        if there != expected:
            raise RunDirError(f"{folder} is another run: its {what} is {there!r:.80}, and {KEPT} has {expected!r}")
    return found


def _why(folder: Path, error: RunDirError) -> str:
    """Returns why a run cannot be reported."""
    if not folder.exists():
        return "not begun"
    reason = RunDirectory(folder).summary().get("exit_reason")
    return f"{error}{f'; {str(reason)[:200]}' if reason else ''}"
