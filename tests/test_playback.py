"""Playing a run's best policy: the figures are those of an independent loop, the videos are real."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest
import torch
from cli_runs import Finished, qherd
from policies import a_run

from actors.config import EnvConfig
from actors.errors import EnvError
from deploy.commands import evaluate, record
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.playback.players import STICKY, Which, sticky_of
from deploy.playback.video import Video, picture
from deploy.run_directory.directory import RunDirectory
from learner import load_policy
from learner.checkpoint import newest_policy
from learner.weights import pack

EPISODES, SEED = 23, 77


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of CartPole."""
    cwd = tmp_path_factory.mktemp("playback")
    options = ["--mode", "inline", "--budget.env-steps", "2500", "--eval.every-updates", "400", "--run", "r"]
    done = qherd("train", "CartPole-v1", *options, cwd=cwd)
    assert done.code == 0, done
    return cwd / "runs" / "r"


Evaluated = Callable[..., str]


@pytest.fixture
def evaluated(run: Path, capfd: pytest.CaptureFixture[str]) -> Evaluated:
    """``qherd eval`` of the run, in this process: returns what it prints."""

    def call(*arguments: str) -> str:
        assert evaluate.run([str(run), *arguments]) == 0
        return capfd.readouterr().out

    return call


def play(run: Path, *arguments: str | Path, command: str = "eval") -> Finished:
    return qherd(command, run, *arguments, cwd=run.parent)


def greedy(run: Path, seed: int, policy: str = "best") -> int:
    """Length (and so the return) of one greedy episode, computed here from the bare weights."""
    arrays = newest_policy(run / "checkpoints")[0] if policy == "final" else RunDirectory.open(run).best.load()[0]
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


def test_the_final_policy_is_that_of_the_newest_checkpoint(run: Path, evaluated: Evaluated) -> None:
    options = ("--policy", "final", "--episodes", "5", "--seed", "3")
    figures = json.loads(evaluated(*options, "--json"))
    assert figures["lengths"] == figures["returns"] == [greedy(run, seed, "final") for seed in range(3, 8)]
    best = json.loads(evaluated("--episodes", "5", "--seed", "3", "--json"))
    assert (figures["policy"], figures["selected"]) == ("final", False)
    assert (best["policy"], best["selected"]) == ("best", True)
    ended = json.loads((run / "summary.json").read_text())
    assert (figures["updates"], figures["env_steps"]) == (ended["updates"], ended["env_steps"])
    assert best["updates"] == ended["best_updates"] < figures["updates"]
    text = evaluated(*options)
    assert f"\nfinal policy, of update {ended['updates']:,}: that of the newest checkpoint, not selected" in text


@pytest.mark.parametrize("which", ["best", "final"])
def test_a_loop_of_ten_lines_reaches_the_same_evaluation(run: Path, evaluated: Evaluated, which: Which) -> None:
    policy, env, returns = load_policy(run, which), gym.make("CartPole-v1"), []
    for seed in range(3, 8):
        obs, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action, _ = policy.act(obs)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    figures = json.loads(evaluated("--policy", which, "--episodes", "5", "--seed", "3", "--json"))
    assert figures["returns"] == returns
    assert len(set(returns)) > 1


def test_the_text_has_the_standard_error_and_how_the_policy_was_chosen(run: Path, evaluated: Evaluated) -> None:
    done = evaluated("--episodes", "5", "--seed", "3")
    lengths = [greedy(run, seed) for seed in range(3, 8)]
    mean, std = np.mean(lengths), np.std(lengths, ddof=1)
    told, chosen = done.splitlines()
    assert told.startswith(
        f"CartPole-v1, 5 greedy episodes: mean {mean:.1f}, standard deviation {std:.1f}, standard error "
        f"{std / 5**0.5:.2g}, min {min(lengths)}.0, max {max(lengths)}.0"
    )
    assert "selected by the run's own evaluations, so its score tends to be higher" in chosen
    assert evaluated("--episodes", "5", "--seed", "3") == done
    assert evaluated("--episodes", "5", "--seed", "300") != done


def test_of_one_episode_there_is_no_standard_error(run: Path, evaluated: Evaluated) -> None:
    assert "standard error unknown" in evaluated("--episodes", "1")
    assert json.loads(evaluated("--episodes", "1", "--json"))["stderr"] is None


def test_the_csv_has_a_line_for_each_episode(run: Path, evaluated: Evaluated) -> None:
    done = evaluated("--episodes", "3", "--seed", "3", "--csv")
    lengths = [greedy(run, seed) for seed in range(3, 6)]
    lines = [f"{seed},{length}.0,{length}\n" for seed, length in enumerate(lengths, 3)]
    assert done == "".join(["seed,return,length\n", *lines])
    with pytest.raises(ConfigError, match="--json and --csv are both given: choose one"):
        evaluated("--csv", "--json")


def test_epsilon_is_the_share_of_random_actions(run: Path, evaluated: Evaluated) -> None:
    """With 1 the policy plays no part: random play of CartPole takes 22 env steps in the mean."""
    done = evaluated("--epsilon", "1", "--episodes", "200", "--json")
    figures = json.loads(done)
    assert figures["epsilon"] == 1
    assert figures["mean"] == pytest.approx(22.2, abs=4 * figures["stderr"])
    assert evaluated("--epsilon", "1", "--episodes", "200", "--json") == done, "its chance goes by the seed"
    assert "5 ε = 0.1 episodes" in evaluated("--epsilon", "0.1", "--episodes", "5")


def test_sticky_actions_are_those_of_games_that_have_them(evaluated: Evaluated) -> None:
    with pytest.raises(ConfigError, match=r"CartPole-v1 has no sticky actions that .* ALE/\* and MinAtar/\* have"):
        evaluated("--sticky", "0")
    pong = EnvConfig(id="ALE/Pong-v5")
    (name, default) = STICKY["ALE"]
    assert pong.kwargs[name] == sticky_of(pong) == default
    assert sticky_of(EnvConfig(id="ale_py:ALE/Pong-v5", kwargs={name: 0.5})) == 0.5


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


# -- environments that are unusual


def unusual(
    folder: Path, kind: str, env: str = "Frames-v0", path: Path = Path(__file__).parent, **evaluation: int
) -> Path:
    """A run's directory with a policy for ``frames_env``, as if it had been trained."""
    kwargs = {"kind": kind, "book": str(folder / "book")}
    config = RunConfig.model_validate(
        {
            "run": "r",
            "runs_dir": folder,
            "env": {"id": f"frames_env:{env}", "path": path, "kwargs": kwargs},
            "eval": evaluation,
            "learner": {"network": {"hidden": []}},
        }
    )
    weights = {"head.linear.weight": np.zeros((2, 4), np.float32), "head.linear.bias": np.zeros(2, np.float32)}
    with contextlib.closing(RunDirectory.create(config)) as directory:
        about = {"version": 1, "updates": 7, "episodes": 1, "mean": 0.0, "std": 0.0, "lower": 0.0, "solved": False}
        directory.best.save(pack(1, 7, 0, weights), about | {"threshold": None, "rank_bound": 0.0})
    return folder / "r"


def closed_all(folder: Path) -> bool:
    words = (folder / "book").read_text().split()
    return words.count("made") == words.count("closed") > 0


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("none", r"Frames-v0: render\(\) returned None; a video needs an array <uint8>\[height, width, 3\]"),
        ("changing", r"Frames-v0: render\(\) returned a picture of 64 x 66 after others of 64 x 64"),
        ("fails", r"Frames-v0: render\(\) raised RuntimeError: no display"),
        ("exits", r"Frames-v0: step\(\) called sys\.exit\(0\).*; there is no video of it"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(tmp_path: Path, kind: str, told: str) -> None:
    done = play(unusual(tmp_path, kind), command="record")
    assert (done.code, done.err.count("\n")) == (2, 1), done
    assert re.search(told, done.err)
    assert not (tmp_path / "r" / "best.mp4").exists()
    assert closed_all(tmp_path)


def test_an_environment_without_pictures_is_one_line(tmp_path: Path) -> None:
    done = play(unusual(tmp_path, "", "NoRender-v0"), command="record")
    assert done.code == 2
    assert "cannot be made: its constructor" in done.err
    assert "render_mode" in done.err
    assert "--env.path" not in done.err
    assert "Traceback" not in done.err


def test_an_endless_episode_is_recorded_to_its_limit(tmp_path: Path) -> None:
    """And evaluated to it."""
    copy = unusual(tmp_path, "endless", max_episode_steps=30)
    assert "in 30 env steps" in play(copy, command="record").out
    figures = json.loads(play(copy, "--episodes", "3", "--json").out)
    assert (figures["lengths"], figures["max_episode_steps"]) == ([30, 30, 30], 30)


@pytest.mark.usefixtures("torch_as_before")
def test_a_policy_in_torch_plays_on_as_many_threads_as_its_run(tmp_path: Path) -> None:
    """In torch's own number, that of the cores, small networks are slower."""
    run = a_run(tmp_path, "frames_env:Frames-v0", threads=3, network={"encoder": "arm_env:Sines", "hidden": (8,)})
    for command, options in ((evaluate, ["--episodes", "1"]), (record, ["--out", str(tmp_path / "v.gif")])):
        torch.set_num_threads(1)
        assert command.run([str(run), *options]) == 0
        assert torch.get_num_threads() == 3, command


def test_what_an_environment_prints_is_not_among_the_results(tmp_path: Path) -> None:
    done = play(unusual(tmp_path, "prints"), "--episodes", "2", "--json")
    assert json.loads(done.out)["lengths"] == [20, 20]
    assert "a line that the environment prints" in done.err
    assert "and one past Python" in done.err
    assert closed_all(tmp_path)


def test_an_environment_whose_folder_has_moved_is_found_where_it_is_now(tmp_path: Path) -> None:
    before, after = tmp_path / "envs", tmp_path / "elsewhere"
    before.mkdir()
    shutil.copy(Path(__file__).with_name("frames_env.py"), before)
    run = unusual(tmp_path, "odd", path=before)
    before.rename(after)
    for command in ("eval", "record"):
        lost = play(run, command=command)
        assert (lost.code, lost.out, lost.err.count("\n")) == (2, "", 1), lost
        assert f"--env.path {before}: there is no such folder; give the one" in lost.err
    assert json.loads(play(run, "--env.path", "elsewhere", "--episodes", "2", "--json").out)["lengths"] == [20, 20]
    assert "in 20 env steps" in play(run, "--env.path", after, command="record").out
    assert (tmp_path / "r" / "best.mp4").exists()


def test_one_that_raises_once_is_evaluated_all_the_same(tmp_path: Path) -> None:
    done = play(unusual(tmp_path, "raises once"), "--episodes", "4", "--json")
    assert json.loads(done.out)["lengths"] == [20] * 4
    assert "OSError: the bridge is down; it was made anew and its episode played again" in done.err
    assert closed_all(tmp_path)


def test_one_that_exits_again_and_again_is_told(tmp_path: Path) -> None:
    done = play(unusual(tmp_path, "exits"), "--episodes", "4")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
    assert "Frames-v0: step() called sys.exit(0)" in done.err
    assert closed_all(tmp_path)


@pytest.mark.parametrize("command", ["eval", "record"])
def test_a_signal_closes_what_is_played(tmp_path: Path, command: str) -> None:
    done = play(unusual(tmp_path, "signalled"), command=command)
    assert done.code == -signal.SIGTERM
    assert closed_all(tmp_path)
    assert not (tmp_path / "r" / "best.mp4").exists()


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_frames_are_copied_and_of_any_size(tmp_path: Path, suffix: str) -> None:
    """One array that is drawn on again and again; sides of odd length get a dark line more."""
    canvas, out = np.zeros((63, 65, 3), np.uint8), tmp_path / f"v{suffix}"
    with Video(out, "an env", 15) as video:
        for shade in (0, 80, 160, 240):
            canvas[:] = shade
            video.add(canvas)
    side = 1 if suffix == ".mp4" else 0
    raw = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(out), *raw]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, 63 + side, 65 + side, 3)
    assert np.abs(frames[:, 30, 30, 0].astype(int) - [0, 80, 160, 240]).max() < 8


def test_a_picture_of_a_few_pixels_is_enlarged(tmp_path: Path) -> None:
    """Each pixel to a square of its own: 10 x 5 becomes 240 x 120."""
    out, pixels = tmp_path / "v.mp4", np.zeros((5, 10, 3), np.uint8)
    pixels[2, 7] = 250
    with Video(out, "an env", 15) as video:
        video.add(pixels)
    raw = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(out), *raw]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    (frame,) = np.frombuffer(done.stdout, np.uint8).reshape(-1, 120, 240)
    assert (frame[52:68, 172:188] > 200).all()
    assert (frame[:, :160] < 30).all()


@pytest.mark.parametrize(
    ("rendered", "pixel"),
    [
        (np.full((2, 3, 3), 7, np.uint8), 7),
        (np.full((2, 3), 7, np.uint8), 7),
        (np.full((2, 3, 1), 7, np.uint8), 7),
        (np.full((2, 3, 4), 7, np.uint8), 7),
        (np.full((2, 3, 3), 0.5, np.float32), 128),
        (np.full((2, 3, 3), True), 255),
        (np.full((2, 3, 3), 200, np.int64), 200),
        ([[[9, 9, 9]] * 3] * 2, 9),
    ],
    ids=["uint8", "gray", "one channel", "rgba", "float", "bool", "int64", "list"],
)
def test_a_picture_of_any_kind_becomes_colour(rendered: Any, pixel: int) -> None:
    taken = picture("an env", rendered)
    assert taken.shape == (2, 3, 3)
    assert taken.dtype == np.uint8
    assert taken.flags.c_contiguous
    assert set(taken.flatten().tolist()) == {pixel}


@pytest.mark.parametrize(
    ("rendered", "told"),
    [
        (None, "returned None"),
        (np.zeros(4, np.uint8), r"returned an array <uint8>\[4\]"),
        (np.zeros((2, 3, 2), np.uint8), r"<uint8>\[2, 3, 2\]"),
        (np.zeros((0, 3, 3), np.uint8), r"<uint8>\[0, 3, 3\]"),
        (np.full((2, 3, 3), 255.0), r"values of 255\.0 to 255\.0 in dtype float64, where a picture has 0 to 1"),
        (np.full((2, 3, 3), np.nan), "values of nan"),
        (np.full((2, 3, 3), 300), "values of 300 to 300 in dtype int64, where a picture has 0 to 255"),
        ("a picture", "<<U9>"),
    ],
    ids=str,
)
def test_what_is_no_picture_is_refused_with_what_it_is(rendered: Any, told: str) -> None:
    with pytest.raises(EnvError, match=rf"an env: render\(\) .*{told}"):
        picture("an env", rendered)
