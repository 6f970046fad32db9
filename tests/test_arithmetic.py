"""What a run computes with: one BLAS thread wherever it runs, on record, and compared when the run is resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cli_runs import qherd, summary

from learner.checkpoint import names, read

WIDE = """
import gymnasium as gym
import numpy as np

class Wide(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (784,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        return self.observe(), float(action), bool(self.np_random.random() < 0.05), False, {}

    def observe(self):
        return self.np_random.uniform(-1, 1, 784).astype(np.float32)

gym.register("Wide-v0", Wide)
"""
OPTIONS = """
mode: inline
env: {id: "wide:Wide-v0", path: .}
actors: {count: 1, lanes: 16, chunk_steps: 8, epsilon: 0.1, epsilon_alpha: 0, epsilon_anneal_env_steps: 500}
replay: {capacity_rows: 2000, min_rows: 200, samples_per_insert: 8, sampler: prioritised}
learner: {network: {hidden: [512]}, batch: 64, publish_every_updates: 5}
eval: {every_updates: 1000000}
budget: {env_steps: 1500}
"""


@contextmanager
def on_cpus(cpus: set[int]) -> Iterator[None]:
    """What is started in the block may run on these CPUs only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def trained(folder: Path, run: str, cpus: set[int], env: dict[str, str] | None = None) -> dict[str, Any]:
    """The arrays of the last checkpoint of a run on these CPUs."""
    (folder / "wide.py").write_text(WIDE)
    (folder / "options.yaml").write_text(OPTIONS)
    with on_cpus(cpus):
        done = qherd("train", "--config", "options.yaml", "--run", run, cwd=folder, env=env)
    assert done.code == 0, done
    checkpoints = folder / "runs" / run / "checkpoints"
    parts = read(checkpoints, names(checkpoints)[0])
    states = {part: parts[part].arrays for part in ("learner", "sampler")}
    return {f"{part}.{name}": array.tobytes() for part, arrays in states.items() for name, array in arrays.items()}


@pytest.mark.long
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_an_inline_run_is_the_same_to_the_bit_on_one_cpu_and_on_two(tmp_path: Path) -> None:
    """With 784 inputs and 512 units numpy's BLAS shares the work out where it may, and adds up in another order; a
    variable that asks for two threads changes nothing."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    one = trained(tmp_path, "one", {first})
    both = trained(tmp_path, "both", {first, second}, {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"})
    assert one.keys() == both.keys()
    assert [name for name in one if one[name] != both[name]] == []


def in_a_process(program: str, cwd: Path, **env: str) -> str:
    """What a Python program prints that starts with numpy's BLAS at two threads."""
    two = {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd, env={**os.environ, **two, **env}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_pins_the_threads_before_numpy_is_imported(tmp_path: Path) -> None:
    program = """
import sys
import deploy.cli
assert "numpy" not in sys.modules
try:
    deploy.cli.main(["--version"])
except SystemExit:
    pass
from deploy.process.arithmetic import blas_threads
print(blas_threads())
"""
    assert in_a_process(program, tmp_path).split()[-1] == "1"


@pytest.mark.long
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_program_that_imported_numpy_first_is_told_what_holds(tmp_path: Path) -> None:
    program = """
import numpy
from deploy.config.models import RunConfig
from deploy.sessions.inline import InlineSession
from deploy.planning.preconditions import probe_env
from deploy.run_directory.directory import RunDirectory

config = RunConfig.model_validate({"mode": "inline", "run": "r", "env": {"id": "CartPole-v1"}})
InlineSession(config, RunDirectory.create(config), probe_env(config), print)
"""
    told = in_a_process(program, tmp_path)
    assert "numpy's BLAS uses 2 threads, so the run is the same to the bit only where it has as many" in told
    assert yaml.safe_load((tmp_path / "runs/r/config.yaml").read_text())["arithmetic"]["blas_threads"] == 2


def a_step_more(run: Path) -> str:
    """A budget that the run has not used up: by how much it went past the one it had depends on its credit."""
    return str(summary(run)["env_steps"] + 1)


@pytest.mark.long
def test_a_run_that_is_resumed_with_other_kernels_says_so_and_keeps_both_records(tmp_path: Path) -> None:
    """Once: the resumed run's own record is the newest then."""
    options = ("--mode", "inline", "--replay.min-rows", "100", "--run", "r")
    begun = qherd("train", "CartPole-v1", *options, "--budget.env-steps", "500", cwd=tmp_path)
    assert begun.code == 0, begun
    path = tmp_path / "runs" / "r" / "config.yaml"
    written = yaml.safe_load(path.read_text())
    assert written["arithmetic"].keys() == {"cpu", "blas", "blas_threads", "torch_kernels"}
    assert written["arithmetic"]["blas_threads"] == 1
    own = written["arithmetic"]["blas"]
    written["arithmetic"]["blas"], written["versions"]["numpy"] = "an abacus", "1.0"
    path.write_text(yaml.safe_dump(written))
    said = "the run computes otherwise than before, so it does not go on to the bit: "
    resumed = qherd("resume", "runs/r", "--budget.env-steps", a_step_more(path.parent), cwd=tmp_path)
    assert resumed.code == 0, resumed
    assert f"{said}numpy {np.__version__}, was 1.0; blas {own}, was an abacus" in " ".join(resumed.out.split())
    assert yaml.safe_load(path.read_text())["arithmetic"]["blas"] == "an abacus"
    assert yaml.safe_load((path.parent / "config-2.yaml").read_text())["arithmetic"]["blas"] == own
    again = qherd("resume", "runs/r", "--budget.env-steps", a_step_more(path.parent), cwd=tmp_path)
    assert again.code == 0, again
    assert said not in " ".join(again.out.split())
