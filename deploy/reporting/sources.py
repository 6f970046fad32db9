"""The runs that a report is of: directories of runs, and of studies with what each is expected to hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from deploy.config.errors import ConfigError, RunDirError
from deploy.reporting.analysis import Missing
from deploy.reporting.records import DETAILS, RunRecord, read_run
from deploy.run_directory.directory import RunDirectory
from deploy.studies.study_file import read_study

STUDY = "study.yaml"


def read_sources(given: Sequence[Path]) -> tuple[list[RunRecord], list[Missing]]:
    """Reads all runs of the directories given.

    Raises:
        RunDirError: one is no run and no study, or a run that was given itself is damaged or has no rows yet.
        ConfigError: nothing can be reported, a run is given twice, or a study's file is damaged.
    """
    studies = [path for path in given if (path / STUDY).is_file()]
    runs, missing = list[RunRecord](), list[Missing]()
    for path in given:
        if path in studies:
            found, lacking = _read_study(path, f"{path.absolute().name}: " if len(studies) > 1 else "")
            runs += found
            missing += lacking
        else:
            runs.append(read_run(path, details=len(given) == 1))
    if not runs:
        raise ConfigError(f"no run can be reported: {'; '.join(f'{each.name}: {each.why}' for each in missing)[:500]}")
    paths = [run.path.resolve() for run in runs]
    for path, count in Counter(paths).items():
        if count > 1:
            raise ConfigError(f"{path} is given twice, and would count as two runs")
    if len(runs) == 1 and not runs[0].columns.keys() >= set(DETAILS):  # the only one of a study that can be reported
        runs = [read_run(runs[0].path, runs[0].variant, details=True)]
    return runs, missing


def _read_study(path: Path, prefix: str) -> tuple[list[RunRecord], list[Missing]]:
    """Reads a study's runs, the variants in the order of its file. ``prefix``: what sets them apart from other
    studies'.

    Raises:
        ConfigError: its file is damaged.
    """
    runs, missing = list[RunRecord](), list[Missing]()
    expected = {run.name: run.variant for run in read_study(path / STUDY, path.parent, environ={}).runs}
    order = list(dict.fromkeys(expected.values()))
    for name, variant in sorted(expected.items(), key=lambda pair: order.index(pair[1])):
        folder = path / "runs" / name
        try:
            runs.append(read_run(folder, f"{prefix}{variant}"))
        except RunDirError as error:
            missing.append(Missing(name, _why(folder, error)))
    for name in sorted({each.name for each in (path / "runs").glob("*")} - expected.keys()):
        missing.append(Missing(name, f"left out: {STUDY} does not have it"))
    return runs, missing


def _why(folder: Path, error: RunDirError) -> str:
    """Returns why a run cannot be reported."""
    if not folder.exists():
        return "not begun"
    reason = RunDirectory(folder).summary().get("exit_reason")
    return f"{error}{f'; {str(reason)[:200]}' if reason else ''}"
