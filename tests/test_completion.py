"""Shell completion: what the printed scripts offer, asked of the shells themselves."""

from __future__ import annotations

import ast
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import tyro
from pydantic import BaseModel
from test_deploy_files import on_path

from deploy.cli import COMMANDS, main
from deploy.commands.completion import SCRIPTS, command_in
from deploy.config.cli_types import as_written


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The scripts as files, by shell."""
    commands = {name: command_in(import_module(f"deploy.commands.{module}")) for name, module in COMMANDS.items()}
    folder = tmp_path_factory.mktemp("scripts")
    for shell, script in SCRIPTS.items():
        (folder / shell).write_text(script(commands))
    return {shell: folder / shell for shell in SCRIPTS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a run, as a user has it."""
    (tmp_path / "runs" / "NAME").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_command_prints_the_script(
    shell: str, scripts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", shell])
    assert (ended.value.code, capsys.readouterr().out) == (0, scripts[shell].read_text())


@pytest.mark.parametrize("module", COMMANDS.values())
def test_the_options_are_those_that_the_command_line_takes(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Compared with what tyro itself takes of the command's models."""
    code = import_module(f"deploy.commands.{module}")
    taken = set[str]()
    for model in vars(code).values():
        if isinstance(model, type) and issubclass(model, BaseModel) and model.__module__ == code.__name__:
            with pytest.raises(SystemExit):
                tyro.cli(model, args=["--tyro-print-completion", "bash"], registry=as_written())
            found = re.search(r"^COMPLETION_SPEC = (.*)$", capsys.readouterr().out, re.M)
            assert found is not None
            taken |= {flag for option in ast.literal_eval(found[1])["options"] for flag in option["flags"]}
    assert {option.name for option in command_in(code).options if option.name} == taken - {"-h"}


# -- each shell, as a user has it

OFFERED = [
    pytest.param("qherd comp", {"compare", "completion"}, id="a command"),
    pytest.param("qherd --v", {"--version"}, id="an option of qherd"),
    pytest.param(
        "qherd train --learner.munchausen.", {"enabled", "no-enabled", "alpha", "clip", "tau"}, id="an option"
    ),
    pytest.param("qherd train --replay.sampler p", {"prioritised"}, id="a value"),
    pytest.param("qherd plan --seed 3 --preset mo", {"mountaincar"}, id="a preset"),
    pytest.param("qherd resume runs/NAME --mo", {"--mode"}, id="after a run"),
    pytest.param("qherd export runs/NAME --format ", {"onnx", "torch", "numpy"}, id="all values"),
    pytest.param("qherd eval --js", {"--json"}, id="an option by its other name"),
    pytest.param("qherd replay ", {"stats"}, id="a second word"),
    pytest.param("qherd replay stats --redis.ur", {"--redis.url", "--redis.urls"}, id="of two words"),
    pytest.param("qherd completion ", {"bash", "zsh", "fish"}, id="a positional argument"),
]
"""A line, and what the shell offers for its last word."""


def whole(line: str, offered: set[str]) -> set[str]:
    """The words themselves of those that are given without what the line has already."""
    start = line.rpartition(" ")[2]
    return {word if word.startswith(start) else start + word for word in offered}


@pytest.mark.parametrize(("line", "offered"), OFFERED)
def test_bash_offers(line: str, offered: set[str], scripts: dict[str, Path], folder: Path) -> None:
    """With no program on PATH: nothing is started while somebody types."""
    assert bash(scripts["bash"], line, folder) == whole(line, offered)


def test_bash_offers_values_after_an_equals_sign(scripts: dict[str, Path], folder: Path) -> None:
    assert bash(scripts["bash"], "qherd train --mode = in", folder) == {"inline"}
    assert bash(scripts["bash"], "qherd train --mode =", folder) == {"inline", "local", "cluster"}


def test_bash_leaves_runs_to_its_own_completion_of_files(scripts: dict[str, Path], folder: Path) -> None:
    assert bash(scripts["bash"], "qherd resume ru", folder) == set()
    shown = subprocess.run(
        ["bash", "-c", f". {scripts['bash']}; complete -p qherd"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "complete -o default -F _qherd qherd\n"


def bash(script: Path, line: str, folder: Path) -> set[str]:
    """What the completion function leaves in COMPREPLY."""
    program = """. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _qherd; printf '%s\\n' "${COMPREPLY[@]}" """
    done = subprocess.run(
        [on_path("bash"), "--norc", "-c", program, "bash", script, *line.split(" ")],
        cwd=folder,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_a_linter_accepts_the_script_for_bash(scripts: dict[str, Path]) -> None:
    done = subprocess.run(
        [on_path("shellcheck"), "--shell", "bash", scripts["bash"]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("line", "offered"), [*OFFERED, pytest.param("qherd resume ru", {"runs/"}, id="a run")])
def test_fish_offers(line: str, offered: set[str], scripts: dict[str, Path], folder: Path) -> None:
    program = f"source {scripts['fish']}; complete -C {line!r}"
    done = subprocess.run(
        [on_path("fish"), "--no-config", "-c", program],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert {each.partition("\t")[0] for each in done.stdout.splitlines()} == whole(line, offered), done.stderr


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("qherd disc", "qherd discovery "),
        ("qherd train --learner.munchausen.t", "qherd train --learner.munchausen.tau "),
        ("qherd train --replay.sampler p", "qherd train --replay.sampler prioritised "),
        ("qherd train --mode=i", "qherd train --mode=inline "),
        ("qherd replay st", "qherd replay stats "),
        ("qherd resume ru", "qherd resume runs/"),
    ],
)
def test_zsh_completes(line: str, completed: str, zsh: Zsh) -> None:
    assert zsh.complete(line) == completed


class Zsh:
    """An interactive zsh on a terminal of its own, which prints the line that Tab has made in place of running it."""

    SHOWN = re.compile(r"<<(.*?)>>", re.S)

    def __init__(self, script: Path, folder: Path) -> None:
        (folder / "fpath").mkdir()
        (folder / "fpath" / "_qherd").write_text(script.read_text())
        (folder / ".zshrc").write_text(
            f"PS1=; unsetopt zle_bracketed_paste beep; fpath=({folder}/fpath $fpath)\n"
            f"autoload -U compinit; compinit -D -u\n"
            'show() { print -r -- "<""<$BUFFER>"">"; BUFFER=\'\'; zle accept-line }\nzle -N show; bindkey \'^G\' show\n'
        )
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(on_path("zsh"), ["zsh", "-i"], {**os.environ, "ZDOTDIR": str(folder), "TERM": "dumb"})
        self._seen = ""

    def complete(self, line: str) -> str:
        """The line after Tab."""
        self._seen = ""
        os.write(self._fd, f"{line}\t\x07".encode())
        end = time.monotonic() + 30
        while (found := self.SHOWN.search(self._seen)) is None:
            assert time.monotonic() < end, self._seen
            if select.select([self._fd], [], [], 0.1)[0]:
                self._seen += os.read(self._fd, 65536).decode(errors="replace")
        return found[1]

    def close(self) -> None:
        """Ends it."""
        os.close(self._fd)  # a terminal that is gone: SIGHUP
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def zsh(scripts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zsh]:
    """One for all lines."""
    folder = tmp_path_factory.mktemp("zsh")
    (folder / "runs" / "NAME").mkdir(parents=True)
    on_path("zsh")
    shell = Zsh(scripts["zsh"], folder)
    yield shell
    shell.close()
