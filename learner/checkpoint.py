"""Checkpoints: what a run is resumed from. Whatever ends the process at whatever moment, the newest whole one loads.

A checkpoint is a folder ``{fence}-{updates}-{env steps}`` with plain files::

    state.json         every part's values
    {part}.safetensors its arrays
    manifest.json      size and sha256 of the others, written last

It is written and synced as ``.writing-{name}`` and then renamed, so that a folder under its own name is whole; sizes
and digests find what a disk has done to it later. Names order by fence first: what a learner writes that was replaced
meanwhile is older than all that its successor writes (and the successor's first checkpoint comes before its first
update). See docs/survive.md.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from learner.config import CheckpointConfig
from learner.metrics import CheckpointMetrics
from replay.errors import QherdError
from replay.foreign import Unreadable, parse_json, read_file, read_object
from replay.ledger import Unbalanced
from replay.state import State
from replay.storage import CannotFit, available_memory

LOG = logging.getLogger("qherd.learner")
FORMAT = 3
"""Raised where older code could not read what newer code writes, or newer code would take it for something else: from 3
on, a picture's features are in the order height, width, channel."""
VALUES, MANIFEST, ARRAYS = "state.json", "manifest.json", ".safetensors"
POLICY = "policy"
"""The part that is the averaged policy, its arrays by the network's parameter names: to play it, not to resume from."""
MANIFEST_BYTES = 1 << 20
"""No manifest is bigger: it has a line per part."""
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)")
_WRITING = ".writing-"

Files = Mapping[str, bytes]
Built = TypeVar("Built")


class CheckpointError(QherdError, ValueError):
    """A checkpoint that cannot be used; the text says which and why."""


class Name(NamedTuple):
    """Orders the checkpoints of a run."""

    fence: int
    updates: int
    env_steps: int

    def __str__(self) -> str:
        return f"{self.fence:06d}-{self.updates:012d}-{self.env_steps:012d}"


class Found(NamedTuple):
    """A checkpoint as it was loaded, and why each newer one was passed over."""

    name: Name
    parts: dict[str, State]
    skipped: tuple[str, ...]


def pack(parts: Mapping[str, State]) -> dict[str, bytes]:
    """Returns the files of a checkpoint but its manifest. Copies what goes on changing; touches no disk."""
    files = {VALUES: json.dumps({"format": FORMAT, "parts": {part: parts[part].values for part in parts}}).encode()}
    for part, state in parts.items():
        if state.arrays:
            files[part + ARRAYS] = save_arrays({key: np.ascontiguousarray(each) for key, each in state.arrays.items()})
    return files


def write(folder: Path, name: Name, files: Files) -> None:
    """Writes a checkpoint, whole or not at all. Raises OSError, with nothing left behind, where the disk refuses.

    One that is there under that name already has the same rows and weights, and stays.
    """
    final, temporary = folder / str(name), folder / f"{_WRITING}{name}"
    if final.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _remove_cut_off(folder, name.fence)
    about = {file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()}
    manifest = json.dumps({"format": FORMAT, "files": about}, indent=1).encode()
    try:
        temporary.mkdir()
        for file, data in {**files, MANIFEST: manifest}.items():
            _write_synced(temporary / file, data)
        _sync_folder(temporary)
        temporary.rename(final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(folder)


def _remove_cut_off(folder: Path, fence: int) -> None:
    """Removes what a writer left that was killed; a newer learner may be writing."""
    for left in folder.glob(f"{_WRITING}*"):
        found = _NAME.fullmatch(left.name.removeprefix(_WRITING))
        if found and int(found[1]) <= fence:
            shutil.rmtree(left, ignore_errors=True)


def _write_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def names(folder: Path) -> list[Name]:
    """Returns the checkpoints in ``folder``, whole or damaged, newest first."""
    entries = folder.iterdir() if folder.is_dir() else ()
    matches = [match for entry in entries if (match := _NAME.fullmatch(entry.name))]
    return sorted((Name(*map(int, match.groups())) for match in matches), reverse=True)


def read(folder: Path, name: Name) -> dict[str, State]:
    """Returns a checkpoint's parts. Raises CheckpointError where it is damaged or of another format."""
    path = folder / str(name)
    files = _checked_files(path)
    try:
        values = parse_json(files[VALUES])["parts"]
        arrays = {file.removesuffix(ARRAYS): load_arrays(data) for file, data in files.items() if file != VALUES}
        if not all(isinstance(each, dict) for each in values.values()):
            raise CheckpointError(f"{path / VALUES} is damaged: each part has to be an object")
        return {part: State(values[part], arrays.get(part, {})) for part in values}
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged: {error}") from error


def newest_policy(folder: Path) -> tuple[dict[str, npt.NDArray[Any]], Name]:
    """Returns the policy of the newest checkpoint, its arrays by name, and which checkpoint that is. Reads nothing else
    of it, and needs no torch.

    Raises:
        CheckpointError: there is none, or it is damaged. None is passed over for an older one, whose policy is another.
    """
    for name in names(folder):
        path = folder / str(name)
        (data,) = _checked_files(path, only=POLICY + ARRAYS).values()
        try:
            return load_arrays(data), name
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path / (POLICY + ARRAYS)} is damaged: {error}") from error
    raise CheckpointError(f"{folder} has no checkpoint yet")


def _checked_files(path: Path, only: str | None = None) -> dict[str, bytes]:
    """Returns the files that the manifest names, or the ``only`` one, each as it was written: sizes are compared before
    anything is read."""
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link: a checkpoint lies in the folder of its run")
    try:
        listed = _listed(path)
        if only is not None:
            if only not in listed:
                raise CheckpointError(
                    f"{path} has no {only}: an earlier qherd wrote it; go on with the run (qherd resume) to have it"
                )
            listed = {only: listed[only]}
        files = {file: read_file(path / file, about.bytes) for file, about in listed.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is missing: put it back") from error
    except Unreadable as error:
        raise CheckpointError(str(error)) from error
    for file, data in files.items():
        if len(data) != listed[file].bytes or hashlib.sha256(data).hexdigest() != listed[file].sha256:
            raise CheckpointError(f"{path / file} does not match its size and sha256 in {MANIFEST}")
    return files


class _About(NamedTuple):
    """What a manifest has of a file."""

    bytes: int
    sha256: str


def _listed(path: Path) -> dict[str, _About]:
    """Returns the manifest's files. Raises CheckpointError where it is damaged, or names what cannot be this run's."""
    manifest = read_object(path / MANIFEST, MANIFEST_BYTES)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest.get('format')!r:.40}, this qherd reads {FORMAT}: "
            "resume with the run's own qherd, or start a new run"
        )
    try:
        listed = {file: _About(about["bytes"], about["sha256"]) for file, about in manifest["files"].items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged: {error!r:.200}") from error
    for file, about in listed.items():
        if Path(file).name != file:
            raise CheckpointError(f"{path / MANIFEST} names {file!r:.80}, which is elsewhere")
        if type(about.bytes) is not int or about.bytes < 0 or not isinstance(about.sha256, str):
            raise CheckpointError(f"{path / MANIFEST} is damaged: {file!r:.80} has no size and sha256")
    if VALUES not in listed:
        raise CheckpointError(f"{path / MANIFEST} does not name {VALUES}")
    needed, free = sum(about.bytes for about in listed.values()), available_memory()
    if free is not None and needed > free:
        raise CheckpointError(f"{path} has {needed:,} bytes, and {free:,} of memory are free")
    return listed


def build_from_newest(folder: Path, build: Callable[[Found | None], Built]) -> Built:
    """Returns what ``build`` makes of the newest checkpoint that is whole and that it can resume from; of None where
    none was ever written. ``build`` raises CheckpointError where it cannot (see ``restoring``); the one before is
    tried then.

    Raises CheckpointError where there are some and none is of use: to begin anew is then the user's decision.
    """
    skipped: list[str] = []
    for name in names(folder):
        try:
            return build(Found(name, read(folder, name), tuple(skipped)))
        except CheckpointError as error:
            skipped.append(str(error))
        gc.collect()  # what was built half holds a replay memory, in a circle
    if skipped:
        raise CheckpointError(
            "none of the run's checkpoints can be used; they are left as they are:\n  " + "\n  ".join(skipped)
        )
    return build(None)


def newest(folder: Path) -> Found | None:
    """Returns the newest checkpoint that is whole, whatever it holds; see ``build_from_newest``."""
    return build_from_newest(folder, lambda found: found)


@contextlib.contextmanager
def restoring(found: Found, part: str) -> Iterator[None]:
    """Restores a part of a checkpoint in the block. Raises CheckpointError where it holds what qherd does not
    write, whole as its files are."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError, Unbalanced) as error:
        if isinstance(error, CannotFit):
            raise
        what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"checkpoint {found.name} has a part {part} ({VALUES}, {part}{ARRAYS}) that no learner wrote: {what}"
        ) from error


def prune(folder: Path, keep: int) -> None:
    """Removes all that is older than the ``keep`` newest that are whole: the only good one never goes."""
    whole = 0
    for name in names(folder):
        if whole >= keep:
            shutil.rmtree(folder / str(name), ignore_errors=True)
            continue
        with contextlib.suppress(CheckpointError):
            _checked_files(folder / str(name))
            whole += 1


class Checkpointer:
    """Writes the checkpoints of one learner, in a thread of its own, so that the learner does not wait for the disk.

    A checkpoint that cannot be written is counted and reported; the one before it stays, and the run goes on.
    """

    def __init__(
        self, folder: Path, config: CheckpointConfig, with_rows: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``with_rows``: the replay memory's rows are a part of each."""
        self.folder, self._config, self._clock = folder, config, clock
        self.with_rows = with_rows
        self._thread: threading.Thread | None = None
        self._notices: list[str] = []
        self._failing = False
        self._written_s, self._asked_s = clock(), -math.inf
        self.written = self.failures = self.newest_bytes = 0
        self.paused_s = 0.0

    @property
    def due(self) -> bool:
        """Returns whether it is time for the next, by the clock; the first is due at once."""
        idle = self._thread is None or not self._thread.is_alive()
        return idle and self._clock() - self._asked_s >= self._config.every_s

    @property
    def age_s(self) -> float:
        """Returns the seconds since the newest was whole, or since the start."""
        return self._clock() - self._written_s

    def build_from_newest(self, build: Callable[[Found | None], Built]) -> Built:
        """See ``build_from_newest``."""
        return build_from_newest(self.folder, build)

    def check(self) -> None:
        """Raises CheckpointError where the last one could not be written: a run does not begin on a full disk."""
        if self._failing:
            raise CheckpointError(self.take_notices()[0].removesuffix("; the run goes on, make room") + "; make room")

    def save(self, name: Name, parts: Callable[[], Mapping[str, State]], wait: bool = False) -> None:
        """Writes ``parts()`` as they are now; with ``wait``, returns when it is on disk or has failed."""
        started = time.perf_counter()
        self.join()
        self._asked_s = self._clock()
        files = pack(parts())
        self._thread = threading.Thread(target=self._write, args=(name, files), name="qherd-checkpoint", daemon=True)
        self._thread.start()
        if wait:
            self.join()
        self.paused_s += time.perf_counter() - started

    def join(self) -> None:
        """Waits for the one that is being written."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, name: Name, files: Files) -> None:
        try:
            write(self.folder, name, files)
            prune(self.folder, self._config.keep)
        except OSError as error:
            self.failures += 1
            LOG.warning("checkpoint %s is not written: %s", name, error)
            self._note_failure(error)
        else:
            if self._failing:
                self._notices.append("checkpoints can be written again")
            self._failing, self._written_s = False, self._clock()
            self.written, self.newest_bytes = self.written + 1, sum(map(len, files.values()))
            LOG.info("checkpoint %s, %d bytes", name, self.newest_bytes)

    def _note_failure(self, error: OSError) -> None:
        """Reports a failure once, until a checkpoint can be written again: it is tried all the time."""
        if not self._failing:
            there = names(self.folder)
            kept = f"the newest is of update {there[0].updates:,}" if there else "there is none yet"
            self._notices.append(
                f"a checkpoint cannot be written in {self.folder}: {error.strerror}; {kept}; the run goes on, make room"
            )
        self._failing = True

    def take_notices(self) -> tuple[str, ...]:
        """Returns the messages for the user since the last call."""
        notices, self._notices = tuple(self._notices), []
        return notices

    def metrics(self) -> CheckpointMetrics:
        """Returns what this learner's checkpoints were like."""
        return CheckpointMetrics(
            checkpoints=self.written,
            checkpoint_failures=self.failures,
            checkpoint_bytes=self.newest_bytes,
            checkpoint_age_seconds=self.age_s,
            checkpoint_pause_seconds=self.paused_s,
        )
