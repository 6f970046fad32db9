"""``qherd report``: what runs and studies have shown, as a page, as Markdown, or as raw numbers."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel

from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.process.signals import quiet_interrupt
from deploy.reporting.words import PAGE_OPENING, one_line
from deploy.run_directory.files import is_plain, replace_file

FILE = "report.html"


class Reported(BaseModel):
    """Show what runs and studies have come to: scores with their intervals, curves, what differs, what it cost, and the
    commands that repeat it. The page needs nothing else: no network, no other file.

    Runs of the same options are seeds of one variant; those of others are compared. Of a study every expected run
    that is missing is named.
    """

    given: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN|STUDY...")]
    """Directories of runs (runs/NAME) and of studies (studies/NAME)."""
    out: Path | None = None
    """The page to write. The default is report.html: in the directory given, if it is one, else here."""
    markdown: Path | None = None
    """A folder for the same as Markdown, report.md, with its pictures as PNG; no page is written then."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print everything as JSON, curves and single returns included; no page is written then."""
    as_csv: Annotated[bool, tyro.conf.arg(name="csv")] = False
    """Print a row per run as CSV; no page is written then."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(Reported, args=arguments, prog="qherd report", registry=as_written())
    if call.as_json + call.as_csv + (call.markdown is not None) + (call.out is not None) > 1:
        raise ConfigError("--out, --markdown, --json and --csv are four ways to have the report: give one of them")
    path = call.out or (call.given[0] if len(call.given) == 1 else Path()) / FILE
    if call.out is not None and not path.parent.is_dir():  # before the work is done
        raise ConfigError(f"{path.parent} is no folder: make it, or choose another --out")
    if path.suffix != ".html":
        raise ConfigError(f"--out {path}: the report is a page, whose name ends in .html")
    written = not (call.as_json or call.as_csv or call.markdown)
    if written and os.path.lexists(path) and not is_plain(path):
        raise ConfigError(f"{path} is a link or no plain file: remove it, or give another --out")
    if written and call.out is None and is_plain(path) and not _is_page(path):
        raise ConfigError(f"{path} is there, and qherd report has not written it: move it away, or give another --out")
    with quiet_interrupt():  # not above: --help does not wait for Matplotlib
        from deploy.reporting.analysis import analyse
        from deploy.reporting.content import document_of
        from deploy.reporting.markdown import write_markdown
        from deploy.reporting.page import page
        from deploy.reporting.raw import as_csv, as_json
        from deploy.reporting.sources import read_sources

    runs, missing = read_sources(call.given)
    title = " and ".join(path.absolute().name for path in call.given) if len(call.given) <= 2 else f"{len(runs)} runs"
    report = analyse(title, shlex.join(["qherd", "report", *map(str, call.given)]), runs, missing)
    if call.as_json:
        print(json.dumps(as_json(report)))
    elif call.as_csv:
        print(as_csv(report), end="")
        for each in missing:
            print(one_line(f"qherd: not in the report: {each.name}: {each.why}"), file=sys.stderr)
    elif call.markdown is not None:
        print(write_markdown(call.markdown, document_of(report)))
    else:
        replace_file(path, page(title, document_of(report)).encode())
        print(path)
    return 0


def _is_page(path: Path) -> bool:
    """Returns whether a file is a page that this command has written."""
    with path.open("rb") as file:
        return file.read(len(PAGE_OPENING)) == PAGE_OPENING.encode()
