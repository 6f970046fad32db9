"""A run's directory: what is written once, what grows, and the counts that survive everything.

runs/<run>/config.yaml (config-N.yaml: as the N-th learner was resumed, where that differs)
           metrics.jsonl (metrics.superseded.jsonl: rows after the checkpoint that was resumed from)  tb/
           checkpoints/best*   checkpoints/<fence>-<updates>-<env steps>/  summary.json  fences.json  quarantine/
           policy.json (what the policy is given, and what its actions are: learner/policy.py)
           scale.json (the newest qherd scale and its answer)  ray.log (what Ray itself writes)
           logs/ (what each process did, see replay/logs.py)
           lock (held while a driver has the run)  replay.url (while the run's own server is there)
           scrape.json (where /metrics is, until the run ends in order)
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy import __version__
from deploy.config.errors import RunDirError
from deploy.config.models import RunConfig, dump
from deploy.config.numbers import problem_of, read_yaml, write_yaml
from deploy.process import arithmetic
from deploy.run_directory.best_policy import BestPolicy
from deploy.run_directory.fences import Fences
from deploy.run_directory.files import CONFIG_BYTES, check_plain, is_plain, replace_file
from deploy.run_directory.history import MetricHistory
from deploy.run_directory.lock import RunLock
from deploy.run_directory.provenance import git_revision, machine, provenance
from deploy.run_directory.registration import registration
from deploy.run_directory.run_name import identity_for, new_nonce, unique_name
from replay.foreign import Unreadable, read_file, read_object

_CONFIG = re.compile(r"config-(\d+)\.yaml$")


class RunDirectory:
    """The directory of one run. ``create`` makes a new one, ``open`` an existing one, ``reopen`` one to continue."""

    def __init__(self, path: Path, made_parent: bool = False) -> None:
        self._made_parent = made_parent
        self.given_path = path  # as the user named it
        self.path = path.absolute()  # the working directory changes while Ray starts
        self.checkpoints = self.path / "checkpoints"  # and the best policy
        self.logs = self.path / "logs"  # of the run's processes
        self.ray_log = self.path / "ray.log"  # what Ray itself writes: the terminal is the run's
        self.quarantine = self.path / "quarantine"  # refused chunks
        self.replay_url = self.path / "replay.url"  # of the run's own server, to read its replay memory with
        self.lock = RunLock(self.path, path)
        self.fences = Fences(self.path / "fences.json")
        self.history = MetricHistory(self.path)
        self.best = BestPolicy(self.checkpoints)

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """Makes a new directory with config.yaml in it, and locks it.

        Raises:
            RunDirError: the name exists, or the disk refuses it; nothing is left then.
        """
        name = config.run or unique_name(config.env.id)
        path = config.runs_dir / name
        try:
            str(path.absolute()).encode()
        except UnicodeEncodeError:
            raise RunDirError(
                f"{path} is no text in UTF-8, as a run's folder has to be: choose another --runs-dir"
            ) from None
        if path.exists():
            raise RunDirError(
                f"{path} exists already, and a run is never overwritten: go on with it (qherd resume {path}), choose "
                "another --run, or leave it out for a unique one"
            )
        made, made_parent = False, not config.runs_dir.exists()
        try:
            path.mkdir(parents=True)
            made = True
            directory = cls(path, made_parent)
            directory.checkpoints.mkdir()
            directory._write_config("config.yaml", config)
            directory.fences.create(name, new_nonce())
            directory._acquire_lock()
        except (OSError, RunDirError) as error:
            if made:  # by this call, and still without any data
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, RunDirError):
                raise
            raise RunDirError(
                f"{path} cannot be made: {error.strerror}; make room or choose another --runs-dir"
            ) from error
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Opens an existing directory, to read in it.

        Raises:
            RunDirError: it is none, or closed to this user.
        """
        try:
            (path / "config.yaml").lstat()
        except PermissionError as error:
            raise RunDirError(f"{path} cannot be read: {error.strerror}") from None
        except (OSError, ValueError):  # there is none, or can be none
            pass
        if not is_plain(path / "config.yaml"):
            raise RunDirError(f"{path} is no run: it has no config.yaml{_in_it(path)}")
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """Opens and locks an existing directory, to continue its run, or, in a copy of it, a run of its own.
        Writes nothing but the lock: whether the run continues is not yet decided.

        Raises:
            RunDirError: it is none, is damaged, or another driver has it.
        """
        directory = cls.open(path)
        directory._acquire_lock()
        try:
            counts = directory.fences.counts()
            directory.fences.assume_identity(identity_for(counts, directory.path, directory.run, directory.config))
        except RunDirError:
            directory.close()
            raise
        return directory

    def _acquire_lock(self) -> None:
        check_plain(self.path)
        self.lock.acquire()

    @property
    def run(self) -> str:
        """The run's name in keys and metrics: that which it began with, whatever its folder is called since."""
        counted = None
        with contextlib.suppress(RunDirError):  # playing a policy needs no fences.json
            counted = self.fences.counts().get("run")
        return str(counted or self.config.run or self.path.resolve().name)

    @property
    def config_file(self) -> Path:
        """The newest configuration."""
        resumed = [
            (int(m[1]), path)
            for path in self.path.glob("config-*.yaml")
            if (m := _CONFIG.match(path.name)) and is_plain(path)
        ]
        return max(resumed)[1] if resumed else self.path / "config.yaml"

    @property
    def config(self) -> RunConfig:
        """The run's resolved configuration (without the Redis password)."""
        try:
            return RunConfig.model_validate(self.written["config"])
        except (ValueError, KeyError) as error:
            if isinstance(error, RunDirError):
                raise
            raise RunDirError(f"{self.config_file} is damaged: {error}") from error

    @property
    def written(self) -> dict[str, Any]:
        """All of the newest configuration's file: the options, and with which versions they were used. Raises
        RunDirError where it is damaged."""
        file = self.config_file
        try:
            found = read_yaml(read_file(file, CONFIG_BYTES).decode())
        except yaml.YAMLError as error:
            raise RunDirError(f"{file} is damaged: {problem_of(error)}") from error
        except Unreadable as error:
            raise RunDirError(str(error)) from error
        except (OSError, ValueError) as error:
            raise RunDirError(f"{file} is damaged: {error}") from error
        if not isinstance(found, dict):
            raise RunDirError(f"{file} is damaged: it holds no options")
        return found

    def record_config(self, config: RunConfig) -> list[str]:
        """Keeps which run continues here, and the configuration that it is resumed with, beside the earlier ones, where
        it is another, or where other versions or kernels compute; these are returned, a text each.

        Raises:
            RunDirError: the disk refuses it.
        """
        self.fences.save_identity()  # before a server is asked for the name
        recorded, own = self.written, provenance(config)
        changed = [
            text
            for part in own
            if isinstance(was := recorded.get(part), dict)
            for text in arithmetic.changes(was, own[part])
        ]
        if changed or dump(anywhere(config)) != dump(self.config):
            self._write_config(f"config-{self.fences.fence + 1}.yaml", config)
        return changed

    def _write_config(self, name: str, config: RunConfig) -> None:
        header = {"qherd": __version__, "git": git_revision(), **provenance(config), "machine": machine(config)}
        replace_file(self.path / name, write_yaml({**header, "config": dump(anywhere(config))}).encode())

    @contextlib.contextmanager
    def showing_replay_url(self, url: str) -> Iterator[None]:
        """Keeps ``url``, which has a password, in the file ``replay_url`` for the owner alone while the block runs."""
        replace_file(self.replay_url, url.encode(), 0o600)  # in one step: nobody reads half of it
        try:
            yield
        finally:
            self.replay_url.unlink(missing_ok=True)

    def register_metrics(self, host: str, port: int) -> None:
        """Writes scrape.json, by which Prometheus finds the run's /metrics from now on.

        Raises:
            RunDirError: the disk refuses it.
        """
        replace_file(self.path / "scrape.json", registration(self.run, host, port).encode())

    def unregister_metrics(self) -> None:
        """Removes scrape.json. A disk that refuses changes nothing."""
        with contextlib.suppress(OSError):
            (self.path / "scrape.json").unlink(missing_ok=True)

    def summary(self) -> Mapping[str, Any]:
        """Returns summary.json; empty where there is none that can be read."""
        with contextlib.suppress(OSError, Unreadable):
            return read_object(self.path / "summary.json", CONFIG_BYTES)
        return {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json.

        Raises:
            RunDirError: the disk refuses it.
        """
        replace_file(self.path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    def discard(self) -> None:
        """Removes the directory of a run that never started."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
        if self._made_parent:
            with contextlib.suppress(OSError):  # other runs may be there by now
                self.path.parent.rmdir()

    def close(self) -> None:
        """Closes what is open and releases the lock."""
        self.history.close()
        self.lock.release()


def _in_it(path: Path) -> str:
    """Returns a hint at a run within a folder that is none itself, such as runs or a study; "" where it holds none."""
    with contextlib.suppress(OSError, ValueError):  # too long a name, or none
        for level in ("*", "runs/*", "*/runs/*"):
            found = sorted(each.parent for each in path.glob(f"{level}/fences.json"))
            if runs := [each for each in found if is_plain(each / "config.yaml")]:
                return f"; give one of those in it, such as {runs[0]}"
    return ""


def checkpoint_folder(config: RunConfig, directory: RunDirectory) -> Path:
    """Returns where this run's checkpoints are; runs that share a ``checkpoint.dir`` have a folder each in it, since
    each run removes its older ones."""
    shared = config.checkpoint.dir
    return directory.checkpoints if shared is None else shared.absolute() / directory.run


def anywhere(config: RunConfig) -> RunConfig:
    """Returns the configuration as it is to be read in another working directory: with folders made absolute."""
    folders = {"env": ("path",), "checkpoint": ("dir",), "replay": ("memmap_dir",)}
    changed = {}
    for part, names in folders.items():
        options = getattr(config, part)
        given = {name: path.absolute() for name in names if (path := getattr(options, name)) is not None}
        changed[part] = options.model_copy(update=given)
    return config.model_copy(update=changed)
