"""``qherd scale``: change the number of a run's actors while it works.

The command and the run's driver are two processes that share the run's directory: the command writes a request into
``scale.json``, the driver, which looks once a second, writes its answers over it. Each write replaces the file in one
step; the request's id tells whose answer it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from deploy.config.models import ConfigError
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.base import RunFailedError
from replay.foreign import Unreadable, read_object

FILE = "scale.json"
MOST_BYTES = 1 << 24
"""A bigger file is no request: one has the epsilon of every lane at the most."""
LOOK_EVERY_S = 1.0
TAKEN_UP_S = 30.0
"""A driver that has not taken a request up by then does not look."""
ANSWER_S = 150.0
"""Longer than the driver itself waits for the actors."""
SETTLE_S = 120.0
"""Seconds after which the driver answers though not all actors did: the cluster may have no room for them yet."""


@dataclass(frozen=True)
class Request:
    """What is asked for, and how far it is. ``epsilon``: what each slot's lanes explore with once annealed, as its
    actor says itself."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str
    actors: int
    state: Literal["asked", "begun", "done", "late", "refused"] = "asked"
    told: str = ""
    epsilon: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class ScaleFile:
    """The file, from either side."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def read(self) -> Request | None:
        """What is in it; None where there is none that can be read."""
        try:
            return TypeAdapter(Request).validate_python(read_object(self._path, MOST_BYTES))
        except (FileNotFoundError, Unreadable, ValidationError):
            return None

    def write(self, request: Request) -> None:
        """Replace it in one step."""
        temporary = self._path.with_name(f"{FILE}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(asdict(request)))
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take it away."""
        self._path.unlink(missing_ok=True)


class ScaleDesk:
    """The driver's side: at most one request at a time, looked for once a second."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = ScaleFile(folder), clock
        self._looked_s = -LOOK_EVERY_S
        with contextlib.suppress(OSError):
            self._file.remove()  # of a command whose run has ended before

    def asked(self) -> Request | None:
        """A request that was not answered yet, if a second is over since the last look."""
        if self._clock() - self._looked_s < LOOK_EVERY_S:
            return None
        self._looked_s = self._clock()
        request = self._file.read()
        return request if request is not None and request.state == "asked" else None

    def answer(self, request: Request) -> None:
        """Write an answer, unless another command has asked meanwhile. A full disk stops no run."""
        present = self._file.read()
        if present is None or present.id == request.id:
            with contextlib.suppress(OSError):
                self._file.write(request)


def scale(path: Path, actors: int, *, as_json: bool) -> int:
    """Ask the run in ``path`` for so many actors, and wait until they are there; the exit code."""
    directory = RunDirectory.open(path)
    if directory.config.mode == "inline":
        raise ConfigError(
            f"{path} is a run of mode inline: its actors are a part of its one process and stay as they are"
        )
    if directory.holder() is None:
        raise ConfigError(
            f"{path} is not at work: give the number of actors as you go on with it, qherd resume {path} "
            f"--actors.count {actors}"
        )
    answer = _ask(directory, ScaleFile(directory.path), Request(secrets.token_hex(8), actors))
    if answer.state == "refused":
        raise ConfigError(answer.told)
    if as_json:
        print(json.dumps({"run": directory.run, **asdict(answer)}))
    else:
        print(answer.told)
    return 0 if answer.state == "done" else 1


def _ask(directory: RunDirectory, file: ScaleFile, request: Request) -> Request:
    """Hand the request in, and wait for the last answer. What is not taken up is taken back."""
    present = file.read()
    if present is not None and present.state in ("asked", "begun"):
        raise ConfigError(f"{directory.shown}: another qherd scale, to {present.actors} actors, is not done yet")
    file.write(request)
    asked_s = time.monotonic()
    try:
        while True:
            answer = file.read()
            if answer is None or answer.id != request.id:
                raise ConfigError(f"{directory.shown}: another qherd scale came between; ask again")
            if answer.state not in ("asked", "begun"):
                return answer
            if directory.holder() is None:
                raise RunFailedError(f"{directory.shown} has ended meanwhile")
            waited_s = time.monotonic() - asked_s
            if waited_s > (TAKEN_UP_S if answer.state == "asked" else ANSWER_S):
                raise RunFailedError(f"{directory.shown}: its driver has not answered for {waited_s:.0f} s")
            time.sleep(0.1)
    finally:
        answer = file.read()
        if answer is not None and answer == replace(request, state="asked"):
            file.remove()
