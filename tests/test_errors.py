"""Errors meant for users have one base, which the command line prints as a message."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.errors import ContractError, EnvError
from actors.supervision.restarts import CrashLoopError
from deploy import cli
from deploy.commands import scale
from deploy.config.errors import ConfigError, RunDirError, RunFailedError
from deploy.server.embedded import ServerStartError
from learner.checkpoint import CheckpointError
from learner.report import Diverged
from replay.chunk_log.protocol import LogError
from replay.chunk_log.urls import UrlError
from replay.errors import QherdError
from replay.storage import CannotFit

ROOT = Path(__file__).resolve().parent.parent
INTERNAL = {
    "_TooLong": "a limit on the time that an environment's close() may take, caught where it is set",
    "Interrupted": "a signal: the command ends by its own exit code",
    "_Masked": "an environment that is looked at again, with its action masks",
    "EvaluationStopped": "the driver has cancelled an evaluation",
    "TimeUp": "a hold-out that has to end, caught by the evaluator",
    "NotNowError": "a start that is tried again later",
    "BadChunk": "a chunk that the learner refuses, counts and keeps",
    "Mismatch": "an observation that is not of its space: whoever asked for it says which environment returned it",
    "Unreadable": "a file whose reader names it in an error of its own",
    "Refused": "a tracker that cannot be used: its process sends the text, which the run's command shows",
    "BadColumn": "a column of a dataset, whose reader names the dataset and the episode in a DatasetError",
    "Unbalanced": "a defect: the ledger's counts contradict each other",
}
"""Exceptions whose text ends on no terminal, by the reason."""


def exceptions() -> Iterator[tuple[str, set[str]]]:
    """The product's exception classes with the names of all their bases, but for the root of them."""
    bases: dict[str, set[str]] = {}
    for package in ("replay", "learner", "actors", "deploy"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases.setdefault(node.name, set()).update(ast.unparse(base) for base in node.bases)

    def above(name: str) -> set[str]:
        return {name}.union(*(above(base) for base in bases.get(name, ())))

    for name in bases:
        roots = (getattr(builtins, base, None) for base in above(name))
        if name != "QherdError" and any(isinstance(root, type) and issubclass(root, BaseException) for root in roots):
            yield name, above(name)


def test_every_exception_is_for_users_or_has_a_reason_not_to_be() -> None:
    found = dict(exceptions())
    assert len(found) > 25
    assert {name for name, above in found.items() if "QherdError" not in above} == INTERNAL.keys()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("why"), 2),
        (EnvError("why"), 2),
        (ContractError("why"), 2),
        (RunDirError("why"), 2),
        (ServerStartError("why"), 2),
        (LogError("why"), 2),
        (UrlError("why"), 2),
        (CannotFit("why"), 2),
        (CheckpointError("why"), 2),
        (RunFailedError("why", "a traceback"), 1),
        (CrashLoopError("why", "a traceback"), 1),
        (Diverged("why"), 1),
        (type("Another", (QherdError,), {"exit_code": 7})("why"), 7),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_for_users_is_one_message_and_its_exit_code(
    error: QherdError, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(scale, "run", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main(["scale", "runs/x"])
    assert ended.value.code == code
    assert capsys.readouterr() == ("", "qherd: why\n")


def test_a_defect_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(scale, "run", fails)
    with pytest.raises(ZeroDivisionError):
        cli.main(["scale", "runs/x"])
