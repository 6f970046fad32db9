"""The documentation names what there is."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.config.models import RunConfig
from deploy.run_directory.history import SUPERSEDED

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = {10: "Ten", 11: "Eleven", 12: "Twelve"}
COMMIT = re.compile(r"commit\s`([0-9a-f]{7,40})`")


def test_every_promise_has_a_test_of_that_name() -> None:
    """The table of docs/survive.md: each row names a test, and each test that it names is there."""
    text = (ROOT / "docs" / "survive.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text.partition("## Promises and their tests")[2], re.MULTILINE)[2:]
    defined = {
        name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(rows) > 30
    for promise, tests in rows:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, promise
        assert set(named) <= defined, promise


def test_every_function_on_a_transitions_way_is_where_the_docs_say() -> None:
    """The table of docs/data-path.md: each file has the functions that stand after it, in those classes."""
    text = (ROOT / "docs" / "data-path.md").read_text()
    table = text.partition("## The way of a transition")[2].partition("\n## ")[0]
    ways = re.findall(r"`([\w/]+\.py)`((?: `\w+\.\w+`)+)", table)
    assert len(ways) > 8
    for path, names in ways:
        defined = {
            f"{node.name}.{each.name}"
            for node in ast.walk(ast.parse((ROOT / path).read_text()))
            if isinstance(node, ast.ClassDef)
            for each in node.body
            if isinstance(each, ast.FunctionDef)
        }
        assert set(re.findall(r"\w+\.\w+", names)) <= defined, path
    files = {path for path, _ in ways}
    assert f"{NUMBERS[len(files)]} files" in table


def test_every_method_that_the_docs_name_is_there() -> None:
    """As `Class.method`; and every file of the four packages, as `package/path.py`."""
    packages = ("actors", "deploy", "learner", "replay")
    methods = {
        f"{node.name}.{getattr(each, 'name', None) or ast.unparse(getattr(each, 'target', each))}"
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for each in node.body
    }
    named = 0
    for page in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]:
        text = page.read_text()
        found = re.findall(r"`([A-Z]\w+\.\w+)`", text)
        assert set(found) <= methods, page.name
        files = re.findall(rf"`((?:{'|'.join(packages)})/[\w/]+\.py)`", text)
        assert [each for each in files if not (ROOT / each).exists()] == [], page.name
        named += len(found) + len(files)
    assert named > 50


def test_every_option_that_the_docs_name_is_there() -> None:
    """As --section.name; one that is a flag takes no value."""
    named = 0
    for page in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]:
        for path, value in re.findall(r"--([a-z]+(?:\.[a-z0-9-]+)+)(?: ([^\s`]+))?", page.read_text()):
            section, *names = path.replace("-", "_").split(".")
            if section not in RunConfig.model_fields:  # another program's
                continue
            kind: Any = RunConfig.model_fields[section].annotation
            for name in names:
                negated = name.removeprefix("no_")
                assert {name, negated} & kind.model_fields.keys(), f"{page.name}: --{path}"
                kind = kind.model_fields[name if name in kind.model_fields else negated].annotation
            assert not (kind is bool and value in ("true", "false", "True", "False")), f"{page.name}: --{path} {value}"
            named += 1
    assert named > 40


def test_the_file_of_superseded_rows_is_where_the_docs_say() -> None:
    assert f"`{SUPERSEDED}`" in (ROOT / "docs" / "survive.md").read_text()


MEASURED = {
    "README.md": ("How it compares",),
    "docs/performance.md": (),
    "docs/scaling.md": (),
    "docs/doctor.md": ("Weights to many nodes",),
    "docs/survive.md": ("`make chaos`",),
}
"""Where figures stand that somebody measured: these sections, or every one with a table."""


def measured_sections() -> Iterator[tuple[str, str, str]]:
    """File, heading and text."""
    for name, headings in MEASURED.items():
        for section in re.split(r"^#+ ", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]:
            heading, _, text = section.partition("\n")
            if heading in headings or (not headings and "\n|---" in text):
                yield name, heading, text


def test_every_measured_figure_has_the_commit_it_was_measured_at() -> None:
    sections = list(measured_sections())
    assert {name for name, _, _ in sections} == set(MEASURED)
    assert len(sections) > 8
    without = [(name, heading) for name, heading, text in sections if not COMMIT.search(text)]
    assert without == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_commits_of_figures_are_in_the_history() -> None:
    named = {commit for _, _, text in measured_sections() for commit in COMMIT.findall(text)}
    shallow = subprocess.run(
        ["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    if shallow.stdout.strip() == "true":
        pytest.skip("a shallow clone")
    for commit in named:
        subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT, check=True)
