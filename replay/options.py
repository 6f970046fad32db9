"""What all sections of options have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

MAX_WHOLE = 2**63
"""Whole numbers are below it: what counts and stores them takes no more, and 1e999999999 would fill the memory."""


class Options(BaseModel):
    """A section of options: never changed once read, and with no name that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any, about: ValidationInfo) -> Any:
        kinds = list(_kinds(cls.model_fields[str(about.field_name)].annotation))
        is_number = int in kinds or float in kinds
        given = value if isinstance(value, list | tuple) else [value]
        if is_number and bool not in kinds and any(isinstance(each, bool) for each in given):
            raise ValueError("a number is wanted")  # pydantic takes true for 1
        return value

    @field_validator("*")
    @classmethod
    def _is_below_bound(cls, value: Any) -> Any:
        if type(value) is int and abs(value) >= MAX_WHOLE:
            raise ValueError("it is too big: whole numbers are below 2^63")
        return value

    @field_validator("*")
    @classmethod
    def _is_possible_name(cls, value: Any) -> Any:
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, str | Path) and not can_be_name(each):
                raise ValueError("it has a character that no name and no path can have")
        return value


def can_be_name(text: str | Path) -> bool:
    """Returns whether the operating system takes a text as a path: it takes no NUL, which Python does."""
    try:
        return b"\0" not in str(text).encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a character of UTF-16
        return False


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yields a field's type and those that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)
