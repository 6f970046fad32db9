"""``qherd resume`` and ``train --resume`` as a user calls them: what is refused, in which words, and that nothing is
lost by it. The runs are inline ones, which start in a moment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_runs import Finished, qherd, summary
from spoilt_checkpoints import array, rewrite, value, without

from learner.checkpoint import VALUES, names, newest

PRESET = """
mode: inline
actors: {count: 1, lanes: 2, chunk_steps: 8}
replay: {capacity_rows: 600, min_rows: 50, samples_per_insert: 4}
learner: {network: {hidden: [8]}, batch: 16}
eval: {threshold: null}
"""
TRAIN = ("train", "CartPole-v1", "--config", "preset.yaml", "--run", "r", "--budget.env-steps", "400")


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has used its budget up."""
    folder = tmp_path_factory.mktemp("over")
    (folder / "preset.yaml").write_text(PRESET)
    assert qherd(*TRAIN, cwd=folder).code == 0
    return folder


@pytest.fixture
def folder(over: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(over, tmp_path / "copy")
    return tmp_path / "copy"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted((folder / "runs").rglob("*")) if path.is_file()}


def assert_refused(done: Finished, folder: Path, before: dict[str, bytes], *texts: str) -> None:
    """Exit code 2, one message, no traceback, and every file as it was (but the lock, which names its last holder)."""
    assert done.code == 2, done
    assert done.err.startswith("qherd: ")
    assert "Traceback" not in done.out + done.err
    for text in texts:
        assert text in done.err
    after = files(folder)
    assert {name: data for name, data in after.items() if not name.endswith("lock")} == {
        name: data for name, data in before.items() if not name.endswith("lock")
    }


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ((), ("needs the run's directory: qherd resume runs/NAME",)),
        (("runs/none",), ("runs/none is no run",)),
        (("preset.yaml",), ("preset.yaml is no run",)),
        (("runs/r", "--learner.n-step", "5"), ("learner.n_step is 3 in this run, and 5 was asked for", "a new run")),
        (("runs/r", "--env.id", "Acrobot-v1"), ("env.id is CartPole-v1",)),
        (("runs/r", "--mode", "local"), ("mode is inline in this run",)),
        (("runs/r", "--actors.count", "2"), ("actors.count is 1 in this run",)),
        (("runs/r", "--learner.lr", "-1"), ("learner.lr", "greater than 0")),
    ],
)
def test_what_cannot_be_resumed_is_refused_by_name(folder: Path, arguments: tuple[str, ...], texts: tuple[str]) -> None:
    before = files(folder)
    assert_refused(qherd("resume", *arguments, cwd=folder), folder, before, *texts)


def test_help_teaches(tmp_path: Path) -> None:
    done = qherd("resume", "--help", cwd=tmp_path)
    assert done.code == 0
    assert "qherd resume runs/NAME" in done.out
    assert "--budget.env-steps" in done.out
    assert "qherd resume RUN" in qherd("--help", cwd=tmp_path).out


def test_a_run_that_is_over_is_left_alone(folder: Path) -> None:
    before = files(folder)
    done = qherd("resume", "runs/r", cwd=folder)
    assert (done.code, done.err) == (0, "")
    assert done.out == "runs/r is over: budget of env steps; to go on, raise --budget.env-steps\n"
    assert {name for name, data in files(folder).items() if data != before.get(name)} <= {str(folder / "runs/r/lock")}


@pytest.mark.long
def test_with_a_higher_budget_it_goes_on(folder: Path) -> None:
    """And a second time, from the configuration that it had last."""
    kept = names(folder / "runs/r/checkpoints")[0]
    done = qherd("resume", "runs/r", "--budget.env-steps", "3000", cwd=folder)
    assert done.code == 0, done
    assert f"resumed from checkpoint {kept}" in done.out
    first = summary(folder / "runs/r")
    assert first["env_steps"] >= 3000 > kept.env_steps
    assert "is over" in qherd("resume", "runs/r", cwd=folder).out
    assert qherd("resume", "runs/r", "--budget.env-steps", "6000", cwd=folder).code == 0
    assert summary(folder / "runs/r")["env_steps"] >= 6000
    assert [path.name for path in sorted((folder / "runs/r").glob("config*.yaml"))] == [
        "config-2.yaml", "config-3.yaml", "config.yaml",
    ]  # fmt: skip


def test_where_every_checkpoint_is_damaged_nothing_begins_anew(folder: Path) -> None:
    """Each is named; what there is stays for whoever can mend it."""
    checkpoints = folder / "runs/r/checkpoints"
    for name in names(checkpoints):
        (checkpoints / str(name) / VALUES).write_bytes(b"{")
    kept = {name: data for name, data in files(folder).items() if "checkpoints" in name}
    done = qherd("resume", "runs/r", "--budget.env-steps", "3000", cwd=folder)
    assert done.code == 2, done
    assert "none of the run's checkpoints can be used; they are left as they are" in done.err
    assert all(str(name) in done.err for name in names(checkpoints))
    assert {name: data for name, data in files(folder).items() if "checkpoints" in name} == kept


def test_the_same_command_begins_a_run_and_goes_on_with_it(over: Path, tmp_path: Path) -> None:
    """``train --resume``, for launchers that repeat their command; a name is needed."""
    shutil.copy(over / "preset.yaml", tmp_path)
    assert qherd(*TRAIN, "--resume", cwd=tmp_path).code == 0
    done = qherd(*TRAIN[:-1], "3000", "--resume", cwd=tmp_path)
    assert done.code == 0, done
    assert "resumed from checkpoint" in done.out
    assert summary(tmp_path / "runs/r")["env_steps"] >= 3000
    again = qherd(*TRAIN, cwd=tmp_path)
    assert (again.code, "qherd resume runs/r" in again.err) == (2, True)
    nameless = qherd("train", "CartPole-v1", "--resume", cwd=tmp_path)
    assert (nameless.code, "give its name with --run" in nameless.err) == (2, True)
    other = qherd(*TRAIN, "--resume", "--learner.gamma", "0.5", cwd=tmp_path)
    assert (other.code, "learner.gamma is 0.99 in this run, and 0.5 was asked for" in other.err) == (2, True)


@pytest.mark.long
def test_a_run_that_diverged_is_resumed_with_a_smaller_learning_rate(over: Path, tmp_path: Path) -> None:
    """Its checkpoints are from before: what it is resumed from is finite, and what comes then stays so."""
    shutil.copy(over / "preset.yaml", tmp_path)
    options = ("--learner.lr", "1e30", "--learner.max-skipped-updates", "20", "--checkpoint.every-updates", "50")
    done = qherd(*TRAIN, *options, cwd=tmp_path)
    assert done.code == 1, done
    assert "not finite and were skipped" in done.err
    found = newest(tmp_path / "runs/r/checkpoints")
    assert found is not None
    assert found.skipped == ()
    assert all(abs(array).max() < 1e6 for array in found.parts["learner"].arrays.values())
    done = qherd("resume", "runs/r", "--learner.lr", "1e-3", cwd=tmp_path)
    assert done.code == 0, done
    assert summary(tmp_path / "runs/r")["exit_reason"] == "budget of env steps"


@pytest.mark.long
def test_a_replay_too_big_for_checkpoints_is_said_to_be_lost(over: Path, tmp_path: Path) -> None:
    """At the start, and when it is resumed; learning waits until there is something to learn from."""
    shutil.copy(over / "preset.yaml", tmp_path)
    done = qherd(*TRAIN, "--checkpoint.rows-max-bytes", "1000", cwd=tmp_path)
    assert done.code == 0, done
    assert "bigger than checkpoint.rows_max_bytes = 1,000: a resumed run begins with an empty one" in done.out
    assert not list((tmp_path / "runs/r/checkpoints").glob("*/mirror.safetensors"))
    done = qherd("resume", "runs/r", "--budget.env-steps", "3000", cwd=tmp_path)
    assert done.code == 0, done
    assert "the replay is lost: learning waits until 50 rows have come in anew" in done.out
    assert summary(tmp_path / "runs/r")["env_steps"] >= 3000
    assert summary(tmp_path / "runs/r")["rows_lost"] == {}


def test_a_checkpoint_that_no_run_wrote_is_passed_over_for_the_one_before(folder: Path) -> None:
    """Whole by their digests, wrong in any part of an inline run's own: each is named with the value, and the run goes
    on from the newest that is right."""
    checkpoints = folder / "runs/r/checkpoints"
    whole = names(checkpoints)[0]
    changes = {
        "session": (value("session", "screened_at", to="x"), "screened_at is 'x'"),
        "evaluator": (without("evaluator"), "there is no 'evaluator'"),
        "actor-0": (value("actor-0", "counters", to=[-1, 0, 0, 0, 0.0, 0.0]), "counters is -1"),
        "actor-0's lanes": (array("actor-0", "obs", lambda old: old[:1]), "obs is <float32>[1, 4]"),
        "log": (value("log", "last", to=[[0, 1]]), "not enough values"),
        "learner": (value("learner", "updates", to=-3), "updates is -3"),
    }  # fmt: skip
    written = [
        (rewrite(checkpoints, change, whole, whole._replace(updates=whole.updates + newer)), told)
        for newer, (change, told) in enumerate(changes.values(), start=1)
    ]
    done = qherd("resume", "runs/r", "--budget.env-steps", "800", cwd=folder)
    assert done.code == 0, done
    said = " ".join(done.out.split())
    for name, told in written:
        assert f"a newer checkpoint is passed over: checkpoint {name} has a part" in said
        assert told in said
    assert f"resumed from checkpoint {whole}: {whole.updates:,} updates" in said
    assert summary(folder / "runs/r")["env_steps"] >= 800


ENVS = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

gym.register("Mine-v0", CartPoleEnv, max_episode_steps=200)
"""


@pytest.mark.long
def test_a_run_goes_on_wherever_it_lies_and_whatever_it_is_called(over: Path, tmp_path: Path) -> None:
    """Its environment was given by a relative folder; it is renamed, resumed from inside, through a link, evaluated
    from elsewhere."""
    shutil.copy(over / "preset.yaml", tmp_path)
    (tmp_path / "userenvs.py").write_text(ENVS)
    options = ("--config", "preset.yaml", "--run", "r", "--budget.env-steps", "3000", "--eval.every-updates", "100")
    done = qherd("train", "userenvs:Mine-v0", "--env.path", ".", *options, cwd=tmp_path)
    assert done.code == 0, done
    moved = (tmp_path / "runs" / "r").rename(tmp_path / "kept for later")
    done = qherd("resume", ".", "--budget.env-steps", "5000", cwd=moved)
    assert done.code == 0, done
    assert "resumed from checkpoint" in done.out
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "latest").symlink_to(moved)
    done = qherd("resume", "latest", "--budget.env-steps", "7000", cwd=tmp_path / "away")
    assert done.code == 0, done
    assert summary(moved)["env_steps"] >= 7000
    assert summary(moved)["run"] == "r"
    done = qherd("eval", "latest", "--episodes", "2e0", "--json", cwd=tmp_path / "away")
    assert done.code == 0, done
    assert json.loads(done.out)["run"] == "r"
