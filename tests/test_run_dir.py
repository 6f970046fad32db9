"""A run's directory: nothing is overwritten, counts survive, and a damaged policy is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hostile import HOSTILE

from actors.config import EnvConfig
from actors.verdicts import Spent
from deploy import __version__
from deploy.commands.resume import config_of
from deploy.config.errors import RunDirError
from deploy.config.models import RedisConfig, RunConfig, env_of
from deploy.run_directory.directory import RunDirectory
from learner.report import Resumed
from learner.weights import pack

POLICY = pack(1, 2, 3, {"head.linear.weight": np.ones((2, 4), np.float32)})
Check = Callable[[], None]


def config(runs_dir: Path, run: str | None = None, env_id: str = "CartPole-v1", url: str | None = None) -> RunConfig:
    return RunConfig(run=run, runs_dir=runs_dir, seed=5, env=EnvConfig(id=env_id), redis=RedisConfig(url=url))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    with closing(RunDirectory.create(config(tmp_path, "mine"))) as made:
        yield made


@pytest.fixture
def at_each_fsync(monkeypatch: pytest.MonkeyPatch) -> Callable[[Check], None]:
    """Calls the check before each fsync: the file's own name has to hold the old or the new, never a part."""

    def install(check: Check) -> None:
        fsync = os.fsync

        def checked(descriptor: int) -> None:
            check()
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", checked)

    return install


def weights_file(directory: RunDirectory) -> Path:
    (path,) = (directory.path / "checkpoints").glob("*.weights")
    return path


# -- names


def test_default_names_are_unique_and_say_the_env(tmp_path: Path) -> None:
    runs = [RunDirectory.create(config(tmp_path)).run for _ in range(20)]
    assert len(set(runs)) == 20
    assert all(run.startswith("cartpole-v1-") for run in runs)


@pytest.mark.parametrize("env_id", ["module.part:My-v0", "ALE/Pong-v5", "my_module:ns/Env-v1"])
def test_a_default_name_is_one_folder_and_a_valid_run_name(tmp_path: Path, env_id: str) -> None:
    directory = RunDirectory.create(config(tmp_path, env_id=env_id))
    assert directory.path.parent == tmp_path
    RunConfig(run=directory.run)


def test_an_env_with_a_very_long_name_has_a_valid_run_name(tmp_path: Path) -> None:
    directory = RunDirectory.create(config(tmp_path, env_id=f"module:{'Long' * 30}-v0"))
    RunConfig(run=directory.run)  # the server's rules and keys take 64 characters


def test_a_name_that_exists_is_refused_and_left_alone(directory: RunDirectory) -> None:
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    with pytest.raises(RunDirError, match=r"mine exists already.*--run"):
        RunDirectory.create(config(directory.path.parent, "mine"))
    assert {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()} == before


def test_a_file_of_that_name_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("notes")
    with pytest.raises(RunDirError, match="exists"):
        RunDirectory.create(config(tmp_path, "mine"))
    assert (tmp_path / "mine").read_text() == "notes"


def test_the_folder_of_runs_is_made(tmp_path: Path) -> None:
    assert RunDirectory.create(config(tmp_path / "a" / "b", "mine")).path.is_dir()


# -- config.yaml


def test_the_config_has_versions_git_and_seed(directory: RunDirectory) -> None:
    written = yaml.safe_load((directory.path / "config.yaml").read_text())
    assert written["qherd"] == __version__
    assert {"python", "torch", "numpy", "gymnasium", "ray", "redis"} <= set(written["versions"])
    assert "git" in written
    assert written["config"]["seed"] == 5


def test_the_config_reads_back(directory: RunDirectory) -> None:
    again = RunDirectory.open(directory.path)
    assert again.config == config(directory.path.parent, "mine")
    assert (again.run, again.fences.nonce) == (directory.run, directory.fences.nonce)


def test_no_file_has_the_password(tmp_path: Path) -> None:
    directory = RunDirectory.create(config(tmp_path, "mine", url="redis://user:s3cr3t@host/0"))
    assert directory.config.redis.url == "redis://user:***@host/0"
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()] == []


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").touch()  # another program's
    with pytest.raises(RunDirError, match=r"no run: it has no config\.yaml$"):
        RunDirectory.open(tmp_path)


def test_too_long_a_name_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"no run: it has no config\.yaml$"):
        RunDirectory.open(tmp_path / ("a" * 300))


@pytest.mark.parametrize("runs", ["runs", "study/runs", "studies/study/runs"])
def test_a_folder_of_runs_is_told_with_one_that_is_in_it(tmp_path: Path, runs: str) -> None:
    for name in ("b", "a"):
        RunDirectory.create(config(tmp_path / runs, name)).close()
    for given in {tmp_path / runs, tmp_path / runs.split("/", maxsplit=1)[0]}:
        with pytest.raises(RunDirError, match=f"no run: .*; give one of those in it, such as {tmp_path / runs / 'a'}$"):
            RunDirectory.open(given)


@pytest.mark.parametrize("text", ["", "{", "config: 5", "config: {learner: {lrr: 1}}", "other: 1"])
def test_a_damaged_config_is_refused_by_name(directory: RunDirectory, text: str) -> None:
    (directory.path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        _ = RunDirectory.open(directory.path).config


@pytest.mark.parametrize("closed", ["folder", "file"])
def test_what_this_user_may_not_read_is_neither_absent_nor_damaged(
    closed: str, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel refuses it to users; root may read all."""

    def refused(path: object, *_: object, **__: object) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    if closed == "folder":
        monkeypatch.setattr(Path, "lstat", refused)
    else:
        monkeypatch.setattr(os, "open", refused)
    found = "mine" if closed == "folder" else "config.yaml"
    with pytest.raises(RunDirError, match=rf"{found} cannot be read: Permission denied$"):
        print(RunDirectory.open(directory.given_path).written)


def test_each_run_has_a_nonce_of_its_own(tmp_path: Path) -> None:
    assert len({RunDirectory.create(config(tmp_path)).fences.nonce for _ in range(5)}) == 5


# -- counts


def test_the_servers_url_is_replaced_in_one_step_for_the_owner_alone(directory: RunDirectory, tmp_path: Path) -> None:
    """Whoever has an older one open reads that to its end; a link that lies there is replaced, not written through."""
    directory.replay_url.write_text("older")
    directory.replay_url.chmod(0o644)
    with directory.replay_url.open() as older, directory.showing_replay_url("redis://secret"):
        assert older.read() == "older"
        assert directory.replay_url.read_text() == "redis://secret"
        assert stat.S_IMODE(directory.replay_url.stat().st_mode) == 0o600
    assert not directory.replay_url.exists()
    elsewhere = tmp_path / "elsewhere"
    directory.replay_url.symlink_to(elsewhere)
    with directory.showing_replay_url("redis://secret"):
        assert not directory.replay_url.is_symlink()
    assert not elsewhere.exists()


def test_nothing_temporary_stays(directory: RunDirectory) -> None:
    directory.fences.next_fence()
    directory.best.save(POLICY, {"version": 1})
    directory.write_summary({})
    assert list(directory.path.rglob("*.tmp")) == []


# -- where it lies


def test_a_run_that_was_renamed_or_moved_is_the_run_itself(directory: RunDirectory, tmp_path: Path) -> None:
    """Its keys, and what it claims its name with, are those that it began with; also through a link."""
    nonce = directory.fences.nonce
    directory.close()
    (tmp_path / "archive").mkdir()
    moved = directory.path.rename(tmp_path / "archive" / "My best one!")
    (tmp_path / "latest").symlink_to(moved)
    for path in (moved, tmp_path / "latest"):
        with closing(RunDirectory.reopen(path)) as again:
            assert (again.run, again.fences.nonce) == ("mine", nonce)


def test_a_run_is_reached_from_inside_itself(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.close()
    monkeypatch.chdir(directory.path)
    again = config_of(Path())
    assert (again.run, again.runs_dir) == ("mine", directory.path.parent)
    with closing(RunDirectory.reopen(Path())) as reopened:
        assert reopened.run == "mine"


@pytest.mark.parametrize(
    ("mode", "name", "run"),
    [("local", "copy", "mine"), ("cluster", "copy", "copy"), ("cluster", "a copy of it", "cartpole-v1-")],
)
def test_a_copy_beside_its_original_is_a_run_of_its_own(tmp_path: Path, mode: str, name: str, run: str) -> None:
    """It claims and counts fences for itself, on a shared server under a name of its own; the original does not
    notice."""
    directory = RunDirectory.create(config(tmp_path, "mine").model_copy(update={"mode": mode}))
    directory.fences.next_fence()
    shutil.copytree(directory.path, directory.path.with_name(name))
    with closing(RunDirectory.reopen(directory.path.with_name(name))) as copy:
        assert copy.run.startswith(run)
        RunConfig(run=copy.run)
        assert copy.fences.nonce != directory.fences.nonce
        assert [
            copy.fences.next_fence(),
            copy.fences.next_fence(),
            directory.fences.next_fence(),
        ] == [2, 3, 2]
    with closing(RunDirectory.reopen(directory.path.with_name(name))) as again:
        assert (again.run, again.fences.nonce) == (copy.run, copy.fences.nonce), "once it is one it stays one"
    assert directory.run == "mine"
    directory.close()


def test_which_run_goes_on_is_written_once_it_goes_on(directory: RunDirectory) -> None:
    """A resume that is refused changes nothing; one that goes on has on disk what it claims a name with."""
    shutil.copytree(directory.path, directory.path.with_name("copy"))
    fences = directory.path.with_name("copy") / "fences.json"
    before = fences.read_bytes()
    with closing(RunDirectory.reopen(fences.parent)) as copy:
        claimed = copy.fences.nonce
        assert fences.read_bytes() == before
        copy.record_config(copy.config)
        written = json.loads(fences.read_text())
    assert (written["nonce"], written["path"]) == (claimed, str(fences.parent))
    assert claimed != directory.fences.nonce
    directory.close()


def test_a_copy_whose_original_is_gone_is_the_run(directory: RunDirectory) -> None:
    """As a run is that was moved to another disk, or brought back from an archive."""
    nonce = directory.fences.nonce
    directory.close()
    shutil.copytree(directory.path, directory.path.with_name("back"))
    shutil.rmtree(directory.path)
    with closing(RunDirectory.reopen(directory.path.with_name("back"))) as back:
        assert (back.run, back.fences.nonce) == ("mine", nonce)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.__name__)
def test_so_is_one_whose_original_is_none(directory: RunDirectory, hostile: Callable[[Path], None]) -> None:
    """The original's fences.json is somebody else's file by then: it is neither waited for nor read without an end."""
    nonce = directory.fences.nonce
    directory.close()
    shutil.copytree(directory.path, directory.path.with_name("copy"))
    hostile(directory.path / "fences.json")
    with closing(RunDirectory.reopen(directory.path.with_name("copy"))) as copy:
        assert (copy.run, copy.fences.nonce) == ("mine", nonce)


def test_a_run_of_an_older_qherd_is_named_as_its_folder_was(directory: RunDirectory) -> None:
    directory.close()
    counts = json.loads((directory.path / "fences.json").read_text())
    for name in ("run", "path"):
        del counts[name]
    (directory.path / "fences.json").write_text(json.dumps(counts))
    renamed = directory.path.rename(directory.path.with_name("other"))
    with closing(RunDirectory.reopen(renamed)) as again:
        assert again.run == "mine", "config.yaml has it"


def test_a_name_that_would_lead_elsewhere_is_refused(directory: RunDirectory) -> None:
    """Keys and the folder of checkpoints are called by it."""
    directory.close()
    counts = json.loads((directory.path / "fences.json").read_text())
    (directory.path / "fences.json").write_text(json.dumps({**counts, "run": "../other"}))
    with pytest.raises(RunDirError, match=r"fences\.json is damaged: run"):
        RunDirectory.reopen(directory.path)


def test_folders_are_written_down_so_that_they_are_found_from_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {"env": {"path": "envs"}, "checkpoint": {"dir": "c"}, "replay": {"memmap_dir": "m"}, "run": "r"}
    given = RunConfig.model_validate(folders)
    with closing(RunDirectory.create(given)) as made:
        assert made.record_config(given) == []
        assert made.config_file.name == "config.yaml", "nothing is another"
        read = made.config
    assert read.env.path == tmp_path / "envs"
    assert (read.checkpoint.dir, read.replay.memmap_dir) == (tmp_path / "c", tmp_path / "m")


# -- figures


def test_figures_are_appended_as_json_lines_and_tensorboard_events(directory: RunDirectory) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = [{"env_steps": 10, "loss": 0.5}, {"env_steps": 20, "loss": 0.25, "greedy_return": -1.5}]
    for row in rows:
        directory.history.append(row)
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows, "readable while the run goes on"
    directory.close()
    events = EventAccumulator(str(directory.path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("qherd/loss")] == [(10, 0.5), (20, 0.25)]
    assert [(event.step, event.value) for event in events.Scalars("qherd/greedy_return")] == [(20, -1.5)]


def test_figures_that_are_no_numbers_are_still_json(directory: RunDirectory) -> None:
    directory.history.append({"env_steps": 1, "loss": float("nan"), "q_mean": float("inf")})
    directory.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON: jq and others refuse the line")

    json.loads((directory.path / "metrics.jsonl").read_text(), parse_constant=refuse)


# -- the best policy


def test_the_best_policy_reads_back(directory: RunDirectory) -> None:
    directory.best.save(POLICY, {"version": 1, "mean": 9.5})
    arrays, manifest = directory.best.load()
    assert list(arrays) == ["head.linear.weight"]
    assert (arrays["head.linear.weight"] == 1).all()
    assert manifest["mean"] == 9.5


@pytest.mark.parametrize("place", [0, 20, len(POLICY) // 2, len(POLICY) - 1])
def test_a_flipped_bit_is_refused(directory: RunDirectory, place: int) -> None:
    directory.best.save(POLICY, {"version": 1})
    path = weights_file(directory)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunDirError, match=r"\.weights.*sha256.*damaged"):
        directory.best.load()


def test_cut_off_weights_are_refused(directory: RunDirectory) -> None:
    directory.best.save(POLICY, {"version": 1})
    weights_file(directory).write_bytes(POLICY[:-1])
    with pytest.raises(RunDirError, match="damaged"):
        directory.best.load()


def test_a_damaged_manifest_is_refused(directory: RunDirectory) -> None:
    directory.best.save(POLICY, {"version": 1})
    (directory.path / "checkpoints" / "best.json").write_text("{")
    with pytest.raises(RunDirError, match=r"best\.json"):
        directory.best.load()


def test_a_run_without_a_policy_says_so(directory: RunDirectory) -> None:
    with pytest.raises(RunDirError, match="no best policy"):
        directory.best.load()


@pytest.mark.parametrize("version", [2, 1], ids=["of another version", "of the same version"])
def test_a_policy_that_replaces_another_is_whole_at_every_moment(
    directory: RunDirectory, at_each_fsync: Callable[[Check], None], version: int
) -> None:
    """A crash between weights and manifest must leave a policy that can be used, or the run has lost its best one.

    The averaged policy that is judged changes with each update, its version only with each publication.
    """
    directory.best.save(POLICY, {"version": 1, "mean": 1.0})
    newer = pack(2, 3, 4, {"head.linear.weight": np.zeros((2, 4), np.float32)})

    def usable() -> None:
        RunDirectory.open(directory.path).best.load()

    at_each_fsync(usable)
    directory.best.save(newer, {"version": version, "mean": 2.0})
    assert directory.best.load()[1]["mean"] == 2.0


# -- the env's folder


def test_the_envs_folder_is_absolute_for_workers_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    relative = RunConfig(env=EnvConfig(path=Path("envs")))
    assert env_of(relative).path == tmp_path / "envs"
    assert env_of(RunConfig()).path is None


# -- going on with a run


def test_a_run_has_one_driver_at_a_time(directory: RunDirectory) -> None:
    """The lock goes with the process that holds it, however that ends; reading needs none."""
    with pytest.raises(RunDirError, match=rf"mine is at work already, in process {os.getpid()} on \S+: stop it first"):
        RunDirectory.reopen(directory.path)
    assert RunDirectory.open(directory.path).config.seed == 5
    directory.close()
    RunDirectory.reopen(directory.path).close()


def test_nobody_else_can_hold_the_lock(directory: RunDirectory) -> None:
    """Whoever may open it may hold it, and the run could not be resumed; one of an older qherd is closed, too."""
    lock = directory.path / "lock"
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    directory.close()
    lock.chmod(0o644)
    RunDirectory.reopen(directory.path).close()
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_a_lock_that_names_nobody_is_one_all_the_same(directory: RunDirectory) -> None:
    (directory.path / "lock").write_text("")
    with pytest.raises(RunDirError, match="in another process"):
        RunDirectory.reopen(directory.path)


ROWS = [{"updates": updates, "env_steps": 10 * updates, "loss": 0.5**updates} for updates in (1, 2, 3, 4)]


def test_the_curves_go_on_from_the_checkpoint(directory: RunDirectory) -> None:
    """Rows behind it are kept elsewhere, also the one a driver was killed in; TensorBoard shows one curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for row in ROWS:
        directory.history.append(row)
    directory.close()
    with (directory.path / "metrics.jsonl").open("a") as file:
        file.write('{"updates": 5, "env_st')
    resumed = RunDirectory.reopen(directory.path)
    assert resumed.history.newest() == ROWS[3]
    resumed.history.rewind(Resumed(2, 20, {}))
    assert resumed.history.newest() == ROWS[1]
    again = {"updates": 3, "env_steps": 30, "loss": 7.0}
    resumed.history.append(again)
    resumed.close()
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*ROWS[:2], again]
    superseded = (directory.path / "metrics.superseded.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in superseded[:2]] == ROWS[2:]
    assert superseded[2] == '{"updates": 5, "env_st'
    events = EventAccumulator(str(directory.path / "tb"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("qherd/loss")]
    assert losses == [(10, 0.5), (20, 0.25), (30, 7.0)]


def test_a_rewind_while_files_are_open(directory: RunDirectory) -> None:
    """A learner that was restarted within the run: the same."""
    for row in ROWS:
        directory.history.append(row)
    directory.history.rewind(Resumed(3, 30, {}))
    directory.history.append({"updates": 4, "env_steps": 41})
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["env_steps"] for line in lines] == [10, 20, 30, 41]


def test_a_rewind_behind_the_newest_row_moves_nothing(directory: RunDirectory) -> None:
    directory.history.append(ROWS[0])
    directory.history.rewind(Resumed(5, 50, {}))
    assert directory.history.newest() == ROWS[0]
    assert not (directory.path / "metrics.superseded.jsonl").exists()


def test_the_newest_configuration_counts_and_the_first_stays(directory: RunDirectory) -> None:
    before = (directory.path / "config.yaml").read_bytes()
    directory.record_config(directory.config)
    assert directory.config_file.name == "config.yaml", "nothing is another"
    for fence, seconds in ((9, 5.0), (10, 7.0)):
        while directory.fences.fence < fence - 1:
            directory.fences.next_fence()
        budget = directory.config.budget.model_copy(update={"seconds": seconds})
        directory.record_config(directory.config.model_copy(update={"budget": budget}))
    assert directory.config_file.name == "config-10.yaml"
    assert directory.config.budget.seconds == 7
    assert (directory.path / "config.yaml").read_bytes() == before


def test_what_confirmations_have_spent_is_kept(tmp_path: Path) -> None:
    """A run that is opened again goes on spending its error, and its other counts stay; nonsense there is refused."""
    with closing(RunDirectory.create(config(tmp_path))) as directory:
        assert directory.fences.spent == Spent()
        fence = directory.fences.next_fence()
        directory.fences.record_spent(Spent(3, -120.5))
        path = directory.path
    with closing(RunDirectory.reopen(path)) as again:
        assert again.fences.spent == Spent(3, -120.5)
        assert again.fences.next_fence() == fence + 1
        again.fences.record_spent(Spent(4))
        assert again.fences.spent == Spent(4)
    counts = json.loads((path / "fences.json").read_text())
    for wrong in ({"confirmations": -1}, {"confirmations": 1 << 40}, {"worst_return": "low"}):
        (path / "fences.json").write_text(json.dumps(counts | wrong))
        with pytest.raises(RunDirError, match=f"is damaged: {next(iter(wrong))}"):
            assert RunDirectory.open(path).fences.spent
