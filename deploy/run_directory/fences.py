"""fences.json: the counts of a run that only ever grow, and what its name is claimed with.

Whatever fences is on disk, synced, before it is used: no two learners share a fence, no two actors of a slot an
incarnation, no two evaluators their seeds, and no confirmation is free, however a driver ends in between.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from actors.verdicts import Spent
from deploy.config.errors import RunDirError
from deploy.config.models import RUN_NAME
from deploy.run_directory.files import CONFIG_BYTES, replace_file
from replay.foreign import Unreadable, read_object


class Counts(BaseModel):
    """What is in the file."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    fence: int = Field(ge=0, lt=1 << 23)
    evaluators: int = Field(0, ge=0, lt=1 << 31)
    incarnations: dict[Annotated[str, StringConstraints(pattern=r"^\d{1,6}$")], Annotated[int, Field(ge=0, lt=1 << 62)]]
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]
    confirmations: int = Field(0, ge=0, lt=1 << 31)
    worst_return: Annotated[float, Field(allow_inf_nan=False)] | None = None
    run: Annotated[str, StringConstraints(pattern=f"^{RUN_NAME}$")] | None = None
    path: Annotated[str, StringConstraints(max_length=4096)] | None = None


class Fences:
    """The counts of one run. Each call reads the file anew and, where it counts, replaces it before it returns. Every
    one raises RunDirError where the file is missing or damaged, or cannot be replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: Mapping[str, Any] = {}

    def create(self, run: str, nonce: str) -> None:
        """Writes the file of a new run."""
        nothing = {"fence": 0, "evaluators": 0, "incarnations": {}}
        identity = {"run": run, "nonce": nonce, "path": str(self._path.parent.resolve())}
        self._write({**nothing, **identity})

    def counts(self) -> dict[str, Any]:
        """Returns what the file has from its next writing on."""
        return {**self._read(), **self._identity}

    def assume_identity(self, identity: Mapping[str, Any]) -> None:
        """Has the file be that of this run from its next writing on: ``run``, ``path`` and ``nonce``."""
        self._identity = identity

    def save_identity(self) -> None:
        """Writes an identity that was assumed, if it is another than the file's."""
        if (counts := self.counts()) != self._read():
            self._write(counts)

    @property
    def nonce(self) -> str:
        """What this directory claims its run's name on the server with."""
        return str(self.counts()["nonce"])

    @property
    def fence(self) -> int:
        """The newest learner's fence; 0 before the first."""
        return int(self.counts()["fence"])

    def next_fence(self) -> int:
        """Returns the next learner's fence."""
        return self._count_up("fence")

    def next_evaluator(self) -> int:
        """Returns how many evaluators the run had before the next one, whose seeds are not to be played again."""
        return self._count_up("evaluators") - 1

    def _count_up(self, name: str) -> int:
        counts = self.counts()
        counts[name] = counts.get(name, 0) + 1
        self._write(counts)
        return int(counts[name])

    @property
    def slots_ever(self) -> int:
        """How many slots the run has had at the most."""
        return max((int(slot) + 1 for slot in self.counts()["incarnations"]), default=0)

    def incarnation(self, slot: int) -> int:
        """Returns the newest incarnation of a slot; 0 before the first."""
        return int(self.counts()["incarnations"].get(str(slot), 0))

    def next_incarnation(self, slot: int, at_least: int = 0) -> int:
        """Returns the next incarnation of a slot, above ``at_least``."""
        counts = self.counts()
        newest = max(counts["incarnations"].get(str(slot), 0), at_least) + 1
        counts["incarnations"][str(slot)] = newest
        self._write(counts)
        return int(newest)

    @property
    def spent(self) -> Spent:
        """What the run's confirmations have used up of its error."""
        counts = self.counts()
        worst = counts.get("worst_return")
        return Spent(counts.get("confirmations", 0), math.inf if worst is None else worst)

    def record_spent(self, spent: Spent) -> None:
        """Writes it down: a resumed run continues to spend."""
        counts = self.counts() | {"confirmations": spent.confirmations}
        counts["worst_return"] = spent.worst if math.isfinite(spent.worst) else None
        self._write(counts)

    def _read(self) -> dict[str, Any]:
        path = self._path
        try:
            return Counts.model_validate(read_object(path, CONFIG_BYTES)).model_dump(mode="json", exclude_unset=True)
        except FileNotFoundError:
            raise RunDirError(f"{path} is missing, and what it counts must never go back: put it back") from None
        except ValidationError as error:
            finding = error.errors()[0]
            what = f"{'.'.join(map(str, finding['loc']))}: {finding['msg']}"
            raise RunDirError(f"{path} is damaged: {what}") from None
        except Unreadable as error:
            raise RunDirError(str(error)) from None

    def _write(self, counts: Mapping[str, Any]) -> None:
        replace_file(self._path, json.dumps(counts).encode())
