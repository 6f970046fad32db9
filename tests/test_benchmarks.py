"""The benchmarks run, each in its quick form, with their peers; what did not run has no figure."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, peers, solve
from benchmarks.__main__ import BY_NAME_ONLY, NAMES
from deploy.process.signals import INTERRUPTED

ROOT = Path(__file__).resolve().parent.parent
PARTS_OF_REPLAY = {"replay_log", "replay_clients"}
PEERS = {
    "replay": ("cpprb", "TorchRL 0.14.1 with", "TorchRL 0.14.1 StoreStorage"),
    "sequences": ("an index and a gather for each", "TorchRL 0.14.1 with"),
    "solve": ("Stable-Baselines3",),
}


def test_every_module_that_measures_is_on_the_list() -> None:
    measuring = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef measure(" in path.read_text()}
    assert measuring - PARTS_OF_REPLAY == {*NAMES, *BY_NAME_ONLY}


@pytest.mark.bench
@pytest.mark.timeout(600)  # the first one that needs a peer installs it, TorchRL with another torch
@pytest.mark.parametrize("name", [*NAMES, *BY_NAME_ONLY])
def test_a_benchmark_runs_in_its_quick_form(name: str, tmp_path: Path) -> None:
    """Every figure is there, those of the peers too, and each is marked as no measurement."""
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", name, "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results: list[dict[str, Any]] = json.loads(file.read_text())["results"][name]
    assert results
    for result in results:
        assert result["name"].startswith("NOT A MEASUREMENT (--quick): ")
        assert result["name"] in done.stdout
        assert result["target"] is None
        assert len(result["repetitions"]) > 0
        assert bool(result["other"]["name"]) == bool(result["other"]["repetitions"])
    others = {result["other"]["name"] for result in results}
    for peer in PEERS.get(name, ()):
        assert any(peer in other for other in others), (peer, others)


def peer_that_prints(text: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a script in place of every peer's Python."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(peers, "peer_python", lambda name: script)


def test_a_peer_that_does_not_start_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer_that_prints("", 3, tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match=r"sb3_peer.* ended with 3"):
        solve.sb3(0, 1, 1.0)
    with pytest.raises(RuntimeError, match="cpprb ended with 3"):
        peers.Peer("cpprb")


def test_a_peer_that_made_no_update_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = {"solved": False, "updates": 0, "env_steps": 0, "updates_per_s": 0.0, "mean": None, "std": None}
    peer_that_prints(json.dumps(outcome), 0, tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match="made no update"):
        solve.sb3(0, 1, 1.0)


def test_a_peer_that_prints_no_outcome_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer_that_prints("Segmentation fault", 0, tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match="without an outcome: 'Segmentation fault"):
        solve.sb3(0, 1, 1.0)


def test_a_peer_that_ends_unsolved_before_its_time_has_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that trained for a moment and then ended, however politely, has not shown how long it takes."""
    outcome = {"solved": False, "updates": 9, "env_steps": 99, "updates_per_s": 7.0, "mean": 1.0, "std": 1.0}
    peer_that_prints(json.dumps(outcome), 0, tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match=r"ended unsolved after .* of 900 s"):
        solve.sb3(0, 1, 900.0)


def qherd_that_ends(reason: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a script in place of qherd, which writes the summary of a run that has ended."""
    summary = {"exit_reason": reason, "updates": 9, "env_steps": 99, "wall_s": 1.0, "solved_s": None}
    script = tmp_path / "qherd"
    script.write_text(
        f"#!/bin/sh\nwhile [ $1 != --run ]; do shift; done\nmkdir $4/$2\n"
        f"echo '{json.dumps(summary)}' > $4/$2/summary.json\nexit {code}\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(solve, "QHERD", script)


def test_our_side_that_somebody_interrupts_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qherd_that_ends("interrupted", INTERRUPTED, tmp_path, monkeypatch)
    with pytest.raises(RuntimeError, match=f"ended with {INTERRUPTED}"):
        solve.qherd(0, 60.0)


def test_a_run_that_did_not_solve_counts_with_the_time_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whatever gives up at once would be the quickest to solve."""
    qherd_that_ends("budget of env steps", 0, tmp_path, monkeypatch)
    run = solve.qherd(0, 60.0)
    assert (run.solved, run.seconds) == (False, 60.0)


def test_our_side_that_does_not_start_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "ENV", "NoSuchEnv-v0")
    with pytest.raises(RuntimeError, match="ended with 2"):
        solve.qherd(0, 60.0)


def test_the_rows_of_runs_have_their_command_commit_and_machine(tmp_path: Path) -> None:
    runs = [solve.Run(31.5, True, "", {"seed": seed, "exit_reason": "solved", "updates": 9}) for seed in (0, 1)]
    solve.write_csv(tmp_path / "seeds.csv", ["--preset", "tutorial"], range(5), runs)
    text = (tmp_path / "seeds.csv").read_text()
    assert text.startswith("# qherd train LunarLander-v3 --preset tutorial --seed N, N from [0, 1, 2, 3, 4]\n# ")
    assert f"qherd at commit `{machine.describe()['qherd']}`" in text
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    assert [(row["seed"], row["exit_reason"], row["updates"]) for row in rows] == [
        ("0", "solved", "9"),
        ("1", "solved", "9"),
    ]
