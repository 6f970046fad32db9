"""The runs that a report is of: directories of runs, and of studies with what each is expected to hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.config.errors import ConfigError, RunDirError
from deploy.reporting.analysis import Missing
from deploy.reporting.records import RunRecord, read_run

STUDY = "study.yaml"


def read_sources(given: Sequence[Path]) -> tuple[list[RunRecord], list[Missing]]:
    """Reads all runs of the directories given.

    Raises:
        RunDirError: one is no run and no study, or a run that was given itself is damaged or has no rows yet.
        ConfigError: nothing can be reported, or a run is given twice.
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
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"{path} is given twice, and would count as two runs")
    return runs, missing


def _read_study(path: Path, prefix: str) -> tuple[list[RunRecord], list[Missing]]:
    """Reads a study's runs. ``prefix``: what sets its variants apart from those of other studies."""
    runs, missing = list[RunRecord](), list[Missing]()
    for folder in sorted(each for each in (path / "runs").glob("*") if each.is_dir()):
        _, variant, _ = _parts(folder.name)
        try:
            runs.append(read_run(folder, f"{prefix}{variant}"))
        except RunDirError as error:
            missing.append(Missing(folder.name, str(error)))
    return runs, missing


def _parts(name: str) -> tuple[str, str, str]:
    """Returns environment, variant and seed of a study's run, ENV--VARIANT--sSEED; the name itself as the variant
    where it is another."""
    parts = name.rsplit("--", 2)
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ("", name, "")
