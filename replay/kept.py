"""The mark of an option that a resumed run has to keep: what it has learned and stored is shaped by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class KeptMark:
    """``inline_only``: only in the mode inline, whose checkpoints have the lanes themselves, too."""

    inline_only: bool = False


Kept = Annotated[T, KeptMark()]
"""An option, or a section as a whole, that shapes weights, rows, their returns or priorities."""
KeptInline = Annotated[T, KeptMark(inline_only=True)]
