"""A report as Markdown, with its pictures as PNG beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from deploy.config.errors import RunDirError
from deploy.reporting.charts import png
from deploy.reporting.document import Block, Code, Document, Fold, Heading, Pictures, Table, Text
from deploy.reporting.page import is_number
from deploy.reporting.words import harmless
from deploy.run_directory.files import is_plain, naming, open_plain

FILE = "report.md"
CALL = re.compile(rb"\n(`{3,})text\nqherd report (?:(?!\n\1\n)[\s\S])*\n\1\n\Z")
"""How each file ends that qherd report has written: with how it was called."""
CALL_BYTES = 4 << 20
"""Twice what the system takes for a command."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$!])")


def write_markdown(folder: Path, document: Document) -> Path:
    """Writes report.md and its pictures into ``folder``, which is made; returns the file.

    Raises:
        RunDirError: the disk refuses it, or there is a report.md of somebody else's.
    """
    path = folder / FILE
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if is_plain(path) and not CALL.search(_end_of(path)):
        raise RunDirError(f"{path} is there, and qherd report has not written it: move it away")
    names = (f"report-{number}.png" for number in range(1, 1_000_000))
    text = "\n\n".join(part for block in document for part in _markdown(block, folder, names)) + "\n"
    with naming(path), open_plain(path, "wb") as file:
        file.write(text.encode())
    return path


def _end_of(path: Path) -> bytes:
    with naming(path), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - CALL_BYTES))
        return file.read(CALL_BYTES)


def _markdown(block: Block, folder: Path, names: Iterator[str]) -> Iterator[str]:
    """Yields the parts of a block. Writes its pictures, under the next ``names``."""
    match block:
        case Heading(text, level):
            yield f"{'#' * level} {_escaped(text)}"
        case Text(text):
            yield _escaped(text)
        case Code(text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            yield f"{fence}text\n{harmless(text).rstrip()}\n{fence}"
        case Table():
            yield from _table(block)
        case Pictures(charts):
            for chart in charts:
                path = folder / next(names)
                with naming(path), open_plain(path, "wb") as file:
                    file.write(png(chart))
                yield f"**{_escaped(chart.title)}**"
                yield f"![{_escaped(chart.description)}]({path.name})"
        case Fold(title, blocks):
            yield f"**{_escaped(title)}**"
            for each in blocks:
                yield from _markdown(each, folder, names)


def _table(table: Table) -> Iterator[str]:
    yield f"{_escaped(table.caption)}:"
    right = [all(is_number(row[column]) for row in table.rows) for column in range(len(table.header))]
    rule = ["---", *("--:" if number else "---" for number in right[1:])]
    rows = [list(map(_escaped, table.header)), rule, *(list(map(_escaped, row)) for row in table.rows)]
    yield "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escaped(text: str) -> str:
    """Returns any text as one line of Markdown in which nothing is markup."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return _SPECIAL.sub(r"\\\1", line)
