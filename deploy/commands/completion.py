"""``qherd completion``: have a shell complete commands, options and their values.

What is printed is a script of the shell's own: it has all names in it, and no Python starts while somebody types.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deploy.config.cli_types import as_written
from deploy.config.layers import preset_names
from learner.algorithms import ALGORITHMS
from learner.networks import ENCODERS
from replay.samplers import SAMPLERS


class Completion(BaseModel):
    """Print a script that has a shell complete commands, options and their values.

    bash: qherd completion bash > ~/.local/share/bash-completion/completions/qherd (with the package bash-completion;
    without it, source the script in ~/.bashrc).

    zsh: qherd completion zsh > _qherd, in a folder of $fpath, before compinit.

    fish: qherd completion fish > ~/.config/fish/completions/qherd.fish
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional, tyro.conf.arg(metavar="bash|zsh|fish")]
    """The shell. Its script is that of this qherd: print it anew with another version."""


class Option(NamedTuple):
    """An option as it is typed, or a positional argument, which has no name. ``choices``: its values, as far as they
    can be listed."""

    name: str
    flag: bool = False
    choices: tuple[str, ...] = ()


class Command(NamedTuple):
    """A command and what it takes."""

    about: str
    options: tuple[Option, ...]


def run(arguments: list[str], modules: Mapping[str, str]) -> int:
    """Runs the command; returns its exit code. ``modules``: of all commands, below ``deploy.commands``."""
    call = tyro.cli(Completion, args=arguments, prog="qherd completion", registry=as_written())
    found = {name: command_in(import_module(f"deploy.commands.{module}")) for name, module in modules.items()}
    print(SCRIPTS[call.shell](found), end="")
    return 0


def command_in(module: ModuleType) -> Command:
    """Returns the command of a module: what the models in it say that it takes."""
    models = [
        model
        for model in vars(module).values()
        if isinstance(model, type) and issubclass(model, BaseModel) and model.__module__ == module.__name__
    ]
    options = dict.fromkeys(option for model in models for option in _options(model, ""))
    about = re.split(r"[.:;](?: |$)", " ".join((models[0].__doc__ or "").split()))[0]
    return Command(about, (*options, Option("--help", flag=True)))


def _options(model: type[BaseModel], prefix: str) -> Iterator[Option]:
    """Yields a model's options as tyro names them."""
    listed = {
        "preset": preset_names(),
        "learner.algorithm": ALGORITHMS,
        "learner.network.encoder": ["auto", *ENCODERS],
        "replay.sampler": SAMPLERS,
    }
    for field, info in model.model_fields.items():
        kind, name = info.annotation, _name_of(field, info)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _options(kind, f"{prefix}{name}." if name else prefix)
        elif tyro.conf.Positional in info.metadata:
            yield Option("", choices=_choices(kind))
        elif kind is bool:
            yield Option(f"--{prefix}{name}", flag=True)
            if tyro.conf.FlagCreatePairsOff not in info.metadata:
                yield Option(f"--{prefix}no-{name}", flag=True)
        else:
            path = f"{prefix}{field}"
            yield Option(f"--{prefix}{name}", choices=tuple(listed[path]) if path in listed else _choices(kind))


def _name_of(field: str, info: FieldInfo) -> str:
    given = [mark.name for mark in info.metadata if hasattr(mark, "prefix_name") and mark.name is not None]
    return given[0] if given else field.replace("_", "-")


def _choices(kind: Any) -> tuple[str, ...]:
    """Returns the values of a Literal, also one within a union or a tuple."""
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    return tuple(value for part in get_args(kind) for value in _choices(part))


# -- the scripts. Where they offer nothing, the shell offers files: runs, configurations, folders


def _values(commands: Mapping[str, Command]) -> dict[tuple[str, tuple[str, ...]], list[str]]:
    """Returns the commands in which an option, or a positional argument, has these values."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, command in commands.items():
        for option in command.options:
            if option.choices:
                found.setdefault((option.name, option.choices), []).append(name)
    return found


def _groups(commands: Mapping[str, Command]) -> dict[str, list[str]]:
    """Returns the second words of commands that have two, by the first."""
    found: dict[str, list[str]] = {}
    for first, *second in map(str.split, commands):
        found.setdefault(first, []).extend(second)
    return {first: second for first, second in found.items() if second}


def _first_words(commands: Mapping[str, Command]) -> dict[str, str]:
    """Returns what the first word can be, and what that does."""
    found: dict[str, str] = {}
    for name, command in commands.items():
        found.setdefault(name.split()[0], command.about)
    return found


def _names(command: Command) -> str:
    return " ".join(option.name for option in command.options if option.name)


def _cases(commands: Mapping[str, Command], pattern: str, assignment: str) -> Iterator[str]:
    """Yields a line of bash's and zsh's ``case``, on "COMMAND OPTION", for each option whose values are listed.
    ``pattern``, ``assignment``: the shell's own way to write the line's two halves."""
    for (option, choices), names in _values(commands).items():
        on = "|".join(f'"{name} {option}"' if option else f'"{name} {name.split()[-1]}"' for name in names)
        yield f"        {pattern % on} {assignment % ' '.join(choices)} ;;"


def _bash(commands: Mapping[str, Command]) -> str:
    lines = [
        "# bash completion for qherd",
        "_qherd() {",
        "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}",
        '    local command=${COMP_WORDS[1]} words=""',
        '    if [[ $word == "=" ]]; then',
        '        word=""',
        '    elif [[ $before == "=" ]]; then',
        "        before=${COMP_WORDS[COMP_CWORD - 2]}",
        "    fi",
        "    case $COMP_CWORD:$command in",
        f'        1:*) words="{" ".join(_first_words(commands))} --help --version" ;;',
        *(f'        2:{first}) words="{" ".join(second)}" ;;' for first, second in _groups(commands).items()),
        *(f'        *:{first}) command="{first} ${{COMP_WORDS[2]}}" ;;' for first in _groups(commands)),
        "    esac",
        '    case "$command $before" in',
        *_cases(commands, "%s)", 'words="%s"'),
        "    esac",
        "    if [[ -z $words && $word == -* ]]; then",
        "        case $command in",
        *(f'            "{name}") words="{_names(command)}" ;;' for name, command in commands.items()),
        "        esac",
        "    fi",
        "    # shellcheck disable=SC2207",
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _qherd qherd",
    ]
    return "\n".join(lines) + "\n"


def _zsh(commands: Mapping[str, Command]) -> str:
    about = (f"{name}:{text}" for name, text in _first_words(commands).items())
    lines = [
        "#compdef qherd",
        "_qherd() {",
        "    local before=$words[CURRENT-1] command=$words[2]",
        "    local -a offered",
        "    if [[ $PREFIX == --*=* ]]; then",
        "        before=${PREFIX%%=*}",
        "        compset -P '*='",
        "    fi",
        "    case $CURRENT:$command in",
        "        (2:*)",
        f"            offered=({' '.join(map(shlex.quote, about))} --help --version)",
        "            _describe command offered",
        "            return ;;",
        *(f"        (3:{first}) offered=({' '.join(second)}) ;;" for first, second in _groups(commands).items()),
        *(f'        (*:{first}) command="{first} $words[3]" ;;' for first in _groups(commands)),
        "    esac",
        '    case "$command $before" in',
        *_cases(commands, "(%s)", "offered=(%s)"),
        "    esac",
        "    if (( ! $#offered )) && [[ $PREFIX == -* ]]; then",
        "        case $command in",
        *(f'            ("{name}") offered=({_names(command)}) ;;' for name, command in commands.items()),
        "        esac",
        "    fi",
        "    if (( $#offered )); then",
        "        compadd -a offered",
        "    else",
        "        _files",
        "    fi",
        "}",
        "if [[ $zsh_eval_context[-1] == loadautofunc ]]; then",
        '    _qherd "$@"',
        "else",
        "    compdef _qherd qherd",
        "fi",
    ]
    return "\n".join(lines) + "\n"


def _fish(commands: Mapping[str, Command]) -> str:
    lines = ["# fish completion for qherd"]
    first = {**_first_words(commands), "--help": "", "--version": ""}
    for name, about in first.items():
        lines.append(f"complete -c qherd -n __fish_use_subcommand -f -a {name} -d {shlex.quote(about)}")
    for name, second in _groups(commands).items():
        on = f"__fish_seen_subcommand_from {name}; and test (count (commandline -opc)) -eq 2"
        lines.append(f'complete -c qherd -n "{on}" -f -a "{" ".join(second)}"')
    options: dict[Option, list[str]] = {}
    for name, command in commands.items():
        for option in command.options:
            options.setdefault(option, []).append(name.split()[0])
    for option, names in options.items():
        line = f'complete -c qherd -n "__fish_seen_subcommand_from {" ".join(names)}"'
        if option.name:
            line += f" -l {option.name.removeprefix('--')}" + ("" if option.flag else " -r")
        if option.choices:
            line += f' -f -a "{" ".join(option.choices)}"'
        if option.name or option.choices:
            lines.append(line)
    return "\n".join(lines) + "\n"


SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
