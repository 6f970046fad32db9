"""A run's directory: what is written once, what grows, and the counts that survive everything.

runs/<run>/config.yaml (config-N.yaml: as the N-th learner was resumed, where that differs)
           metrics.jsonl (metrics.superseded.jsonl: rows behind the checkpoint that was resumed from)  tb/
           checkpoints/best*   checkpoints/<fence>-<updates>-<env steps>/  summary.json  fences.json  quarantine/
           scale.json (the newest qherd scale and its answer)  ray.log (what Ray itself writes)
           logs/ (what each process did, see replay/logs.py)
           lock (held while a driver has the run)  replay.url (while the run's own server is there)
           scrape.json (where /metrics is, until the run ends in order)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any

import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from safetensors import SafetensorError

from actors.config import EnvConfig
from actors.verdicts import Spent
from deploy import __version__
from deploy.config.models import RUN_NAME, RunConfig, dump
from deploy.config.numbers import read_yaml, write_yaml
from deploy.monitoring.discovery import registration
from deploy.process import arithmetic
from deploy.run_directory.events import open_events, write_restart, write_scalars
from deploy.run_directory.run_name import new_nonce, recognised, unique_name
from learner.report import Resumed
from learner.weights import unpack
from replay.errors import QherdError
from replay.foreign import Unreadable, parse_json, read_file, read_object
from replay.storage import available_memory

SUPERSEDED = "metrics.superseded.jsonl"
WRITTEN = ("*.json", "*.jsonl", "*.yaml", "lock", "replay.url", "failure.txt", "checkpoints/*.json", "logs/*")
"""What a run writes in place, or puts in the place of."""
CONFIG_BYTES = 1 << 20
"""No file of options or counts is bigger."""
MEMORY_BYTES = 1 << 32
"""What is read at the most where the system does not say how much memory is free."""
NAMED: Mapping[str, Any] = {"file": str, "sha256": str}
"""What best.json has of the policy's own file."""
BEST: Mapping[str, Any] = {
    **NAMED,
    "solved": bool,
    "version": int,
    "updates": int,
    "episodes": int,
    **dict.fromkeys(("mean", "std", "lower", "rank_bound"), int | float),
}
"""What best.json has at the least, and of which kinds."""
HELD: Mapping[str, Any] = {"holdout_mean": int | float, "holdout_std": int | float, "holdout_episodes": int}
"""What best.json has of the policy's hold-out, where one was played."""
_CONFIG = re.compile(r"config-(\d+)\.yaml$")


class RunDirError(QherdError, ValueError):
    """A run directory that is there already, is not there, or is damaged; the text says which and what to do."""


class RunDirectory:
    """The directory of one run. ``create`` makes a new one, ``open`` an existing one."""

    def __init__(self, path: Path, made_parent: bool = False) -> None:
        self._made_parent = made_parent
        self.shown = path  # as the user named it
        self.path = path.absolute()  # the working directory changes while Ray starts
        self._metrics: IO[str] | None = None
        self._events: Any = None
        self._lock_fd: int | None = None
        self._identity: Mapping[str, Any] = {}  # what fences.json has from its next writing on

    @classmethod
    def create(cls, config: RunConfig) -> RunDirectory:
        """A new directory with config.yaml in it. Raises RunDirError where the name exists."""
        name = config.run or unique_name(config.env.id)
        path = config.runs_dir / name
        if path.exists():
            raise RunDirError(
                f"{path} exists already, and a run is never overwritten: go on with it (qherd resume {path}), choose "
                "another --run, or leave it out for a unique one"
            )
        made, made_parent = False, not config.runs_dir.exists()
        try:
            path.mkdir(parents=True)
            made = True
            return cls(path, made_parent)._furnish(config, name)._locked()
        except (OSError, RunDirError) as error:
            if made:  # by this call, and still without any data
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, RunDirError):
                raise
            raise RunDirError(
                f"{path} cannot be made: {error.strerror}; make room or choose another --runs-dir"
            ) from error

    def _furnish(self, config: RunConfig, name: str) -> RunDirectory:
        self.checkpoints.mkdir()
        self._write_config("config.yaml", config)
        nothing = {"fence": 0, "evaluators": 0, "incarnations": {}}
        identity = {"run": name, "nonce": new_nonce(), "path": str(self.path.resolve())}
        self._write("fences.json", json.dumps({**nothing, **identity}).encode())
        return self

    def _write_config(self, name: str, config: RunConfig) -> None:
        header = {"qherd": __version__, "git": _git_revision(), **_provenance(config)}
        self._write(name, write_yaml({**header, "config": dump(_anywhere(config))}).encode())

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing directory. Raises RunDirError where it is none."""
        if not _plain(path / "config.yaml"):
            raise RunDirError(f"{path} is no run: it has no config.yaml")
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """An existing directory, to go on with its run, or, in a copy of it, with a run of its own. Writes nothing but
        the lock: whether the run goes on is not yet decided. Raises RunDirError where it is none, or a driver has it.
        """
        directory = cls.open(path)._locked()
        try:
            directory._identity = recognised(directory._counts(), directory.path, directory.run, directory.config)
        except RunDirError:
            directory.close()
            raise
        return directory

    @property
    def run(self) -> str:
        """The run's name in keys and metrics: that which it began with, whatever its folder is called since."""
        counted = None
        with contextlib.suppress(RunDirError):  # playing a policy needs no fences.json
            counted = self._counts().get("run")
        return str(counted or self.config.run or self.path.resolve().name)

    def _locked(self) -> RunDirectory:
        """Lock the directory for as long as this process lives: two drivers would both count fences."""
        self._check_written()
        with self._disk(self.path / "lock"):
            self._lock_fd = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        with contextlib.suppress(OSError):  # somebody else's, in a folder that is shared
            os.fchmod(self._lock_fd, 0o600)  # who may open it may hold it, and the run could not be resumed
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._lock_fd, 100).decode(errors="replace").strip()
            os.close(self._lock_fd)
            raise RunDirError(
                f"{self.shown} is at work already, in {holder or 'another process'}: stop it first"
            ) from None
        os.truncate(self._lock_fd, 0)
        os.write(self._lock_fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        return self

    def _check_written(self) -> None:
        """Raises RunDirError where what a run writes would go elsewhere: through a link, or into a pipe."""
        for pattern in WRITTEN:
            for path in self.path.glob(pattern):
                if not _plain(path):
                    raise RunDirError(f"{path} is a link or no plain file, and a run's own files are: remove it")

    def holder(self) -> str | None:
        """Who has the run: ``process 12 on a-host``; None where nobody does. Asks the kernel, which drops the lock with
        the process, and keeps nothing."""
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return os.read(fd, 100).decode(errors="replace").strip() or "another process"
        finally:
            os.close(fd)
        return None

    @property
    def config_file(self) -> Path:
        """The newest configuration."""
        resumed = [
            (int(m[1]), path)
            for path in self.path.glob("config-*.yaml")
            if (m := _CONFIG.match(path.name)) and _plain(path)
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
        except (OSError, yaml.YAMLError, ValueError) as error:
            raise RunDirError(f"{file} is damaged: {error}") from error
        if not isinstance(found, dict):
            raise RunDirError(f"{file} is damaged: it holds no options")
        return found

    def note_config(self, config: RunConfig) -> list[str]:
        """Keep which run goes on here, and the configuration that it is resumed with, beside the earlier ones, where it
        is another, or where other versions or kernels compute; these are returned, a text each."""
        if (counts := self._counts()) != self._written_counts():
            self._write("fences.json", json.dumps(counts).encode())  # before a server is asked for the name
        recorded, own = self.written, _provenance(config)
        changed = [
            text
            for part in own
            if isinstance(was := recorded.get(part), dict)
            for text in arithmetic.changes(was, own[part])
        ]
        if changed or dump(_anywhere(config)) != dump(self.config):
            self._write_config(f"config-{self.fence + 1}.yaml", config)
        return changed

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints and the best policy are."""
        return self.path / "checkpoints"

    @property
    def nonce(self) -> str:
        """What this directory claims its run's name on the server with."""
        return str(self._counts()["nonce"])

    @property
    def ray_log(self) -> Path:
        """Where what Ray itself has to say goes: the terminal is the run's."""
        return self.path / "ray.log"

    @property
    def logs(self) -> Path:
        """Where the run's processes log."""
        return self.path / "logs"

    @property
    def quarantine(self) -> Path:
        """Where refused chunks go."""
        return self.path / "quarantine"

    @property
    def replay_url(self) -> Path:
        """The file with a URL to read the run's replay memory with, while the run's own server is there."""
        return self.path / "replay.url"

    @contextlib.contextmanager
    def showing_replay_url(self, url: str) -> Iterator[None]:
        """Keep ``url``, which has a password, in the file ``replay_url`` for the owner alone while the block runs."""
        with self._disk(self.replay_url):
            fd = os.open(self.replay_url, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "w") as file:
                os.fchmod(fd, 0o600)  # one that a run left behind may have been given other rights
                file.write(url)
        try:
            yield
        finally:
            self.replay_url.unlink(missing_ok=True)

    @property
    def scrape(self) -> Path:
        """The file that tells ``qherd discovery`` where the run's /metrics is, until the run ends in order."""
        return self.path / "scrape.json"

    def show_metrics_address(self, host: str, port: int) -> None:
        """Write it: from now on Prometheus may find the run."""
        self._write("scrape.json", registration(self.run, host, port).encode())

    def hide_metrics_address(self) -> None:
        """Take it away. A disk that refuses changes nothing."""
        with contextlib.suppress(OSError):
            self.scrape.unlink(missing_ok=True)

    @property
    def fence(self) -> int:
        """The newest learner's fence; 0 before the first."""
        return int(self._counts()["fence"])

    def next_fence(self) -> int:
        """The next learner's fence: on disk before it is used, so that no two learners ever share one."""
        return self._count_up("fence")

    @property
    def slots_ever(self) -> int:
        """How many slots the run has had at the most."""
        return max((int(slot) + 1 for slot in self._counts()["incarnations"]), default=0)

    def next_evaluator(self) -> int:
        """How many evaluators the run had before the next one, whose seeds are not to be played again."""
        return self._count_up("evaluators") - 1

    @property
    def spent(self) -> Spent:
        """What the run's confirmations have used up of its error."""
        counts = self._counts()
        worst = counts.get("worst_return")
        return Spent(counts.get("confirmations", 0), math.inf if worst is None else worst)

    def note_spent(self, spent: Spent) -> None:
        """Write it down: a resumed run goes on spending."""
        counts = self._counts() | {"confirmations": spent.confirmations}
        counts["worst_return"] = spent.worst if math.isfinite(spent.worst) else None
        self._write("fences.json", json.dumps(counts).encode())

    def _count_up(self, name: str) -> int:
        counts = self._counts()
        counts[name] = counts.get(name, 0) + 1
        self._write("fences.json", json.dumps(counts).encode())
        return int(counts[name])

    def incarnation(self, slot: int) -> int:
        """The newest incarnation of a slot; 0 before the first."""
        return int(self._counts()["incarnations"].get(str(slot), 0))

    def next_incarnation(self, slot: int, at_least: int = 0) -> int:
        """The next incarnation of a slot, above ``at_least``; on disk before it is used."""
        counts = self._counts()
        known = counts["incarnations"].get(str(slot), 0)
        counts["incarnations"][str(slot)] = max(known, at_least) + 1
        self._write("fences.json", json.dumps(counts).encode())
        return int(counts["incarnations"][str(slot)])

    def open_files(self) -> None:
        """Open metrics.jsonl and the TensorBoard events (whose import takes a while: do it while Ray starts)."""
        with self._disk(self.path / "metrics.jsonl"):
            self._metrics = (self.path / "metrics.jsonl").open("a")
            self._events = open_events(self.path / "tb")

    def log(self, figures: Mapping[str, float]) -> None:
        """Append one row to metrics.jsonl and to the TensorBoard events, at the step ``env_steps``."""
        metrics, events = self._opened()
        with self._disk(self.path / "metrics.jsonl"):
            metrics.write(json.dumps({key: _rounded(value) for key, value in figures.items()}) + "\n")
            metrics.flush()
            write_scalars(events, figures)

    def _opened(self) -> tuple[IO[str], Any]:
        if self._metrics is None:
            self.open_files()
        assert self._metrics is not None
        return self._metrics, self._events

    def figures(self) -> dict[str, float]:
        """The newest row of metrics.jsonl; empty before the first."""
        for line in reversed(self._rows()[0]):
            if (row := _row(line)) is not None:
                return row
        return {}

    def rewind(self, resumed: Resumed) -> None:
        """Have the curves go on from a checkpoint: rows behind it move to metrics.superseded.jsonl, and TensorBoard is
        told to pass over its events behind it."""
        whole, torn = self._rows()
        kept, passed = list[str](), list[str]()
        for line in whole:
            row = _row(line)
            (kept if row is not None and _upto(row, resumed) else passed).append(line)
        if passed or torn:
            with self._disk(self.path / SUPERSEDED), (self.path / SUPERSEDED).open("a") as file:
                file.writelines([*passed, *torn])
            self._write("metrics.jsonl", "".join(kept).encode())
        if self._metrics is not None:
            self.close_files()
            self.open_files()
        with self._disk(self.path / "tb"):
            write_restart(self._opened()[1], resumed.env_steps)

    def rows(self) -> list[Mapping[str, float]]:
        """The whole rows of metrics.jsonl; what was no number is left out of them."""
        return [row for line in self._rows()[0] if (row := _row(line)) is not None]

    def _rows(self) -> tuple[list[str], list[str]]:
        """The whole rows of metrics.jsonl, and the one that a driver was killed in, if any."""
        try:
            read = read_file(self.path / "metrics.jsonl", available_memory() or MEMORY_BYTES)
        except FileNotFoundError:
            return [], []
        except Unreadable as error:
            raise RunDirError(f"{error}; move it away to go on without it") from error
        lines = read.decode(errors="replace").splitlines(keepends=True)
        torn = [lines.pop() + "\n"] if lines and not lines[-1].endswith("\n") else []
        return lines, torn

    def save_best(self, policy: bytes, about: Mapping[str, Any]) -> None:
        """Keep a packed policy as the best one: weights under their own name, then the manifest that names them."""
        digest = hashlib.sha256(policy).hexdigest()
        name = f"best-{digest[:16]}.weights"
        self._write(f"checkpoints/{name}", policy)
        manifest = {**about, "file": name, "sha256": digest}
        self._write("checkpoints/best.json", json.dumps(manifest, indent=2).encode())
        for older in self.checkpoints.glob("best-*.weights"):
            if older.name != name:
                older.unlink()

    def note_holdout(self, shown: Mapping[str, Any]) -> None:
        """Write what the best policy's hold-out has shown (``HELD``) beside it; the next best policy has none yet."""
        if (manifest := self.best()) is not None:
            self._write("checkpoints/best.json", json.dumps({**manifest, **shown}, indent=2).encode())

    def best(self) -> dict[str, Any] | None:
        """The best policy's manifest; None where no evaluation was finished. Raises RunDirError where it is damaged."""
        return self._manifest(BEST)

    def _manifest(self, needed: Mapping[str, Any]) -> dict[str, Any] | None:
        path = self.checkpoints / "best.json"
        try:
            manifest = read_object(path, CONFIG_BYTES)
        except FileNotFoundError:
            return None
        except Unreadable as error:
            raise RunDirError(str(error)) from error
        for name, kinds in {**needed, **{name: HELD[name] for name in HELD if name in manifest}}.items():
            if not isinstance(manifest.get(name), kinds):
                raise RunDirError(f"{path} is damaged: {name} is {manifest.get(name)!r:.80}")
        if Path(manifest["file"]).name != manifest["file"]:
            raise RunDirError(f"{path} is damaged: it names {manifest['file']!r:.80}, which is elsewhere")
        return manifest

    def best_policy(self) -> bytes | None:
        """The best policy, packed; None where none was saved, or it is damaged."""
        try:
            return self._read_policy(str((self.best() or {})["file"]))
        except (KeyError, RunDirError):
            return None

    def load_best(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """The best policy's arrays and its manifest. Raises RunDirError where there is none or it is damaged."""
        manifest = self._manifest(NAMED)
        if manifest is None:
            raise RunDirError(f"{self.path} has no best policy yet: no evaluation was finished")
        path = self.checkpoints / manifest["file"]
        policy = self._read_policy(manifest["file"])
        if hashlib.sha256(policy).hexdigest() != manifest["sha256"]:
            raise RunDirError(f"{path} does not match the sha256 in best.json: it is damaged")
        try:
            return unpack(policy)[1], manifest
        except (ValueError, LookupError, SafetensorError) as error:
            raise RunDirError(f"{path} is damaged: {error}") from error

    def _read_policy(self, file: str) -> bytes:
        path = self.checkpoints / file
        try:
            return read_file(path, available_memory() or MEMORY_BYTES)
        except FileNotFoundError as error:
            raise RunDirError(f"{path}, which best.json names, is missing") from error
        except Unreadable as error:
            raise RunDirError(str(error)) from error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        self._write("summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    def discard(self) -> None:
        """Remove the directory of a run that never started."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
        if self._made_parent:
            with contextlib.suppress(OSError):  # other runs may be there by now
                self.path.parent.rmdir()

    def close(self) -> None:
        """Close what is open and let go of the run."""
        self.close_files()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def close_files(self) -> None:
        """Close the metrics and the events."""
        if self._metrics is not None:
            for file in (self._metrics, self._events):
                with contextlib.suppress(OSError):  # what is left in its buffer after a write that was refused
                    file.close()
            self._metrics = None

    def _counts(self) -> dict[str, Any]:
        return {**self._written_counts(), **self._identity}

    def _written_counts(self) -> dict[str, Any]:
        path = self.path / "fences.json"
        try:
            return _Counts.model_validate(read_object(path, CONFIG_BYTES)).model_dump(mode="json", exclude_unset=True)
        except FileNotFoundError:
            raise RunDirError(f"{path} is missing, and what it counts must never go back: put it back") from None
        except ValidationError as error:
            finding = error.errors()[0]
            what = f"{'.'.join(map(str, finding['loc']))}: {finding['msg']}"
            raise RunDirError(f"{path} is damaged: {what}") from None
        except Unreadable as error:
            raise RunDirError(str(error)) from None

    def _write(self, name: str, data: bytes) -> None:
        """Replace a file in one step: temporary file, fsync, rename."""
        path = self.path / name
        temporary = path.with_name(path.name + ".tmp")
        with self._disk(path):
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)

    @contextlib.contextmanager
    def _disk(self, path: Path) -> Iterator[None]:
        """Name the file where the disk refuses: a failed write's own error does not."""
        try:
            yield
        except OSError as error:
            raise RunDirError(f"{path} cannot be written: {error.strerror}") from error


def _anywhere(config: RunConfig) -> RunConfig:
    """The configuration as it is to be read in another working directory: with folders made absolute."""
    places = {"env": ("path",), "checkpoint": ("dir",), "replay": ("memmap_dir",)}
    changed = {}
    for part, names in places.items():
        options = getattr(config, part)
        given = {name: path.absolute() for name in names if (path := getattr(options, name)) is not None}
        changed[part] = options.model_copy(update=given)
    return config.model_copy(update=changed)


class _Counts(BaseModel):
    """What is in fences.json: numbers that only ever grow, and what the run's name is claimed with."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    fence: int = Field(ge=0, lt=1 << 23)
    evaluators: int = Field(0, ge=0, lt=1 << 31)
    incarnations: dict[Annotated[str, StringConstraints(pattern=r"^\d{1,6}$")], Annotated[int, Field(ge=0, lt=1 << 62)]]
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]
    confirmations: int = Field(0, ge=0, lt=1 << 31)
    worst_return: Annotated[float, Field(allow_inf_nan=False)] | None = None
    run: Annotated[str, StringConstraints(pattern=f"^{RUN_NAME}$")] | None = None
    path: Annotated[str, StringConstraints(max_length=4096)] | None = None


def _plain(path: Path) -> bool:
    """Whether ``path`` is a plain file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _row(line: str) -> dict[str, float] | None:
    """A row of metrics.jsonl, without what was no number; None where it is none."""
    try:
        row = {name: value for name, value in parse_json(line).items() if value is not None}
        whole = all(math.isfinite(value) for value in row.values())  # raises for what is no number or too big for one
        return row if whole else None
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None


def env_of(config: RunConfig) -> EnvConfig:
    """The run's environment, with its folder made absolute: workers have another working directory."""
    path = config.env.path
    return config.env if path is None else config.env.model_copy(update={"path": path.resolve()})


def _upto(row: Mapping[str, Any], resumed: Resumed) -> bool:
    """Whether a row of metrics.jsonl is not behind the checkpoint."""
    updates, env_steps = row.get("updates", 0), row.get("env_steps", 0)
    return bool(updates <= resumed.updates and env_steps <= resumed.env_steps)


def _rounded(value: float) -> float | None:
    """Six digits; None for what is no number, which JSON cannot say."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _git_revision() -> str | None:
    """The revision of qherd's own checkout, if it runs from one."""
    folder = Path(__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None


def _provenance(config: RunConfig) -> dict[str, dict[str, Any]]:
    """What a run's result depends on, beside its options and qherd itself."""
    return {"versions": _versions(), "arithmetic": arithmetic.describe(config.mode)}


def _versions() -> dict[str, str]:
    """The versions of what a run's result depends on."""
    import platform
    from importlib.metadata import version

    names = ("torch", "numpy", "gymnasium", "ray", "redis")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
