"""Every command that the documents print: read by linters in any case, and run as printed from a fresh clone."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cli_runs import MARK, ROOT, Run, end_all, running, summary
from doc_blocks import LANGUAGES, NEEDS, Block, blocks
from pydantic import BaseModel
from test_deploy_files import on_path

from deploy import cli
from deploy.commands.clean import Clean
from deploy.commands.compare import Compare
from deploy.commands.completion import Completion
from deploy.commands.dataset import Dataset
from deploy.commands.discovery import Discovery
from deploy.commands.doctor import Doctor
from deploy.commands.evaluate import Eval
from deploy.commands.export import Export
from deploy.commands.plan import Plan
from deploy.commands.record import Record
from deploy.commands.replay_stats import ReplayStats
from deploy.commands.report import Reported
from deploy.commands.resume import Resume
from deploy.commands.runs import Runs
from deploy.commands.scale import Scale
from deploy.commands.secrets import Secrets
from deploy.commands.study import StudyCommand
from deploy.commands.train import Train
from deploy.commands.watch import Watch
from deploy.config.models import RunConfig, option_paths

SHELL = [block for block in blocks() if block.language == "sh"]
RUN = [block for block in blocks() if block.runs]
RUN_S = 3.0
"""Of training, in QHERD_BUDGET_SECONDS of the blocks' runs: the one thing in which they differ from what is printed.
Studies take no such variable; those of the blocks are dry runs."""
BLOCK_S = 400.0
MODELS: dict[str, list[type[BaseModel]]] = {
    "train": [Train, RunConfig],
    "plan": [Plan, RunConfig],
    "doctor": [Doctor, RunConfig],
    "resume": [Resume, RunConfig],
    "scale": [Scale],
    "eval": [Eval],
    "record": [Record],
    "report": [Reported],
    "runs": [Runs],
    "watch": [Watch],
    "compare": [Compare],
    "export": [Export],
    "dataset": [Dataset],
    "replay": [ReplayStats],
    "clean": [Clean],
    "secrets": [Secrets],
    "study": [StudyCommand],
    "discovery": [Discovery],
    "completion": [Completion],
}


def named(found: list[Block]) -> list[object]:
    return [pytest.param(block, id=block.where) for block in found]


def qherd_commands(block: Block) -> Iterator[list[str]]:
    """The words after ``qherd`` of each of its commands."""
    for words in block.commands():
        bare = list(itertools.dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=.*", word), words))
        if bare[:1] == ["qherd"]:
            yield bare[1:]


# -- what is printed


def test_every_fence_says_what_its_block_is() -> None:
    wrong = [
        f"{block.where}: {block.language} {block.attributes}"
        for block in blocks()
        if block.language not in LANGUAGES
        or not block.attributes.keys() <= {"needs", "while", "file"}
        or block.attributes.get("needs", "docker") not in NEEDS
    ]
    assert wrong == []
    assert {block.attributes["needs"] for block in SHELL if "needs" in block.attributes} == set(NEEDS)
    assert len(RUN) >= 10


@pytest.mark.parametrize("block", named(SHELL))
def test_a_shell_accepts_it(block: Block) -> None:
    # SC2088: a ~ in quotes, which the other machine's shell is to expand
    command = [on_path("shellcheck"), "--shell", "bash", "--exclude", "SC2088", "-"]
    done = subprocess.run(command, input=block.text, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("block", named(SHELL))
def test_its_options_are_qherds(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names, and of qherd train also by their values: the configuration is resolved."""
    monkeypatch.chdir(tmp_path)
    for words in qherd_commands(block):
        known = {
            path.replace("_", "-").removeprefix("options.").removeprefix("as-").removesuffix("-")
            for model in MODELS[words[0]]
            for path in option_paths(model)
        }
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert {option[2:].replace("_", "-") for option in options} <= known | {"help"}, words
        if words[0] == "train" and not {"--help", "--config"} & options:
            with pytest.raises(SystemExit) as ended:
                cli.main([*words, "--dry-run"])
            assert ended.value.code == 0, words


@pytest.mark.parametrize("block", named(SHELL))
def test_what_it_names_is_in_the_repository(block: Block) -> None:
    """Files below deploy/, docs/ and benchmarks/, modules, and targets of make."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for words in block.commands():
        for word in words:
            made = "/secrets" in word
            if re.fullmatch(r"(\./)?(deploy|docs|benchmarks)/[\w./-]+", word) and not made:
                assert (ROOT / word).exists(), word
        if words[:1] == ["make"]:
            assert words[1] in targets, words
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), words


# -- what they do


def repeated(block: Block) -> bool:
    """Whether an earlier block of the same kind has all of its commands."""
    alike = [each for each in RUN[: RUN.index(block)] if each.attributes == block.attributes]
    return block.language == "sh" and any(
        all(words in list(each.commands()) for words in block.commands()) for each in alike if each.language == "sh"
    )


ONCE = [block for block in RUN if not repeated(block)]
ALONE = [block for block in ONCE if "while" not in block.attributes]
MEANWHILE = [block for block in ONCE if "while" in block.attributes]


OWN = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class MyEnv(CartPoleEnv):
    def __init__(self, level=1, render_mode=None):
        super().__init__(render_mode=render_mode)

gym.register("MyEnv-v0", MyEnv)
"""


def fresh_clone(folder: Path) -> Path:
    """The working tree's files as ``git clone`` gives them: nothing that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    (folder / "envs").mkdir()
    # what a user of the README's first block has: an environment of his own
    (folder / "envs" / "my_module.py").write_text(OWN)
    for block in blocks():
        if "file" in block.attributes:
            (folder / block.attributes["file"]).write_text(block.text)
    return folder


SHORT = ("--eval.every-updates", "300", "--eval.screen-episodes", "2", "--eval.threshold", "None")


TRAIN = ("train", "CartPole-v1", "--run", "NAME", *SHORT)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was interrupted as soon as it had evaluated a policy."""
    folder = tmp_path_factory.mktemp("interrupted")
    with running(*TRAIN, cwd=folder) as run:
        run.until(lambda: any("greedy_return" in row for row in run.rows("NAME")), 90, "evaluated policy")
        run.process.send_signal(signal.SIGTERM)
        assert run.finish(60).code == 75
    return folder / "runs" / "NAME"


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", named([block for block in ALONE if "runs/NAME" not in block.text]))
def test_it_runs_as_printed(block: Block, tmp_path: Path) -> None:
    """In a fresh clone, with a home of its own and the virtual environment activated; each command has to succeed, and
    each run has to learn."""
    clone = fresh_clone(tmp_path / "clone")
    assert_runs(block, clone, tmp_path, RUN_S)
    for run in clone.glob("runs/*"):
        assert summary(run)["updates"] > 0, run


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", named([block for block in ALONE if "runs/NAME" in block.text]))
def test_what_is_printed_for_an_interrupted_run_runs(block: Block, interrupted: Path, tmp_path: Path) -> None:
    """And the run goes on where one of the commands resumes it, and nowhere else."""
    clone = fresh_clone(tmp_path / "clone")
    shutil.copytree(interrupted, clone / "runs" / "NAME")
    before = summary(interrupted)
    assert_runs(block, clone, tmp_path, before["wall_s"] - before["start_s"] + RUN_S)
    resumes = any(words[0] == "resume" for words in qherd_commands(block))
    assert (summary(clone / "runs" / "NAME")["updates"] > before["updates"]) == resumes


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_is_printed_for_a_run_at_work_runs(tmp_path: Path) -> None:
    """All those blocks, one after the other, beside one run, which goes on."""
    clone = fresh_clone(tmp_path / "clone")
    with running(*TRAIN, cwd=clone) as run:
        run.until(lambda: run.figure("NAME", "updates") > 0, 90, "updates")
        for number, block in enumerate(MEANWHILE):
            (folder := tmp_path / str(number)).mkdir()
            assert_runs(block, clone, folder, RUN_S)
            assert run.process.poll() is None, (block.where, run.err)


def assert_runs(block: Block, clone: Path, folder: Path, budget_s: float) -> None:
    program = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    studies = any(words[0] == "study" for words in qherd_commands(block))  # they have their budgets from their files
    shorter = {} if studies else {"QHERD_BUDGET_SECONDS": str(budget_s)}
    code, shown = run_as_user([*program, block.text], clone, folder, shorter)
    assert code == 0, (block.where, shown)


def run_as_user(command: list[str], clone: Path, folder: Path, more: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and output of a command; whatever it leaves is ended."""
    (folder / "home").mkdir()
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as tmp:
        env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "TMPDIR": tmp,
            "LANG": "C.UTF-8",
            MARK: mark,
            **more,
        }
        with (folder / "out").open("w") as out:
            process = subprocess.Popen(
                command, cwd=clone, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        try:
            code = process.wait(BLOCK_S)
        finally:
            process.kill()
            process.wait()
            end_all(Run(process, Path(tmp), clone, mark, (folder / "out", folder / "out")))  # type: ignore[arg-type]
    return code, (folder / "out").read_text()[-5000:]
