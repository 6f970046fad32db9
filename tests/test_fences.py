"""fences.json: its counts are on disk before they are used, never go back, and outlive the process that counted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.verdicts import Spent
from deploy.config.errors import RunDirError
from deploy.run_directory.fences import Fences


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Fences(tmp_path / "fences.json").create("mine", "a1b2")
    return tmp_path / "fences.json"


COUNTERS: dict[str, Callable[[Fences], int]] = {
    "learner": Fences.next_fence,
    "evaluator": Fences.next_evaluator,
    "actor": lambda fences: fences.next_incarnation(3),
}


@pytest.mark.parametrize("counter", COUNTERS.values(), ids=COUNTERS)
def test_counts_only_rise_also_across_processes(path: Path, counter: Callable[[Fences], int]) -> None:
    seen = [counter(Fences(path)) for _ in range(3)]
    assert seen == [seen[0], seen[0] + 1, seen[0] + 2]


def test_each_slot_counts_for_itself(path: Path) -> None:
    fences = Fences(path)
    assert [fences.next_incarnation(slot) for slot in (0, 0, 1)] == [1, 2, 1]
    assert [fences.incarnation(slot) for slot in (0, 1, 2)] == [2, 1, 0]
    assert fences.slots_ever == 2


def test_an_incarnation_is_above_what_the_server_has_seen(path: Path) -> None:
    fences = Fences(path)
    assert fences.next_incarnation(0, at_least=7) == 8
    assert fences.next_incarnation(0, at_least=3) == 9
    assert fences.next_incarnation(1) == 1


@pytest.mark.parametrize("counter", COUNTERS.values(), ids=COUNTERS)
def test_a_count_is_synced_to_disk_before_it_is_used(
    path: Path, counter: Callable[[Fences], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the sync fails, so does the call, and the number is not used: the next one gives it out."""
    before, fsync = path.read_bytes(), os.fsync

    def fail(descriptor: int) -> None:
        assert path.read_bytes() == before, "the name has the old until the new is synced"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunDirError, match=r"fences\.json cannot be written: No space left on device"):
        counter(Fences(path))
    assert path.read_bytes() == before
    monkeypatch.setattr(os, "fsync", fsync)
    first = counter(Fences(path))
    assert counter(Fences(path)) == first + 1
    assert list(path.parent.iterdir()) == [path]


def test_a_run_of_an_older_qherd_can_be_resumed(path: Path) -> None:
    """Its file counts no evaluators and no confirmations."""
    counts = json.loads(path.read_text())
    del counts["evaluators"]
    path.write_text(json.dumps(counts))
    fences = Fences(path)
    assert (fences.next_evaluator(), fences.spent) == (0, Spent())


def test_what_confirmations_have_spent_stays_beside_the_other_counts(path: Path) -> None:
    fences = Fences(path)
    fence = fences.next_fence()
    fences.record_spent(Spent(3, -120.5))
    assert Fences(path).spent == Spent(3, -120.5)
    assert Fences(path).next_fence() == fence + 1
    fences.record_spent(Spent(4))
    assert Fences(path).spent == Spent(4)


def test_another_identity_is_written_once_it_counts_or_is_saved(path: Path) -> None:
    """A resume that is refused changes nothing."""
    fences, before = Fences(path), path.read_bytes()
    fences.assume_identity({"run": "copy", "nonce": "c3d4", "path": "/elsewhere"})
    assert (fences.nonce, path.read_bytes()) == ("c3d4", before)
    fences.save_identity()
    assert Fences(path).counts().items() >= {"run": "copy", "nonce": "c3d4", "fence": 0}.items()
    saved = path.stat().st_mtime_ns
    fences.save_identity()
    assert path.stat().st_mtime_ns == saved, "nothing is another"


WRONG: dict[str, dict[str, Any]] = {
    "fence": {"fence": -1},
    "evaluators": {"evaluators": 1 << 40},
    "incarnations": {"incarnations": {"0": -1}},
    "nonce": {"nonce": "*"},
    "confirmations": {"confirmations": 1 << 40},
    "worst_return": {"worst_return": "low"},
    "run": {"run": "../other"},
}


@pytest.mark.parametrize(("name", "wrong"), WRONG.items(), ids=WRONG)
def test_nonsense_is_refused_by_name_and_left_alone(path: Path, name: str, wrong: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    before = path.read_bytes()
    with pytest.raises(RunDirError, match=rf"fences\.json is damaged: {name}"):
        Fences(path).next_fence()
    assert path.read_bytes() == before


def test_a_missing_file_is_not_counted_anew(path: Path) -> None:
    path.unlink()
    with pytest.raises(RunDirError, match="what it counts must never go back: put it back"):
        Fences(path).next_fence()
    assert not path.exists()
