"""Using a policy: from the start of a process to its first action, and what a single action takes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from benchmarks.result import Result

FIRST_TARGET_S, ACTION_TARGET_US, ONNX_TARGET = 1.5, 50.0, 0.5
"""The last one: ONNX Runtime may take twice as long as numpy."""
QHERD = Path(sys.executable).parent / "qherd"
TRAIN = ("LunarLander-v3", "--mode", "inline", "--replay.min-rows", "500", "--budget.env-steps", "2000")
EVALUATION = ("--eval.every-updates", "100", "--eval.screen-episodes", "2")
PROGRAM = """
import sys, time
import numpy as np
import learner

policy = learner.load_policy(sys.argv[1])
obs = np.zeros(8, np.float32)
policy.act(obs)
print("acted", flush=True)
for _ in range(int(sys.argv[2])):
    started = time.perf_counter()
    for _ in range(1000):
        policy.act(obs)
    print((time.perf_counter() - started) * 1000, flush=True)
"""
"""Prints a line after the first action, and then the microseconds of an action, mean of 1000."""
BESIDE = """
import sys, time
import numpy as np
import onnxruntime
import learner

policy, obs = learner.load_policy(sys.argv[1]), np.zeros(8, np.float32)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[2] + "/policy.onnx", options, providers=["CPUExecutionProvider"])
for _ in range(int(sys.argv[3])):
    for act in (lambda: session.run(["q", "action"], {"obs": obs[None]}), lambda: policy.act(obs)):
        started = time.perf_counter()
        for _ in range(1000):
            act()
        print((time.perf_counter() - started) * 1000, flush=True)
"""
"""Prints microseconds of an action of ONNX Runtime and of the policy in turn, means of 1000."""


def measure(quick: bool) -> list[Result]:
    """``learner.load_policy`` of a run of LunarLander-v3 with the default network, 128-128, in processes of their
    own."""
    repetitions = 1 if quick else 7
    with tempfile.TemporaryDirectory(prefix="qherd-bench-") as folder:
        command = [str(QHERD), "train", *TRAIN, *EVALUATION, "--run", "policy", "--runs-dir", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        run = Path(folder) / "policy"
        measured = [_used(run, repetitions) for _ in range(repetitions)]
        beside = _beside_onnx(run, Path(folder) / "onnx", repetitions)
    first, actions = tuple(first for first, _ in measured), tuple(median(each) for _, each in measured)
    return [
        Result("process start to a policy's first action", "s", first, target=FIRST_TARGET_S, at_most=True),
        Result("a single action of an MLP policy", "µs", actions, target=ACTION_TARGET_US, at_most=True),
        *beside,
    ]


def _beside_onnx(run: Path, to: Path, repetitions: int) -> list[Result]:
    """A single action of the same policy by ONNX Runtime, where that is installed."""
    if find_spec("onnxruntime") is None:
        return []
    command = [str(QHERD), "export", str(run), "--to", str(to), "--format", "onnx"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-c", BESIDE, str(run), str(to), str(repetitions)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures = [float(line) for line in shown.splitlines()]
    name, other = "a single action by ONNX Runtime", "numpy, by load_policy"
    onnx, numpy = tuple(figures[::2]), tuple(figures[1::2])
    return [Result(name, "µs", onnx, other, numpy, target=ONNX_TARGET, at_most=True)]


def _used(run: Path, repetitions: int) -> tuple[float, list[float]]:
    """Seconds to the first action of a fresh process, and microseconds of each further one, mean of 1000, several
    times."""
    started = time.perf_counter()
    command = [sys.executable, "-c", PROGRAM, str(run), str(repetitions)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: Iterator[str] = iter(process.stdout)
        if next(lines, "") != "acted\n":
            raise RuntimeError("the policy did not act")
        return time.perf_counter() - started, [float(line) for line in lines]
