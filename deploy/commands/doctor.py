"""``qherd doctor``: is all here that a run needs; and of a run at work, what holds it up and what to change."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from deploy.commands.run_options import RunOptions, base_config
from deploy.config.cli_types import as_written
from deploy.config.models import RunConfig
from deploy.diagnosis.bottleneck import Actors, Diagnosis, Window
from deploy.diagnosis.checks.check import Check
from deploy.diagnosis.preflight import preflight
from deploy.diagnosis.run_health import checks_of_run, how_it_ended, measure_run
from deploy.run_directory.directory import RunDirectory

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


class Doctor(RunOptions):
    """Check what a run needs: versions, limits, the environment (spaces, dtype, autoreset mode, step rate), memory,
    ports, disk, cores, GPU, the server and its memory policy, /dev/shm, Ray and each of its nodes. Options are those of
    qherd train; --env.id names the environment. Exit code 1 where there is a problem.

    With RUN, a run's directory: say whether it is well, and name what holds it up (env, actor CPU, Redis, network,
    learner or limiter) from the waits that it measures, and what to change.
    """

    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""
    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


class DoctorOfRun(BaseModel):
    """Say whether a run is well, and name what holds it up (env, actor CPU, Redis, network, learner or limiter) from
    the waits that it measures, and what to change.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    if arguments and not arguments[0].startswith("-"):
        run_call = tyro.cli(DoctorOfRun, args=arguments, prog="qherd doctor")
        return doctor_of_run(run_call.run, as_json=run_call.as_json)
    base = base_config(_with_env_first(arguments))
    call = tyro.cli(
        Doctor, args=arguments, default=Doctor(options=base), prog="qherd doctor [RUN]", registry=as_written()
    )
    return doctor(call.options, as_json=call.as_json)


def _with_env_first(arguments: list[str]) -> list[str]:
    """Returns a copy with the value of --env.id in front, as qherd train has it: the default preset goes by it."""
    given = [value for name, value in pairwise(arguments) if name in ("--env.id", "--env-id")]
    return [*given[-1:], *arguments]


def doctor(config: RunConfig, *, as_json: bool) -> int:
    """Checks what a run with this configuration needs; returns 0 where there is no problem, else 1."""
    return _show(preflight(config), None, as_json, {})


def doctor_of_run(path: Path, *, as_json: bool) -> int:
    """Reports whether a run is well, and what bounds it; returns 0 where it is at work or over in order, else 1."""
    directory = RunDirectory.open(path)
    config, lock_owner = directory.config, directory.lock.owner()
    result: dict[str, Any] = {"run": directory.run, "holder": lock_owner, "at_work": lock_owner is not None}
    if lock_owner is None:
        result["over"] = how_it_ended(path)
    elif not as_json:
        print(f"{path} is at work, in {lock_owner}")
    checks = list(checks_of_run(directory, config, lock_owner))
    found = measure_run(directory, config, lock_owner)
    if found is not None:
        window, diagnosis = found
        result |= {"window": asdict(window), "diagnosis": asdict(diagnosis)}
        if window.actors is not None:
            result["window"]["actors"] = window.actors._asdict()
    return _show(iter(checks), found, as_json, result)


def _show(
    checks: Iterable[Check], found: tuple[Window, Diagnosis] | None, as_json: bool, result: Mapping[str, Any]
) -> int:
    """Prints each check as it comes, or all as JSON; returns the exit code."""
    console, seen = Console(markup=False, highlight=False, soft_wrap=True), list[Check]()
    if not as_json and "over" in result:
        console.print(f"{result['run']} is not at work; it ended: {result['over']}")
    for check in checks:
        seen.append(check)
        if not as_json:
            line = Text(f"{check.state:8}", STYLES[check.state]) + Text(f" {check.name:13}  {check.found}", "default")
            console.print(line)
            if check.remedy:
                console.print(f"{'':24}-> {check.remedy}")
    problems = sum(check.state == "problem" for check in seen)
    if as_json:
        print(json.dumps({**result, "checks": [check._asdict() for check in seen], "problems": problems}))
        return 1 if problems else 0
    if found is not None:
        _print_window(console, *found)
    elif result:
        console.print("there are no figures yet to judge its speed by")
    if not result:
        console.print(f"{problems} problem(s)" if problems else "all is here that a run needs")
    return 1 if problems else 0


def _print_window(console: Console, window: Window, diagnosis: Diagnosis) -> None:
    rates = f"{window.env_steps_per_s:,.0f} env steps/s, {window.updates_per_s:,.0f} updates/s"
    console.print(f"\nthe last {window.seconds:.0f} s: {rates}, {window.actors_alive} actor(s)")
    if window.actors is not None:
        console.print(f"  actors   {_actors_line(window.actors)}")
    rest = 1 - sum(window.learner.values())
    phases = {name: share for name, share in window.learner.items() if share >= 0.005} | (
        {"work": rest} if rest > 0.05 else {}
    )
    shown = ", ".join(f"{name} {share:.0%}" for name, share in phases.items())
    console.print(f"  learner  {shown}  (waiting for a core {window.learner_starved:.0%})")
    if window.round_trip_s is not None:
        busy = "" if window.server_busy is None else f", busy {window.server_busy:.0%} of a core"
        console.print(f"  server   {window.round_trip_s * 1e6:,.0f} us a round trip{busy}")
    console.print(Text(f"\nbottleneck: {diagnosis.bottleneck}", "bold"))
    console.print(f"  {diagnosis.why}")
    for change in diagnosis.change:
        console.print(f"  -> {change}")


def _actors_line(actors: Actors) -> str:
    return (
        f"waiting for credit {actors.waiting:.0%}, env {actors.env:.0%}, own computing {actors.own:.0%}, "
        f"server {actors.log:.0%}, weights {actors.weights:.0%}  "
        f"(on a core {actors.on_core:.0%}, waiting for one {actors.starved:.0%})"
    )
