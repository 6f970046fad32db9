"""Requests of ``qherd scale``: the file that has them, and what the run's driver does about them.

The command and the run's driver are two processes that share the run's directory: the command writes a request into
``scale.json``, the driver, which looks once a second, writes its answers over it. Each write replaces the file in one
step; the request's id distinguishes answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from deploy.config.errors import ConfigError, RunDirError
from deploy.sessions.base import Notify
from replay.foreign import Unreadable, read_object

FILE = "scale.json"
MAX_BYTES = 1 << 24
"""A bigger file is no request: one has the epsilon of every lane at the most."""
LOOK_EVERY_S = 1.0
SETTLE_S = 120.0
"""Seconds after which the driver answers though not all actors did: the cluster may have no room for them yet."""


@dataclass(frozen=True)
class Request:
    """What is asked for, and how far it is. ``epsilon``: what each slot's lanes explore with once annealed, as its
    actor reports it."""

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
        """Returns what is in it; None where there is none that can be read."""
        try:
            return TypeAdapter(Request).validate_python(read_object(self._path, MAX_BYTES))
        except (FileNotFoundError, Unreadable, ValidationError):
            return None

    def write(self, request: Request) -> None:
        """Replaces it in one step."""
        temporary = self._path.with_name(f"{FILE}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(asdict(request)))
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes it."""
        self._path.unlink(missing_ok=True)


class ScaleRequestInbox:
    """The driver's side: at most one request at a time, looked for once a second."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = ScaleFile(folder), clock
        self._looked_s = -LOOK_EVERY_S
        with contextlib.suppress(OSError):
            self._file.remove()  # of a command whose run has ended before

    def next_request(self) -> Request | None:
        """Returns a request that was not answered yet, if a second has passed since the last look."""
        if self._clock() - self._looked_s < LOOK_EVERY_S:
            return None
        self._looked_s = self._clock()
        request = self._file.read()
        return request if request is not None and request.state == "asked" else None

    def answer(self, request: Request) -> None:
        """Writes an answer, unless another command has asked meanwhile. A full disk stops no run."""
        present = self._file.read()
        if present is None or present.id == request.id:
            with contextlib.suppress(OSError):
                self._file.write(request)


class ScaleRequests:
    """Does what ``qherd scale`` asks for, one request after the other, and answers when all is as asked.

    Args:
        inbox: where requests come in, one at a time.
        rescale: changes the number of slots, and returns how many there were. Raises ConfigError or RunDirError, and
            changes nothing, where it cannot be.
        ladder: what the lanes of each slot explore with once annealed; None until all actors have answered.
        status: what each actor was last known to do, in one line.
        notify: shows a message.
    """

    def __init__(
        self,
        inbox: ScaleRequestInbox,
        rescale: Callable[[int], int],
        ladder: Callable[[], Mapping[int, tuple[float, ...]] | None],
        status: Callable[[], str],
        notify: Notify,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inbox, self._clock = inbox, clock
        self._rescale, self._ladder, self._status, self._notify = rescale, ladder, status, notify
        self._begun: tuple[Request, float] | None = None

    def tick(self) -> None:
        """Takes up a request, or answers the one that was taken up."""
        if self._begun is not None:
            self._finish(*self._begun)
        elif (request := self._inbox.next_request()) is not None:
            self._begin(request)

    def _begin(self, request: Request) -> None:
        try:
            before = self._rescale(request.actors)
        except (ConfigError, RunDirError) as error:
            self._inbox.answer(replace(request, state="refused", told=str(error)))
            return
        message = f"{request.actors} actor(s) from now on, were {before}"
        self._notify(message)
        begun = replace(request, state="begun", told=message)
        self._begun = begun, self._clock()
        self._inbox.answer(begun)

    def _finish(self, request: Request, since_s: float) -> None:
        ladder = self._ladder()
        if ladder is not None:
            epsilon = {str(slot): floors for slot, floors in ladder.items()}
            self._inbox.answer(replace(request, state="done", epsilon=epsilon))
        elif self._clock() - since_s > SETTLE_S:
            message = f"{request.told}; after {SETTLE_S:.0f} s not all of them have answered: {self._status()}"
            self._inbox.answer(replace(request, state="late", told=message))
        else:
            return
        self._begun = None
