"""Checkpoints on disk: whatever ends the writer at whatever moment, whatever the disk does later, a whole one loads."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disks import small_disk
from hostile import HOSTILE, sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

from learner import checkpoint
from learner.checkpoint import (
    POLICY,
    Checkpointer,
    CheckpointError,
    Found,
    Name,
    build_from_newest,
    names,
    newest,
    newest_policy,
    pack,
    prune,
    read,
    write,
)
from learner.config import CheckpointConfig, LearnerConfig
from learner.loop import LearnerLoop
from learner.publisher import Publisher
from replay.chunk import Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.config import ReplayConfig
from replay.state import State

FIRST, SECOND, THIRD = Name(1, 100, 900), Name(1, 200, 1800), Name(2, 150, 1300)


def parts(number: int) -> dict[str, State]:
    """A checkpoint whose contents are known by its number."""
    arrays: dict[str, Any] = {
        "w": np.full(50, number, np.float32),
        "rows": np.arange(number, dtype=np.int64).reshape(-1, 1),
    }
    return {"learner": State({"updates": number}, arrays), "loop": State({"number": number}, {})}


def number_of(found: dict[str, State]) -> int:
    number: int = found["loop"].values["number"]
    np.testing.assert_array_equal(found["learner"].arrays["w"], np.full(50, number, np.float32))
    np.testing.assert_array_equal(found["learner"].arrays["rows"][:, 0], np.arange(number))
    return number


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints."""
    for name in (FIRST, SECOND):
        write(tmp_path, name, pack(parts(name.updates)))
    return tmp_path


def files_of(folder: Path, name: Name) -> list[Path]:
    return sorted((folder / str(name)).iterdir())


def test_what_was_written_is_read_to_the_bit(tmp_path: Path) -> None:
    """Integers of 128 bits (a generator's state), floats, every dtype, empty arrays, views that are not contiguous."""
    values = {"rng": np.random.default_rng(3).bit_generator.state, "third": 1 / 3, "tiny": 5e-324, "none": None}
    kinds = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "uint16", "bool")
    arrays: dict[str, Any] = {kind: np.array([0, 1, 2, 1 / 3]).astype(kind) for kind in kinds}
    arrays |= {"empty": np.zeros((0, 5), np.int64), "strided": np.arange(12).reshape(3, 4)[:, ::2]}
    write(tmp_path, FIRST, pack({"part": State(values, arrays)}))
    found = read(tmp_path, FIRST)["part"]
    assert found.values == values
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == array.dtype


def test_packing_takes_a_copy(tmp_path: Path) -> None:
    """The learner goes on while the thread writes."""
    array = np.zeros(4)
    files = pack({"part": State({}, {"a": array})})
    array[:] = 1
    write(tmp_path, FIRST, files)
    assert read(tmp_path, FIRST)["part"].arrays["a"].sum() == 0


def test_the_newest_is_that_of_the_highest_fence(folder: Path) -> None:
    """A learner that was replaced and thaws may have done more updates; what it writes is older all the same."""
    write(folder, THIRD, pack(parts(150)))
    write(folder, Name(1, 99_999, 99_999), pack(parts(7)))
    found = newest(folder)
    assert found is not None
    assert (found.name, number_of(found.parts), found.skipped) == (THIRD, 150, ())


def test_the_policy_of_the_newest_is_read_alone(folder: Path) -> None:
    """Whatever became of the other files; and no older one is taken for it."""
    weights = {"head.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    write(folder, THIRD, pack({**parts(150), POLICY: State({}, weights)}))
    (folder / str(THIRD) / "learner.safetensors").write_bytes(b"damaged")
    arrays, name = newest_policy(folder)
    assert name == THIRD
    np.testing.assert_array_equal(arrays["head.weight"], weights["head.weight"])
    path = folder / str(THIRD) / f"{POLICY}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"policy\.safetensors does not match its size and sha256"):
        newest_policy(folder)


def test_a_policy_that_is_not_there_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{SECOND} has no policy\.safetensors: an earlier qherd wrote it"):
        newest_policy(folder)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        newest_policy(tmp_path / "none")


def test_nothing_was_ever_written(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "none") is None


@pytest.mark.parametrize("index", range(3))
def test_a_flipped_byte_in_any_file_has_the_one_before_loaded(folder: Path, index: int) -> None:
    """And the file is named; nothing is removed."""
    damaged = files_of(folder, SECOND)[index]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    found = newest(folder)
    assert found is not None
    assert (found.name, number_of(found.parts)) == (FIRST, 100)
    assert str(SECOND) in found.skipped[0]
    assert len(files_of(folder, SECOND)) == 3


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("how", ["missing", "cut off", "empty"])
def test_a_file_that_is_not_whole_has_the_one_before_loaded(folder: Path, index: int, how: str) -> None:
    damaged = files_of(folder, SECOND)[index]
    if how == "missing":
        damaged.unlink()
    else:
        damaged.write_bytes(b"" if how == "empty" else damaged.read_bytes()[:-1])
    found = newest(folder)
    assert found is not None
    assert (found.name, number_of(found.parts), len(found.skipped)) == (FIRST, 100, 1)
    if how == "missing":
        assert f"{damaged} is missing: put it back" in found.skipped[0]


@pytest.mark.parametrize(
    "manifest",
    ['{"format": 1, "files": {}}', '{"format": 2, "files": {}}', '{"format": 3, "files": {}}', "[1]", '{"format": 3}'],
)
def test_a_manifest_of_something_else_is_passed_over(folder: Path, manifest: str) -> None:
    (folder / str(SECOND) / checkpoint.MANIFEST).write_text(manifest)
    found = newest(folder)
    assert found is not None
    assert found.name == FIRST


def test_a_manifest_that_names_a_file_elsewhere_is_passed_over(folder: Path) -> None:
    """Whoever can write a checkpoint cannot have others' files read by it."""
    path = folder / str(SECOND) / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"][f"../{FIRST}/learner.safetensors"] = json.loads((folder / str(FIRST) / path.name).read_text())[
        "files"
    ]["learner.safetensors"]
    path.write_text(json.dumps(manifest))
    found = newest(folder)
    assert found is not None
    assert found.name == FIRST
    assert "which is elsewhere" in found.skipped[0]


def test_where_none_is_whole_nothing_begins_anew_and_nothing_is_removed(folder: Path) -> None:
    for name in (FIRST, SECOND):
        (folder / str(name) / checkpoint.VALUES).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=rf"left as they are:\n.*{SECOND}.*\n.*{FIRST}"):
        newest(folder)
    assert names(folder) == [SECOND, FIRST]


def test_retention_keeps_the_newest_and_never_removes_the_only_good_one(folder: Path) -> None:
    write(folder, THIRD, pack(parts(150)))
    for name in (SECOND, THIRD):
        (folder / str(name) / checkpoint.VALUES).write_bytes(b"{}")
    prune(folder, keep=1)
    assert names(folder) == [THIRD, SECOND, FIRST], "two damaged ones do not count"
    fourth = Name(2, 300, 2600)
    write(folder, fourth, pack(parts(300)))
    prune(folder, keep=2)
    assert names(folder) == [fourth, THIRD, SECOND, FIRST]
    prune(folder, keep=1)
    assert names(folder) == [fourth]


def test_what_was_built_half_is_let_go_before_the_next_is_built(folder: Path) -> None:
    """A replay memory may be too big to be there twice."""
    built: list[weakref.ref[Half]] = []

    def build(found: Found | None) -> Name:
        assert found is not None
        assert not [half for half in built if half() is not None]
        half = Half()
        built.append(weakref.ref(half))
        if found.name == SECOND:
            raise CheckpointError("of no use")
        return found.name

    assert build_from_newest(folder, build) == FIRST
    assert len(built) == 2


class Half:
    """In a circle, as a mirror and its sampler are."""

    def __init__(self) -> None:
        self.itself = self


def test_a_second_one_of_the_same_name_changes_nothing(folder: Path) -> None:
    write(folder, SECOND, pack(parts(1)))
    assert number_of(read(folder, SECOND)) == 200


# -- files of somebody else's


@pytest.mark.timeout(20)
@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_is_no_plain_small_file_is_passed_over_unread(
    folder: Path, index: int, hostile: Callable[[Path], None]
) -> None:
    hostile(files_of(folder, SECOND)[index])
    found = newest(folder)
    assert found is not None
    assert (found.name, number_of(found.parts), len(found.skipped)) == (FIRST, 100, 1)
    prune(folder, keep=1)
    assert names(folder) == [SECOND, FIRST], "the only good one stays"


@pytest.mark.parametrize("hostile", ["bytes", "sparse and said so", "deep", "a list", "parts that are none"])
def test_what_a_manifest_agrees_with_is_still_looked_at(folder: Path, hostile: str) -> None:
    """Whoever writes files can write their sizes and digests, too."""
    path, values = folder / str(SECOND), folder / str(SECOND) / checkpoint.VALUES
    contents = {
        "deep": b'{"parts":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "a list": b"[1]",
        "parts that are none": b'{"parts": {"learner": 7}}',
    }
    values.write_bytes(contents.get(hostile, values.read_bytes()))
    if hostile == "sparse and said so":
        sparse(values)
    size = 10**30 if hostile == "bytes" else values.stat().st_size
    digest = "0" * 64 if size > 1 << 30 else hashlib.sha256(values.read_bytes()).hexdigest()
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    manifest["files"][checkpoint.VALUES] = {"bytes": size, "sha256": digest}
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    found = newest(folder)
    assert found is not None
    assert (found.name, number_of(found.parts), len(found.skipped)) == (FIRST, 100, 1)


def test_a_checkpoint_that_is_a_link_is_passed_over_and_never_removed(folder: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    (folder / str(SECOND)).rename(away)
    (folder / str(SECOND)).symlink_to(away)
    found = newest(folder)
    assert found is not None
    assert found.name == FIRST
    write(folder, THIRD, pack(parts(150)))
    prune(folder, keep=1)
    assert len(list(away.iterdir())) == 3


def test_values_that_nothing_can_go_on_from_are_named(tmp_path: Path) -> None:
    """They are whole by every digest: whoever wrote them is not qherd, or a much older one."""
    with pytest.raises(
        CheckpointError,
        match=rf"{FIRST} has a part learner \(state.json, learner.safetensors\) .*: there is no 'online'",
    ):
        LearnerLoop(
            "r",
            MemoryLog(),
            Publisher(MemoryLog(), 2),
            Schema((3,), "float32", 2),
            ReplayConfig(capacity_rows=100, min_rows=10),
            LearnerConfig(),
            fence=2,
            seed=0,
            quarantine=None,
            checkpointer=Checkpointer(tmp_path, CheckpointConfig(), with_rows=True),
            found=Found(FIRST, {"learner": State({}, {})}, ()),
        )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something to change."""
    inner = value.items() if isinstance(value, dict) else ()
    return [path, *(found for key, each in inner for found in paths_in(each, (*path, key)))]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutated")
    for name in (FIRST, SECOND):
        write(folder, name, pack(parts(name.updates)))
    return folder


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_whatever_a_manifest_says_the_one_before_loads(written: Path, data: st.DataObject) -> None:
    """Any value in any place of it: it is passed over, or, where nothing that matters was changed, it loads."""
    path = written / str(SECOND) / checkpoint.MANIFEST
    before = path.read_bytes()
    manifest = {"whole": json.loads(before)}
    parents: tuple[Any, ...] = ("whole", *data.draw(st.sampled_from(paths_in(manifest["whole"]))))
    parents, leaf = parents[:-1], parents[-1]
    at: Any = manifest
    for key in parents:
        at = at[key]
    at[leaf] = data.draw(ANYTHING)
    try:
        path.write_text(json.dumps(manifest["whole"]))
        found = newest(written)
    finally:
        path.write_bytes(before)
    assert found is not None
    assert found.name == FIRST or number_of(found.parts) == 200
    assert len(found.skipped) == (found.name == FIRST)


# -- killed anywhere

KILLED_AT = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from test_checkpoint import SECOND, parts
from learner.checkpoint import pack, prune, write

template, files, calls, at = Path(sys.argv[1]), pack(parts(200)), 0, 0

def counted(call):
    def counting(*arguments, **options):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counting

for at in itertools.count(1):
    folder = template.with_name(str(at))
    shutil.copytree(template, folder)
    pid = os.fork()
    if pid == 0:
        half = os.write
        os.write = lambda fd, data: half(fd, data[: max(1, len(data) // 2)])  # a disk takes what it likes of a write
        for name in ("mkdir", "open", "write", "fsync", "close", "rename", "unlink", "rmdir", "scandir", "stat"):
            setattr(os, name, counted(getattr(os, name)))
        write(folder, SECOND, files)
        prune(folder, keep=1)
        os._exit(0)
    if os.waitpid(pid, 0)[1] == 0:
        print(at)
        break
"""


def test_a_kill_between_any_two_system_calls_leaves_a_whole_one(tmp_path: Path) -> None:
    """The one before, or the new one; the next writer then removes what was cut off."""
    template = tmp_path / "template"
    write(template, FIRST, pack(parts(100)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent, *sys.path)))}
    command = [sys.executable, "-c", KILLED_AT, str(template)]
    done = subprocess.run(command, env=environment, check=True, timeout=100, capture_output=True, text=True)
    survived = int(done.stdout)
    assert survived > 20, "fewer calls than a checkpoint has: they were not counted"
    seen = set()
    for at in range(1, survived):
        folder = tmp_path / str(at)
        found = newest(folder)
        assert found is not None
        assert found.skipped == ()
        seen.add(number_of(found.parts))
        write(folder, THIRD, pack(parts(150)))
        assert not list(folder.glob(".writing-*"))
        assert names(folder)[0] == THIRD
    assert seen == {100, 200}
    assert names(tmp_path / str(survived)) == [SECOND]


def test_a_thawed_learner_leaves_alone_what_its_successor_is_writing(folder: Path) -> None:
    theirs = folder / f".writing-{THIRD}"
    theirs.mkdir()
    write(folder, Name(1, 300, 2700), pack(parts(300)))
    assert theirs.exists()


# -- disks that refuse


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename", "mkdir"])
def test_a_refused_call_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    original = getattr(os, call)

    def refuse(*arguments: Any, **options: Any) -> Any:
        if call == "open" and not arguments[1] & os.O_CREAT:
            return original(*arguments, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(OSError, match="No space left"):
            write(folder, THIRD, pack(parts(150)))
    assert sorted(path.name for path in folder.iterdir()) == [str(FIRST), str(SECOND)]


@pytest.mark.root
def test_a_full_disk_keeps_the_one_before_and_is_written_again_when_there_is_room(tmp_path: Path) -> None:
    """A real one: training goes on, the alarm is raised once, and once more when it is over."""
    with small_disk(tmp_path / "disk", "256k") as disk:
        checkpointer = Checkpointer(disk / "c", CheckpointConfig(keep=1), with_rows=True)
        checkpointer.save(FIRST, lambda: parts(100), wait=True)
        (disk / "filler").write_bytes(bytes(200 << 10))
        big = {"learner": State({}, {"w": np.zeros(60 << 10, np.uint8)}), **parts(200)}
        for attempt in range(3):
            checkpointer.save(Name(1, 200 + attempt, 1), lambda: big, wait=True)
        assert checkpointer.metrics().checkpoint_failures == 0, "it fits"
        bigger = {**big, "mirror": State({}, {"obs": np.zeros(120 << 10, np.uint8)})}
        for attempt in range(3):
            checkpointer.save(Name(1, 300 + attempt, 1), lambda: bigger, wait=True)
        (told,) = checkpointer.take_notices()
        assert "No space left" in told
        assert "the newest is of update 202" in told
        assert checkpointer.metrics().checkpoint_failures == 3
        found = newest(disk / "c")
        assert found is not None
        assert found.name.updates == 202
        (disk / "filler").unlink()
        checkpointer.save(Name(1, 400, 1), lambda: bigger, wait=True)
        assert checkpointer.take_notices() == ("checkpoints can be written again",)
        assert names(disk / "c") == [Name(1, 400, 1)]


# -- the writer's thread


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_each_that_is_written_or_not_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The user is told once per spell."""
    caplog.set_level("INFO", "qherd")
    (tmp_path / "c").write_text("no folder")
    checkpointer = Checkpointer(tmp_path / "c", CheckpointConfig(), with_rows=True)
    for name in (FIRST, SECOND):
        checkpointer.save(name, lambda: parts(100), wait=True)
    (tmp_path / "c").unlink()
    checkpointer.save(THIRD, lambda: parts(100), wait=True)
    logged = [record.getMessage() for record in caplog.records]
    assert [text.split(":")[0] for text in logged[:2]] == [
        f"checkpoint {name} is not written" for name in (FIRST, SECOND)
    ]
    assert logged[2:] == [f"checkpoint {THIRD}, {checkpointer.newest_bytes} bytes"]
    assert len(checkpointer.take_notices()) == 2


def test_one_is_due_at_once_and_then_every_so_often(tmp_path: Path) -> None:
    clock = Clock()
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(every_s=30), with_rows=True, clock=clock)
    due = [checkpointer.due]
    checkpointer.save(FIRST, lambda: parts(100), wait=True)
    for seconds in (0, 29, 1):
        clock.now += seconds
        due.append(checkpointer.due)
    assert due == [True, False, False, True]
    assert checkpointer.metrics().checkpoint_age_seconds == 30


def test_the_learner_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is written no other is due; the end of a run waits for it."""
    blocked, release = os.pipe()
    fsync = os.fsync

    def slow(fd: int) -> None:
        os.read(blocked, 1)
        fsync(fd)

    clock = Clock()
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(every_s=30), with_rows=True, clock=clock)
    monkeypatch.setattr(os, "fsync", slow)
    checkpointer.save(FIRST, lambda: parts(100))
    clock.now += 100
    assert not checkpointer.due
    assert names(tmp_path) == []
    os.write(release, bytes(100))
    until(lambda: checkpointer.due, "the thread's end")
    checkpointer.save(SECOND, lambda: parts(200), wait=True)
    assert names(tmp_path) == [SECOND, FIRST]


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(keep=2), with_rows=True)
    for updates in range(5):
        checkpointer.save(Name(1, updates, 0), lambda: parts(3), wait=True)
    assert [name.updates for name in names(tmp_path)] == [4, 3]


def test_a_run_does_not_begin_where_none_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checkpointer = Checkpointer(tmp_path / "file" / "c", CheckpointConfig(), with_rows=True)
    checkpointer.save(FIRST, lambda: parts(1), wait=True)
    with pytest.raises(
        CheckpointError,
        match=r"a checkpoint cannot be written in .*/file/c: Not a directory; there is none yet; make room",
    ):
        checkpointer.check()
