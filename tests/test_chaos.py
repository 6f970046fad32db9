"""The short form of ``make chaos``: each kind of fault about once, in a real run."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from chaos import Chaos, check


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_turn_of_faults_in_a_run_that_learns(tmp_path: Path) -> None:
    """Killed, frozen, cut off, spoilt, damaged, resumed: it works again after each, and in the end all holds, with what
    was destroyed counted."""
    with contextlib.closing(Chaos(tmp_path, 7, print)) as run:
        run.inject(13, 300)
        found = run.finish()
    assert check(found) == []
    assert len(run.faults.seconds) >= 13, "each kind, of those that end the driver two"
    assert found["destroyed"].keys() == {"unread", "spoilt", "foreign"}
