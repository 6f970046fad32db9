"""The page for those who bring parts of their own: its example, as printed, trains, resumes and plays."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from cli_runs import qherd, summary

from learner.checkpoint import names, read

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text()
SHORT = ("--eval.every-updates", "300", "--eval.screen-episodes", "2", "--eval.threshold", "None")

BROKEN_LOSS = """
from learner.algorithms import Algorithm


def build(config):
    return {}["kappa"]


BROKEN = Algorithm("broken_loss:build", head="values")
"""


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A folder with the page's module."""
    (module,) = re.findall(r"```python file=own_parts.py\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "own_parts.py").write_text(module)
    (tmp_path / "exits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "broken.py").write_text("class Sines(:\n")
    (tmp_path / "broken_loss.py").write_text(BROKEN_LOSS)
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize(("mode", "env_steps"), [("inline", (3_000, 6_000)), ("local", (4_000, 9_000))])
def test_the_pages_parts_train_resume_and_play(cwd: Path, mode: str, env_steps: tuple[int, int]) -> None:
    """Its command as printed, with a name, a mode and a budget; the checkpoint holds the encoder's parameters."""
    (printed,) = re.findall(r"```sh\n(qherd train .*?)\n```", PAGE)
    command = [*printed.split()[1:], *SHORT, "--run", "own", "--mode", mode, "--budget.env-steps"]
    done = qherd(*command, str(env_steps[0]), cwd=cwd)
    assert done.code == 0, done
    run = cwd / "runs" / "own"
    first = summary(run)
    assert first["updates"] > 100
    done = qherd("resume", "runs/own", "--budget.env-steps", str(env_steps[1]), cwd=cwd)
    assert done.code == 0, done
    assert summary(run)["updates"] > first["updates"]
    parts = read(run / "checkpoints", names(run / "checkpoints")[0])
    newest, column = parts["learner"].arrays, parts["mirror"].arrays["column.lean"]
    assert 0 < np.abs(column).max() < 0.5, "the angle at which CartPole ends is 0.21"
    assert newest["online"].shape == (4 * 64 + 64 + 2 * (64 * 2 + 2),), "Sines and Twins, nothing else"
    done = qherd("eval", "runs/own", "--episodes", "3", cwd=cwd)
    assert done.code == 0, done
    assert "3 greedy episodes" in done.out


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--learner.network.encoder", "own_parts:Cosines", "module 'own_parts' has no attribute 'Cosines'"),
        ("--learner.algorithm", "own_parts:log_cosh", "is a function; it has to be a learner.algorithms.Algorithm"),
        ("--learner.network.encoder", "exits:Sines", "'exits:Sines' cannot be imported: SystemExit: 3"),
        ("--learner.network.encoder", "broken:Sines", "'broken:Sines' cannot be imported: SyntaxError: "),
        ("--learner.algorithm", "sarsa", "algorithm 'sarsa' is unknown: use dqn"),
        ("--replay.sampler", "own_parts:Older", "module 'own_parts' has no attribute 'Older'"),
        ("--replay.sampler", "newest", "sampler 'newest' is unknown: use uniform, prioritised"),
        ("--replay.sampler", "math:sqrt", "sampler 'math:sqrt' is no class with make, planned_bytes, sample, update, "),
        ("--learner.network.encoder", "math:sqrt", "encoder 'math:sqrt' cannot be made: TypeError: math.sqrt() takes "),
        ("--learner.network.encoder", "types:SimpleNamespace", "cannot be made: TypeError: "),
        ("--learner.network.encoder", "unittest.mock:Mock", "is a Mock; it has to be a torch.nn.Module with features"),
        ("--learner.algorithm", "broken_loss:BROKEN", "loss 'broken_loss:build' cannot be made: KeyError: 'kappa'"),
        (
            "--learner.network.encoder",
            "minatar",
            "wants pictures of at least 3 x 3 pixels, got observations of shape (4,); use mlp",
        ),
    ],
)
def test_what_is_not_there_is_refused_at_once(cwd: Path, option: str, value: str, why: str) -> None:
    """Exit code 2, in words, before anything is started."""
    done = qherd("train", "CartPole-v1", "--env.path", ".", "--run", "own", option, value, cwd=cwd)
    assert done.code == 2
    assert why in done.err
    assert "Traceback" not in done.err
    assert not (cwd / "runs" / "own").exists()
