"""The documentation names what there is."""

from __future__ import annotations

import re
from pathlib import Path

from deploy.run_dir import SUPERSEDED

ROOT = Path(__file__).resolve().parent.parent


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


def test_the_file_of_superseded_rows_is_where_the_docs_say() -> None:
    assert f"`{SUPERSEDED}`" in (ROOT / "docs" / "survive.md").read_text()
