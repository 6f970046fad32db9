"""What a study would do, before it does anything: its runs, about how long they take, and what they leave."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import IO, NamedTuple

from rich.filesize import decimal

from deploy.config.models import RunConfig, dump
from deploy.config.numbers import write_yaml
from deploy.planning.forecast import Forecast, memory_needed
from deploy.process.children import handing_over, kill_group, qherd_command
from deploy.process.host import existing_folder, usable_cores
from deploy.process.signals import Stop
from deploy.studies.costs import Cell, bytes_in, cell_of, duration, forecast_bytes, forecast_seconds, known_costs
from deploy.studies.study_directory import State, StudyDirectory
from deploy.studies.study_file import Study, StudyRun

POLL_S = 0.05
MEASURE_S = 120.0
"""How long the measurement of an environment may take, whose reset or step may hang; longer where these may."""


class Cost(NamedTuple):
    """What a run of one kind takes. ``source``: how that is known; ``refused``: that it cannot run, or was
    not measured, and why."""

    seconds: float = 0.0
    disk_bytes: float = 0.0
    memory_bytes: float = 0.0
    source: str = ""
    refused: str = ""


def dry_run(study: Study, directory: StudyDirectory, parallel: int, show: Callable[[str], None]) -> int:
    """Shows the study's runs and what is still to be done; returns the exit code: 2 where some of it cannot run,
    or was not measured."""
    cells = dict[Cell, list[StudyRun]]()
    for run in study.runs:
        cells.setdefault(cell_of(run), []).append(run)
    show(f"study {study.name}: {len(study.runs)} run{'s' * (len(study.runs) != 1)} in {directory.path}")
    costs = dict[Cell, Cost]()
    for cell, runs in cells.items():
        costs[cell] = _cost(directory, runs, parallel)
        for line in _lines(directory, runs, costs[cell]):
            show(line)
    todo = [costs[cell_of(run)] for run in directory.unfinished()]
    longest_s = max((cost.seconds for cost in todo), default=0.0)
    seconds = max(longest_s, sum(cost.seconds for cost in todo) / parallel)
    disk, free = sum(cost.disk_bytes for cost in todo), _free_bytes(directory.path)
    show(
        f"{len(todo)} of {len(study.runs)} are still to be done, {parallel} at once on {usable_cores():g} cores: about "
        f"{duration(seconds)}; about {decimal(int(disk))} of disk, {decimal(free)} are free"
        + (", which is too little" if disk > free else "")
    )
    memory = parallel * max((cost.memory_bytes for cost in todo), default=0.0)
    if memory:
        show(f"at work it takes up to {decimal(int(memory))} of memory")
    return 2 if any(cost.refused for cost in todo) else 0


def _lines(directory: StudyDirectory, runs: list[StudyRun], cost: Cost) -> Iterator[str]:
    config, (env, variant) = runs[0].config, cell_of(runs[0])
    budget = [f"{config.budget.env_steps:,} env steps"] if config.budget.env_steps else []
    budget += [f"{config.budget.seconds:g} s"] if config.budget.seconds else []
    told = cost.refused or f"about {duration(cost.seconds)} each ({cost.source})"
    yield f"{env}, {variant}: {', '.join(budget)}; {told}"
    for state in State:
        if names := [run.name for run in runs if directory.state(run) is state]:
            yield f"  {state.value}: {', '.join(names)}"


def _cost(directory: StudyDirectory, runs: list[StudyRun], parallel: int) -> Cost:
    finished = [run for run in runs if directory.state(run) is State.FINISHED]
    if (seconds := known_costs(directory, finished).seconds(runs[0])) is not None:
        left = [bytes_in(directory.run_path(run)) for run in finished]
        return Cost(seconds, sum(left) / len(left), source=f"the mean of {len(finished)} finished")
    config = runs[0].config
    forecast = measured(config)
    if isinstance(forecast, str):
        return Cost(refused=forecast)
    seconds = forecast_seconds(config, forecast, usable_cores(), parallel)
    disk = forecast_bytes(config, forecast, seconds)
    return Cost(seconds, disk, memory_needed(config, forecast), "actor and learner measured for a second")


def measured(config: RunConfig) -> Forecast | str:
    """Returns what ``qherd plan`` measures of a run, in a process of its own: an environment's module may do anything.
    A text: that it cannot run, or could not be measured, and why."""
    within_s, stop = max(MEASURE_S, 2 * config.actors.step_timeout_s), Stop()
    # files, since a pipe would have no end while what an environment has forked lives
    with (
        handing_over(write_yaml(dump(config))) as (options, descriptor),
        tempfile.TemporaryFile() as printed,
        tempfile.TemporaryFile() as messages,
        stop.listening(),
    ):
        plan = subprocess.Popen(
            qherd_command(["plan", *options, "--json"]),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=messages,
            pass_fds=[descriptor],
            start_new_session=True,
        )
        try:
            _await(plan, within_s, stop)
        except subprocess.TimeoutExpired:
            return f"not measured within {within_s:g} s: {_last(messages)}".removesuffix(": ")
        finally:
            kill_group(plan)
            plan.wait()
        if plan.returncode:
            return f"cannot run: {_last(messages) or f'qherd plan ended with exit code {plan.returncode}'}"
        values, known = json.loads(_text(printed)), {field.name for field in fields(Forecast)}
    return Forecast(**{name: value for name, value in values.items() if name in known})


def _await(process: subprocess.Popen[bytes], within_s: float, stop: Stop) -> None:
    """Waits until a process has ended.

    Raises:
        TimeoutExpired: it has not within that time.
        KeyboardInterrupt, SystemExit: a signal came; its default would leave the process behind.
    """
    deadline = time.monotonic() + within_s
    while process.poll() is None:
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if stop.signal is not None:
            raise SystemExit(128 + stop.signal)
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, within_s)
        time.sleep(POLL_S)


def _last(messages: IO[bytes]) -> str:
    """Returns the last message of a command: those before it say only how long it waits."""
    return f"\n{_text(messages)}".rpartition("\nqherd: ")[2].strip()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _free_bytes(folder: Path) -> int:
    """Returns the free bytes where ``folder`` is, or would be."""
    return shutil.disk_usage(existing_folder(folder)).free
