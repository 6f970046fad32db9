"""Other projects' libraries as the other side: each in a venv of its own and, for replay.py, in a process that answers.

Only the standard library is imported here: the peers' scripts import this file in their own venvs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
OURS = ("sb3", "sb3_contrib", "cpprb")
"""Peers that run on our venv's own torch, numpy and gymnasium; TorchRL's compiled part needs another torch."""

Timed = Callable[[], tuple[float, ...]]
"""Does the work of one repetition once; returns the seconds of each of its parts."""


def peer_python(name: str) -> Path:
    """The Python of the peer's venv, made once for each content of requirements-{name}.txt, which is all that the peer
    needs beside what it has of ours."""
    requirements = HERE / f"requirements-{name}.txt"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qherd"
    ours = sysconfig.get_path("purelib") if name in OURS else ""
    digest = hashlib.sha256(requirements.read_bytes() + f"{sys.version} {ours}".encode()).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    print(f"  installing {requirements.name} in {folder} (once)", flush=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    subprocess.run([*pip, *(["--no-deps"] if ours else []), "-r", str(requirements)], check=True)
    if ours:
        (next(folder.glob("lib/python*/site-packages")) / "ours.pth").write_text(f"{ours}\n")
    (folder / "ready").touch()
    return python


def peer_command(name: str, *options: str, script: str | None = None) -> list[str]:
    """Returns what runs a peer's script, {name}_peer.py unless it is another ``script``, in REPOSITORY. As a module:
    with the script's folder first on sys.path, the package ``replay`` would be benchmarks/replay.py."""
    return [str(peer_python(name)), "-m", f"benchmarks.{script or f'{name}_peer'}", *options]


def outcome_of(peer: str, output: str) -> dict[str, Any]:
    """Returns what a peer that trained has printed last, one line of JSON.

    Raises:
        RuntimeError: there is no such line, or it made no update: what did not run has no figure.
    """
    try:
        outcome = json.loads(output.splitlines()[-1])
        updates = outcome["updates"]
    except (IndexError, KeyError, TypeError, ValueError):
        raise RuntimeError(f"{peer} ended without an outcome: {output[-500:]!r}") from None
    if not updates:
        raise RuntimeError(f"{peer} made no update: {outcome}")
    return dict(outcome)


class Peer:
    """A peer's script at work: it fills its buffers once and then waits for questions."""

    def __init__(self, name: str, **setting: Any) -> None:
        """``setting`` goes to the script by its standard input: it may hold a password."""
        self._name = name
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        self._process = subprocess.Popen(
            peer_command(name),
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.about: str = self._ask(setting)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._process.communicate(timeout=30)  # it ends with its input
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def seconds(self, what: str, times: int) -> tuple[float, ...]:
        """Median seconds of each part of ``what``, over so many times."""
        return tuple(self._ask({"what": what, "times": times}))

    def _ask(self, question: dict[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: told below
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
        while line := stdout.readline():
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        stdout.close()
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        raise RuntimeError(f"the peer {self._name} ended with {self._process.wait()}; its error is above")


def answer(prepare: Callable[[dict[str, Any]], tuple[str, dict[str, Timed]]]) -> None:
    """A peer script's loop: ``prepare`` gets the setting; returns what the peer is and what can be asked."""
    about, measures = prepare(json.loads(sys.stdin.readline()))
    print("ANSWER", json.dumps(about), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        print("ANSWER", json.dumps(medians(measures[question["what"]], question["times"])), flush=True)


def medians(timed: Timed, times: int) -> tuple[float, ...]:
    """Median seconds of each part over ``times`` repetitions."""
    return tuple(median(part) for part in zip(*(timed() for _ in range(times)), strict=True))


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of a call, and what it returned."""
    started = time.perf_counter()
    returned = call()
    return time.perf_counter() - started, returned
