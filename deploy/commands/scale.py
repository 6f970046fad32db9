"""``qherd scale``: change the number of a run's actors while it works."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel, Field

from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError, RunFailedError
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.scale_requests import Request, ScaleFile

TAKEN_UP_S = 30.0
"""A driver that has not taken a request up by then does not look."""
ANSWER_S = 150.0
"""Longer than the driver itself waits for the actors."""


class Scale(BaseModel):
    """Have N actors in a run while it works, and wait until they are there. New ones join with the newest weights;
    those that leave send what they have in hand first; every lane moves to its place on the epsilon ladder of N. What
    the run could not hold is refused, and then nothing changes. qherd resume goes on with N.

    Exit code 1 where the actors had not all answered after two minutes: a cluster may have no room for them yet.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    actors: int = Field(ge=1)
    """How many actors the run shall have."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON, with the epsilon of every lane as its actor says it."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(Scale, args=arguments, prog="qherd scale", registry=as_written())
    return scale(call.run, call.actors, as_json=call.as_json)


def scale(path: Path, actors: int, *, as_json: bool) -> int:
    """Requests so many actors of the run in ``path``, and waits until they are there; returns the exit code."""
    directory = RunDirectory.open(path)
    if directory.config.mode == "inline":
        raise ConfigError(
            f"{path} is a run of mode inline: its actors are a part of its one process and stay as they are"
        )
    if directory.lock.owner() is None:
        raise ConfigError(
            f"{path} is not at work: give the number of actors as you go on with it, qherd resume {path} "
            f"--actors.count {actors}"
        )
    answer = _send_and_wait(directory, ScaleFile(directory.path), Request(secrets.token_hex(8), actors))
    if answer.state == "refused":
        raise ConfigError(answer.told)
    if as_json:
        print(json.dumps({"run": directory.run, **asdict(answer)}))
    else:
        print(answer.told)
    return 0 if answer.state == "done" else 1


def _send_and_wait(directory: RunDirectory, file: ScaleFile, request: Request) -> Request:
    """Writes the request, and waits for the last answer. A request that is not taken up is taken back."""
    present = file.read()
    if present is not None and present.state in ("asked", "begun"):
        raise ConfigError(f"{directory.given_path}: another qherd scale, to {present.actors} actors, is not done yet")
    file.write(request)
    asked_s = time.monotonic()
    try:
        while True:
            answer = file.read()
            if answer is None or answer.id != request.id:
                raise ConfigError(f"{directory.given_path}: another qherd scale came between; ask again")
            if answer.state not in ("asked", "begun"):
                return answer
            if directory.lock.owner() is None:
                raise RunFailedError(f"{directory.given_path} has ended meanwhile")
            waited_s = time.monotonic() - asked_s
            if waited_s > (TAKEN_UP_S if answer.state == "asked" else ANSWER_S):
                raise RunFailedError(f"{directory.given_path}: its driver has not answered for {waited_s:.0f} s")
            time.sleep(0.1)
    finally:
        answer = file.read()
        if answer is not None and answer == replace(request, state="asked"):
            file.remove()
