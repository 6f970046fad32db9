"""The layers of a configuration, later ones win: defaults, preset, YAML file, environment (QHERD_...), command line."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from actors.config import EnvConfig
from deploy.config.errors import ConfigError
from deploy.config.explain import explain
from deploy.config.models import RENAMED, RunConfig, option_paths
from deploy.config.numbers import problem_of, read_yaml

PRESETS = Path(__file__).parents[1] / "presets"
PREFIX = "QHERD_"
FREE = ("kwargs", "resources")
"""Options that are mappings of whatever the user likes."""
Layer = tuple[str, Mapping[str, Any]]
"""Where a layer of a configuration stands, for messages, and its options, nested."""
MAX_BYTES = 1 << 20
"""No file of options is bigger."""
_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT|_PORT(_\d+_\w+)?$")
"""Variables that Kubernetes sets in every pod beside a service called qherd-something."""


def preset_names() -> list[str]:
    """Returns the presets that come with qherd."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_for(env_id: str) -> str | None:
    """Returns the default preset of an environment."""
    for name in preset_names():
        if fnmatchcase(env_id, read_yaml_file(PRESETS / f"{name}.yaml").get("default_for", "")):
            return name
    return None


def compose(
    env_id: str | None,
    preset: str | None,
    file: Path | None,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Merges defaults, preset, file, environment and a program's ``overrides``, options by dotted name, into one
    config; the command line comes on top of it.

    Raises:
        ConfigError: any of them names something unknown or a value out of its bounds, or an override is given twice.
    """
    layers = list[Layer]()
    if file is not None:
        contents = read_yaml_file(file)
        # a run's own config.yaml has its options below "config"
        layers.append((f"file {file}", contents.get("config", contents) if "versions" in contents else contents))
    layers.append(("environment", options_in(environ)))
    if env_id is not None:
        layers.append(("command line", {"env": {"id": env_id}}))
    if overrides is not None:
        layers.append(("overrides", nested(overrides, "configuration (overrides):\n  ")))
    return merge(layers, preset)


def merge(layers: Sequence[Layer], preset: str | None) -> RunConfig:
    """Merges the defaults, the preset, by default that of the environment, and these layers, of which later ones win.

    Raises:
        ConfigError: any of them names something unknown or a value out of its bounds.
    """
    given = [option_at(layer, "env.id") for _, layer in reversed(layers)]
    name = preset or preset_for(next((known for known in given if known), EnvConfig().id))
    if name is not None:
        layers = [(f"preset {name}", _preset(name)), *layers]
    values: dict[str, Any] = {}
    in_part: dict[Any, str] = {}  # of a section whose options do not fit each other: another layer may have the rest
    for where, layer in layers:
        try:
            RunConfig.model_validate(layer)
        except ValidationError as error:
            if any(not isinstance(_value_at(layer, each["loc"]), Mapping) for each in error.errors()):
                raise ConfigError(explain(error, where)) from None
            in_part |= dict.fromkeys(map(_finding, error.errors()), where)
        merge_into(values, layer)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        found = [in_part.get(_finding(each)) for each in error.errors()]
        named = found if all(found) else [where for where, _ in layers]
        raise ConfigError(explain(error, " and ".join(dict.fromkeys(map(str, named))))) from None


def _finding(error: Any) -> tuple[Any, str]:
    """Returns one of pydantic's findings as something to compare."""
    return error["loc"], error["msg"]


def _value_at(layer: Mapping[str, Any], keys: Sequence[Any]) -> Any:
    """Returns what a layer has at one of pydantic's places."""
    value: Any = layer
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def check_bounds(arguments: Sequence[str]) -> None:
    """Raises ConfigError for a command line's value out of its bounds or after a switch, by the option's dotted name.

    What has the wrong type or is unknown is left to the parser, which shows the option's help with it.
    """
    known = set(option_paths())
    values: dict[str, Any] = {}
    for argument in arguments:
        name, _, text = argument.partition("=")
        if name.startswith("--") and (path := name.removeprefix("--").replace("-", "_")) in known:
            _check_switch(path, text)
        if name.startswith("--") and (now := RENAMED.get(name.removeprefix("--").replace("-", "_"))):
            raise ConfigError(f"{name}: the option is called --{now.replace('_', '-')} now")
    for name, text in pairwise(arguments):
        path = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and path in known:
            _check_switch(path, text)
            with contextlib.suppress(yaml.YAMLError):
                put_option(values, path, read_yaml(text))
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        bounds = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
        if all(finding["type"] in bounds for finding in error.errors()):
            raise ConfigError(explain(error, "command line")) from None


def _check_switch(path: str, text: str) -> None:
    """Raises ConfigError where a value follows a switch, as in a file or in a variable."""
    if _kind_of(path) is bool and text.lower() in ("true", "false"):
        *parents, leaf = path.replace("_", "-").split(".")
        on, off = (f"--{'.'.join([*parents, prefix + leaf])}" for prefix in ("", "no-"))
        raise ConfigError(f"{on} {text}: a switch takes no value; write {on if text.lower() == 'true' else off}")


def put_option(values: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value at a dotted path."""
    *parents, leaf = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[leaf] = value


def nested(options: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Returns options by dotted name, of which a value may be a whole section, as a layer has them: sections within
    sections.

    Raises:
        ConfigError: one is set twice, or they nest too deeply; its text begins with ``where``.
    """
    try:
        found = [(path, _copied(value)) for path, value in _flat(options)]
    except RecursionError:
        raise ConfigError(f"{where}the options nest too deeply, or one is in itself") from None
    for (path, _), (other, _) in pairwise(sorted(found, key=lambda each: each[0])):
        if other[: len(path)] == path:
            twice = ".".join(path)
            raise ConfigError(f"{where}{twice}: it is set twice, by its dotted name or in its section: leave one")
    values: dict[str, Any] = {}
    for path, value in found:
        put_option(values, ".".join(path), value)
    return values


def _copied(value: Any) -> Any:
    """Returns a value whose lists and mappings, at any depth, are not the caller's; what else is in them is."""
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _flat(values: Mapping[Any, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields each option of dotted names and of sections, by the parts of its name."""
    for key, value in values.items():
        path = (*above, *str(key).split("."))
        if isinstance(value, Mapping) and not set(path) & set(FREE):
            yield from _flat(value, path)
        else:
            yield path, value


def _preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise ConfigError(f"preset {name!r} does not exist; one of {', '.join(preset_names())} does")
    values = read_yaml_file(PRESETS / f"{name}.yaml")
    values.pop("default_for", None)
    return values


def _kind_of(path: str) -> Any:
    """Returns the type of an option."""
    kind: Any = RunConfig
    for name in path.split("."):
        kind = kind.model_fields[name].annotation
    return kind


def _takes_text(path: str) -> bool:
    """Returns whether an option is a text, so that a run may be called 12 or 12e4."""
    return _kind_of(path) in (str, str | None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def options_in(environ: Mapping[str, str]) -> dict[str, Any]:
    """Returns the options in variables: QHERD_LEARNER_LR=5e-4 is learner.lr; values are read as YAML.
    QHERD_REDIS_URL_FILE names a file that holds the value of QHERD_REDIS_URL, as containers get their secrets."""
    environ = _with_files(environ)
    known = {variable_of(path): path for path in option_paths()}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or (variable not in known and _KUBERNETES.search(variable)):
            continue
        if variable not in known:
            if now := {variable_of(old): new for old, new in RENAMED.items()}.get(variable):
                raise ConfigError(f"environment variable {variable}: it is called {variable_of(now)} now")
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"environment variable {variable}: there is no such option{hint}")
        try:
            value = read_yaml(text)
            put_option(values, known[variable], text if _is_number(value) and _takes_text(known[variable]) else value)
        except yaml.YAMLError as error:
            secret = known[variable].startswith("redis")  # it may hold a password
            shown = "" if secret else f", {problem_of(error)}: {text!r}"
            raise ConfigError(f"environment variable {variable} is no YAML value{shown}") from None
    return values


def variable_of(path: str) -> str:
    """Returns the environment's variable for an option."""
    return PREFIX + path.upper().replace(".", "_")


def _with_files(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment with the contents of the files that its QHERD_..._FILE name."""
    values = {name: text for name, text in environ.items() if not (name.startswith(PREFIX) and name.endswith("_FILE"))}
    for variable in environ.keys() - values.keys():
        name = variable.removesuffix("_FILE")
        if name in values:
            raise ConfigError(f"environment variables {name} and {variable} are both set; leave one")
        try:
            values[name] = _read_text(Path(environ[variable])).strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "no text"
            raise ConfigError(f"environment variable {variable}: {environ[variable]}: {why}") from None
    return values


def _read_text(path: Path) -> str:
    """Returns what is in a file that the user names, which may be a pipe.

    Raises:
        ConfigError: there is no end to it.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES:,} bytes: it is no file of options, or of a secret")
    return data.decode()


def read_yaml_file(path: Path) -> dict[str, Any]:
    """Returns the options in a file. Raises ConfigError where it cannot be read, or holds none."""
    what = f"config file {path}"
    return parse_yaml(read_text_file(path, what), what)


def read_text_file(path: Path, what: str) -> str:
    """Returns the text of a file that the user names. Raises ConfigError, in which the file is called ``what``."""
    try:
        return _read_text(path)
    except OSError as error:
        raise ConfigError(f"{what}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is no YAML: {error}") from error


def parse_yaml(text: str, what: str) -> dict[str, Any]:
    """Returns the mapping that a YAML document holds. Raises ConfigError, in which the document is called ``what``."""
    try:
        values = read_yaml(text)
    except yaml.YAMLError as error:  # its text quotes the line, which may hold a password
        line = f", line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        raise ConfigError(f"{what}{line} is no YAML: {problem_of(error)}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{what} holds {type(values).__name__}, not options")
    return values or {}


def merge_into(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Puts the options of a layer over those of ``values``; a free mapping replaces one."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict) and key not in FREE:
            merge_into(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, Mapping) else value


def option_at(values: Mapping[str, Any], path: str) -> Any:
    """Returns the value at a dotted path; None where there is none."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None  # type: ignore[assignment]
    return values
