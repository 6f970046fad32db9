"""The short form of ``make chaos``: each kind of fault about once, in a real run."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from chaos import Chaos, check


@pytest.mark.timeout(300)
def test_ten_faults_in_a_run_that_learns(tmp_path: Path) -> None:
    """Killed, frozen, cut off, damaged, resumed: it works again after each, and in the end all holds."""
    with contextlib.closing(Chaos(tmp_path, 7, print)) as run:
        run.inject(10, 240)
        found = run.finish()
    assert check(found) == []
    assert run.faults.count >= 10
    assert len(run.faults.seconds) == 10, "each kind once"
