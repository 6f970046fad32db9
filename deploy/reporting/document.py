"""What a report consists of, whatever it is written as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.reporting.charts import Chart


@dataclass(frozen=True)
class Heading:
    """A heading: 1 is the whole report's."""

    text: str
    level: int


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text as it stands: a command, a file."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table. The first column names the row; cells that are numbers stand to the right."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Pictures:
    """Pictures beside each other, where there is room."""

    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Fold:
    """What is shown when asked for."""

    title: str
    blocks: tuple[Block, ...]


Block = Heading | Text | Code | Table | Pictures | Fold
Document = Sequence[Block]
