"""Where the mirror lies: the same rows from everywhere, nothing left behind, and refusals with the numbers."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from chunk_makers import CODEC, SCHEMA, FakeActor, reader_on

from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.planning.memory import check_memory, plan_memory
from learner.config import LearnerConfig
from learner.learner import Learner
from replay import storage as storage_module
from replay.chunk import Schema
from replay.chunk_log.memory_log import MemoryLog
from replay.mirror import Mirror
from replay.storage import CannotFit, Device, Memmap, Ram, Storage, available_memory, check_fit, make_storage

MAKERS: dict[str, Callable[[Path], Storage]] = {
    "ram": lambda _: Ram(),
    "memmap": Memmap,
    "device": lambda _: Device(torch.device("cpu")),
}


def filled(storage: Storage) -> Mirror:
    """A mirror that has turned over several times."""
    log, mirror, actor = MemoryLog(), Mirror(SCHEMA, 47, storage), FakeActor(lanes=2, seed=3)
    reader = reader_on(log, CODEC, mirror, n=3, gamma=0.9)
    reader.follow([0])
    for _ in range(40):
        actor.send(log, time_steps=5)
        reader.poll()
    return mirror


@pytest.mark.parametrize("kind", ["memmap", "device"])
def test_same_batches_from_everywhere(kind: str, tmp_path: Path) -> None:
    """To the bit and to the dtype, as they come from RAM."""
    expected, mirror = filled(Ram()), filled(MAKERS[kind](tmp_path))
    rows = np.arange(mirror.start, mirror.end)
    rows = rows[mirror.sampleable(rows)]
    assert len(rows) > 20
    for ours, theirs in zip(mirror.gather(rows), expected.gather(rows), strict=True):
        assert np.asarray(ours).dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(ours), theirs)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float16", "float32"])
def test_a_device_holds_every_dtype(dtype: str) -> None:
    """Also torch's poorer ones."""
    device = Device(torch.device("cpu"))
    column = device.allocate(6, (2,), dtype)
    values = np.arange(8).reshape(4, 2).astype(dtype)
    device.put(column, slice(1, 5), values)
    device.put(column, np.array([5, 0]), values[:2])
    taken = device.gather(column, np.array([4, 5, 1, 4]))
    assert taken.numpy().dtype == np.dtype(dtype)
    np.testing.assert_array_equal(taken.numpy(), values[[3, 0, 0, 3]])


def test_a_device_batch_is_never_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathered and learnt from as tensors: nothing between mirror and update makes a numpy array of it."""
    mirror = filled(Device(torch.device("cpu")))
    rows = np.arange(mirror.start, mirror.end)
    rows = rows[mirror.sampleable(rows)][:16]
    learner = Learner(LearnerConfig(batch=16), SCHEMA, torch.device("cpu"), seed=0)

    def never(*_: Any, **__: Any) -> npt.NDArray[Any]:
        raise AssertionError("a batch came to the host")

    monkeypatch.setattr(torch.Tensor, "numpy", never)
    monkeypatch.setattr(torch.Tensor, "__array__", never)
    batch = mirror.gather(rows)
    assert all(isinstance(column, torch.Tensor) for column in batch)
    learner.update(batch)
    assert learner.updates == 1


def test_a_memmap_leaves_no_file(tmp_path: Path) -> None:
    """Its files have no name from the start: nothing is left even by kill -9."""
    mirror = filled(Memmap(tmp_path))
    assert isinstance(mirror._columns["obs"], np.memmap)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file of this process may grow beyond these bytes: as on a full disk, a write is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield 1 << 16
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_memmap_takes_its_blocks_at_once(tmp_path: Path, small_files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room is an error at the start, and no SIGBUS in the middle of the run."""
    opened = []
    make = tempfile.TemporaryFile

    def noted(**arguments: Any) -> Any:
        file = make(**arguments)
        opened.append(os.dup(file.fileno()))
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", noted)
    column = Memmap(tmp_path).allocate(small_files, (), "uint8")
    assert os.fstat(opened[0]).st_blocks * 512 >= column.nbytes, "a file with holes: its disk may be full later"
    with pytest.raises(OSError, match="File too large"):
        Memmap(tmp_path).allocate(small_files + 1, (), "uint8")


def test_what_cannot_fit_is_refused_with_both_numbers() -> None:
    """And with what to do."""
    free = Ram().free_bytes()
    assert free is not None
    check_fit("ram", Ram(), 1000)
    with pytest.raises(CannotFit, match=r"needs 9000000\.00 GB of ram .* are free: lower replay.capacity_rows, or"):
        check_fit("ram", Ram(), 9 * 10**15)


def test_the_cgroups_bound_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the machine's free memory is not ours."""
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    monkeypatch.setattr(storage_module, "CGROUP", tmp_path)
    assert available_memory() == 3_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert (available_memory() or 0) > 3_000_000


def test_the_configuration_chooses(tmp_path: Path) -> None:
    """torch is asked for a device only where it is needed."""

    def device() -> torch.device:
        raise LookupError

    assert type(make_storage("ram", None, device)) is Ram
    assert type(make_storage("memmap", tmp_path, device)) is Memmap
    with pytest.raises(LookupError):
        make_storage("device", None, device)


def test_plan_counts_all_of_a_run() -> None:
    """Mirror, tree and server, each as it will be allocated; an inline run has no server."""
    schema = Schema((84, 84), "uint8", 6, stack=4)
    config = RunConfig.model_validate({"replay": {"capacity_rows": 100_000, "sampler": "prioritised"}})
    planned = plan_memory(config, schema)
    assert planned.mirror == Mirror.planned_bytes(schema, 100_000) > 100_000 * 7056
    assert planned.tree == 16 << 17
    assert planned.server > 1.25 * 100_000 * 7056
    short = plan_memory(RunConfig.model_validate({"replay": {"capacity_rows": 100_000, "log_rows": 10_000}}), schema)
    assert short.server < planned.server / 3
    assert short.tree == 0
    assert plan_memory(config.model_copy(update={"mode": "inline"}), schema).server == 0
    line = planned.summary_line(config)
    assert "100,000 rows: 710 MB (ram) and a sum tree of 2 MB in the learner; the server at most" in line


@pytest.mark.parametrize("kind", ["ram", "memmap"])
@pytest.mark.parametrize("mode", ["inline", "local"])
def test_a_run_that_cannot_fit_is_refused_before_it_starts(kind: str, mode: str, tmp_path: Path) -> None:
    """With the planned and the free bytes, for RAM and for the disk."""
    limits = {"capacity_rows": 10**12, "storage": kind}
    config = RunConfig.model_validate({"mode": mode, "replay": limits, "runs_dir": tmp_path / "not" / "there"})
    with pytest.raises(ConfigError, match=r"are free.*replay.capacity_rows"):
        check_memory(config, SCHEMA)
    check_memory(config.model_copy(update={"mode": "cluster"}), SCHEMA)  # another machine's memory


BIG_ENV = """
import gymnasium as gym
import numpy as np

class Big(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.picture, self.t = np.zeros((84, 84), np.uint8), 0
        return self.picture, {}

    def step(self, action):
        self.t += 1
        self.picture[self.t % 84] += 1
        return self.picture, 1.0, self.t % 100 == 0, False, {}

gym.register("Big-v0", Big)
"""
BOUNDED = """
import resource, sys
from deploy.cli import main
import torch, learner.loop, gymnasium, numba
def used():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used() + {headroom}, -1))
main(sys.argv[1:])
"""


@pytest.mark.long
@pytest.mark.timeout(400)  # it writes gigabytes
@pytest.mark.parametrize("kind", ["memmap", "ram"])
def test_a_memmap_trains_from_more_than_memory_allows(kind: str, tmp_path: Path) -> None:
    """Half a gigabyte of pictures, with 250 MB for the process to take: filled and turned over by the real command;
    in RAM the same run is refused, with the remedy."""
    (tmp_path / "big.py").write_text(BIG_ENV)
    arguments = (
        "train big:Big-v0 --env.path . --mode inline --run r --actors.count 1 --actors.lanes 8 --actors.chunk-steps 32 "
        "--replay.capacity-rows 75000 --replay.samples-per-insert 0.25 --learner.batch 16 --learner.network.hidden 8 "
        f"--budget.env-steps 80000 --eval.every-updates 1000000 --replay.storage {kind}"
    )
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED.format(headroom=250 << 20), *arguments.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if kind == "ram":
        assert done.returncode == 2, done.stderr
        assert "the replay of 75,000 rows, 0.53 GB, cannot be allocated in ram" in done.stderr
        assert "lower replay.capacity_rows" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "budget of env steps" in done.stdout
    assert "531 MB (memmap)" in done.stdout
    assert not list((tmp_path / "runs" / "r").glob("tmp*"))
