"""A run's JSON files, read as what they should hold: anybody may have written them, or damaged them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.config.errors import RunDirError
from replay.foreign import Unreadable, read_object

MAX_BYTES = 1 << 24
"""No file that is read whole is bigger: an evaluation has two numbers for each of at most 100,000 episodes."""


class Checked(BaseModel):
    """What such a file holds: what is not used of it is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)


Kind = TypeVar("Kind", bound=Checked)


def read_checked(path: Path, kind: type[Kind]) -> Kind | None:
    """Returns what a file of a run holds; None where there is none.

    Raises:
        RunDirError: it is damaged, a link, or no plain file.
    """
    try:
        return kind.model_validate(read_object(path, MAX_BYTES))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        where = ".".join(map(str, finding["loc"]))
        told = f"{f'{where}: ' if where else ''}{finding['msg'].removeprefix('Value error, ')}"
        raise RunDirError(f"{path} is damaged: {told:.300}") from error
    except Unreadable as error:
        raise RunDirError(str(error)) from error
