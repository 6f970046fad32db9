"""Playing a run's best policy: the figures are those of an independent loop, the videos are real."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest
from cli_runs import Finished, qherd

from deploy.run_dir import RunDirectory

EPISODES, SEED = 23, 77


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of CartPole."""
    cwd = tmp_path_factory.mktemp("playback")
    options = ["--mode", "inline", "--budget.env-steps", "2500", "--eval.every-updates", "200", "--run", "r"]
    done = qherd("train", "CartPole-v1", *options, cwd=cwd)
    assert done.code == 0, done
    return cwd / "runs" / "r"


def play(run: Path, *arguments: str | Path, command: str = "eval") -> Finished:
    return qherd(command, run, *arguments, cwd=run.parent)


def greedy(run: Path, seed: int) -> int:
    """Length (and so the return) of one greedy episode, computed here from the bare weights."""
    arrays, _ = RunDirectory.open(run).load_best()
    names = [*(f"encoder.layers.{i}" for i in range(len(arrays) // 2 - 1)), "head.linear"]
    layers = [(arrays[f"{name}.weight"], arrays[f"{name}.bias"]) for name in names]
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=seed)
    length, over = 0, False
    while not over:
        hidden = np.asarray(observation, np.float32)
        for weight, bias in layers[:-1]:
            hidden = np.maximum(weight @ hidden + bias, 0)
        values = layers[-1][0] @ hidden + layers[-1][1]
        observation, _, terminated, truncated, _ = env.step(int(values.argmax()))
        length, over = length + 1, terminated or truncated
    env.close()
    return length


def decoded(video: Path) -> npt.NDArray[np.uint8]:
    """All frames as ffmpeg decodes them: <uint8>[frames, 400, 600, 3]. Another size of frame would not divide."""
    raw = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video), *raw]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    assert done.stderr == b""
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, 400, 600, 3)


def test_the_json_has_the_figures_of_an_independent_greedy_loop(run: Path) -> None:
    done = play(run, "--episodes", str(EPISODES), "--seed", str(SEED), "--json")
    assert (done.code, done.err) == (0, "")
    figures: dict[str, Any] = json.loads(done.out)
    lengths = [greedy(run, seed) for seed in range(SEED, SEED + EPISODES)]
    assert figures["lengths"] == lengths
    assert (figures["run"], figures["env"], figures["episodes"], figures["seed"]) == (
        "r",
        "CartPole-v1",
        EPISODES,
        SEED,
    )
    assert figures["mean"] == pytest.approx(np.mean(lengths))
    assert figures["std"] == pytest.approx(np.std(lengths, ddof=1))
    assert (figures["min"], figures["max"]) == (min(lengths), max(lengths))
    assert len(set(lengths)) > 1, "each episode has a seed of its own"


def test_the_text_is_one_line_and_repeats_itself(run: Path) -> None:
    done = play(run, "--episodes", "5", "--seed", "3")
    assert done.code == 0
    assert "CartPole-v1, 5 greedy episodes: mean" in done.out
    assert done.out.count("\n") == 1
    assert play(run, "--episodes", "5", "--seed", "3").out == done.out
    assert play(run, "--episodes", "5", "--seed", "300").out != done.out


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_record_writes_a_video_with_the_whole_episode(run: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"v{suffix}"
    done = play(run, "--out", out, "--seed", str(SEED), command="record")
    assert done.code == 0, done
    length = greedy(run, SEED)
    assert f"in {length} env steps" in done.out
    frames = decoded(out)
    if suffix == ".mp4":
        assert abs(len(frames) - (length + 1)) <= 1
    assert len(frames) >= length // 4
    assert min(frame.std() for frame in frames) > 5, "no frame is blank"
    assert any(np.abs(frame.astype(int) - frames[0]).max() > 50 for frame in frames[1:]), "something moves"
    assert done.leftovers == []


def test_record_writes_into_the_run_and_refuses_to_overwrite(run: Path) -> None:
    first = play(run, command="record")
    assert first.code == 0, first
    before = (run / "best.mp4").read_bytes()
    again = play(run, command="record")
    assert again.code == 2
    assert "best.mp4 exists" in again.err
    assert (run / "best.mp4").read_bytes() == before


@pytest.mark.parametrize("out", ["v.avi", "v", "nowhere/v.mp4"])
def test_a_video_that_cannot_be_written_is_refused_at_once(run: Path, tmp_path: Path, out: str) -> None:
    done = play(run, "--out", tmp_path / out, command="record")
    assert done.code == 2, done
    assert out.partition("/")[0] in done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["eval", "record"])
def test_damaged_weights_are_refused(run: Path, tmp_path: Path, command: str) -> None:
    copy = shutil.copytree(run, tmp_path / "r", ignore=shutil.ignore_patterns("*.mp4"))
    (path,) = (copy / "checkpoints").glob("*.weights")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = play(copy, command=command)
    assert done.code == 2, done
    assert "damaged" in done.err
    assert "Traceback" not in done.err
    assert not (copy / "best.mp4").exists()
