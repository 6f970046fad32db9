"""A study's file: environments x variants x seeds, each a run with a budget."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from deploy.config.changes import WHERE
from deploy.config.errors import ConfigError
from deploy.config.layers import (
    Layer,
    merge,
    nested,
    option_at,
    options_in,
    parse_yaml,
    read_text_file,
    variable_of,
)
from deploy.config.models import RUN_NAME, RedisConfig, RunConfig, option_paths
from deploy.run_directory.evaluation import MAX_EPISODES
from replay.chunk_log.urls import public_url

KEYS = ("study", "environments", "variants", "seeds", "budget", "options", "episodes")
KEPT = "study.yaml"
"""A study's file in the study's folder."""
OWN = {"run": "study", "runs_dir": "study", "seed": "seeds", "env.id": "environments"}
"""Options that a study gives its runs itself, and the key that they follow from."""
MAX_RUNS, MAX_SEED, EPISODES = 10_000, 2**63 - 1, 100
_VARIANT = re.compile(r"(?!.*--)[A-Za-z0-9][A-Za-z0-9._-]*")


class StudyRun(NamedTuple):
    """One run of a study."""

    env: str
    variant: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """The run's name and folder."""
        return str(self.config.run)


class Study(NamedTuple):
    """A study's file as it was read. ``text``: all of it; ``episodes``: of each final evaluation."""

    name: str
    text: str
    episodes: int
    runs: tuple[StudyRun, ...]


def read_study(file: Path, studies_dir: Path, environ: Mapping[str, str] = os.environ) -> Study:
    """Returns the study that a file describes, its runs in the order in which they are begun: seed by seed, so that
    what is there after half of the time is half of every comparison. ``environ``'s QHERD_... variables may say where
    the runs are and what is kept of them, such as a server with its password.

    Raises:
        ConfigError: what is wrong in the file, with the key, and the nearest name of one that is unknown.
    """
    text = read_text_file(file, f"study {file}")
    values = parse_yaml(text, f"study {file}")
    _check_keys(values, f"study {file}")
    name = _study_name(file, values.get("study"))
    if not re.fullmatch(RUN_NAME, name) and not (_is_in_its_study(file) and name == folder_of(file).name):
        raise ConfigError(
            f"study {file}: study: {name!r} cannot be a folder's name: names have 1 to 64 letters, digits, '.', '_' or "
            "'-', a letter or digit first"
        )
    reader = _Reader(file, values, studies_dir / name / "runs", environ)
    return Study(name, text, reader.episodes(), reader.runs())


def _study_name(file: Path, given: Any) -> str:
    """Returns the name that a file gives its study, else the file's own; of studies/NAME/study.yaml, which a study has
    kept, it is NAME."""
    if given is None:
        return folder_of(file).name if _is_in_its_study(file) else file.stem
    if type(given) not in (str, int):
        raise ConfigError(f"study {file}: study: {given!r:.80} is no text: put the name into quotes")
    return str(given)


def _is_in_its_study(file: Path) -> bool:
    """Returns whether it is the file of a study's folder, which may have been renamed to what no study is called; the
    root of all folders has no name."""
    return file.name == KEPT and (file.parent / "runs").is_dir() and bool(folder_of(file).name)


def folder_of(file: Path) -> Path:
    """Returns the folder that a file is in, by its name: of ../study.yaml it is not called ``..``."""
    return Path(os.path.normpath(file.absolute())).parent


def _check_keys(values: Mapping[str, Any], where: str) -> None:
    for key in values:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(KEYS)}"
            raise ConfigError(f"{where}: {key}: a study has no such key{hint}")


class _Reader:
    """Makes runs of a study's values."""

    def __init__(self, file: Path, values: Mapping[str, Any], runs_dir: Path, environ: Mapping[str, str]) -> None:
        self._where, self._values, self._runs_dir = f"study {file}", values, runs_dir
        self._environ, self._variables = options_in(environ), frozenset(environ)

    def runs(self) -> tuple[StudyRun, ...]:
        """Returns all runs."""
        seeds = list(dict.fromkeys(self._seeds(self._values.get("seeds", 1))))
        cells = [(env, variant, config) for env, variant, config in self._cells()]
        if not 0 < len(seeds) * len(cells) <= MAX_RUNS:
            raise self._error("seeds", f"{len(cells)} x {len(seeds)} runs, and a study has 1 to {MAX_RUNS:,}")
        runs = tuple(
            StudyRun(env, variant, seed, self._named(config, env, variant, seed))
            for seed in seeds
            for env, variant, config in cells
        )
        if twice := _twice(run.name for run in runs):
            raise self._error("environments", f"two of them would have runs called {twice}: put them into two studies")
        return runs

    def episodes(self) -> int:
        """Returns how many episodes a final evaluation has."""
        value = self._values.get("episodes", EPISODES)
        if type(value) is not int or not 1 <= value <= MAX_EPISODES:
            raise self._error("episodes", f"{value!r} is no whole number of 1 to {MAX_EPISODES:,}")
        return value

    def _cells(self) -> Iterator[tuple[str, str, RunConfig]]:
        """Yields environment, variant and the configuration that their runs have in common."""
        common, budget = self._options("options", self._values.get("options")), self._budget()
        environments = self._named_options("environments", self._values.get("environments"))
        variants = self._named_options("variants", self._values.get("variants", ["default"]))
        for name in variants:
            if not _VARIANT.fullmatch(name):
                raise self._error("variants", f"{name!r}: names have letters, digits, '.', '_' or single '-'")
        for env, of_env in environments.items():
            for variant, of_variant in variants.items():
                layers: list[Layer] = [
                    # a study's runs end by their budget, unless it says otherwise: only so their scores compare
                    (self._where, {"env": {"id": env}, "eval": {"threshold": None}}),
                    (f"{self._where}, budget", {"budget": budget}),
                    (f"{self._where}, options", common),
                    (f"{self._where}, environments, {env}", of_env),
                    (f"{self._where}, variants, {variant}", of_variant),
                ]
                yield env, variant, self._merged(layers)

    def _merged(self, layers: list[Layer]) -> RunConfig:
        presets = [layer.get("preset") for _, layer in layers]
        layers = [(where, {key: value for key, value in layer.items() if key != "preset"}) for where, layer in layers]
        self._check_environ([layer for _, layer in layers])
        self._check_passwords([layer for _, layer in layers])
        preset = next((str(name) for name in reversed(presets) if name is not None), None)
        try:
            config = merge([*layers, ("environment", self._environ)], preset)
        except ConfigError as error:
            if preset is None or not str(error).startswith("preset "):
                raise
            raise ConfigError(f"{self._where}: {error}") from None
        if config.budget.env_steps is None and config.budget.seconds is None:
            raise self._error("budget", f"{config.env.id} has none: give budget: {{env_steps: 100000}}, or seconds")
        return config

    def _check_environ(self, layers: list[Mapping[str, Any]]) -> None:
        """Raises ConfigError where a variable would have the runs do what the file does not say: it is what repeats
        them, and what qherd report knows."""
        for path in filter(partial(_sets, self._environ), option_paths()):
            if path in OWN or not path.startswith(WHERE) or any(_sets(layer, path) for layer in layers):
                name = variable_of(path)
                name = name if name in self._variables else f"{name}_FILE"
                why = f"{name} is set, and would change the study, whose options are those of its file"
                raise self._error(path, f"{why}: unset it")

    def _check_passwords(self, layers: list[Mapping[str, Any]]) -> None:
        """Raises ConfigError for a server's password: the study's folder has a copy of the file."""
        for path in (f"redis.{name}" for name in RedisConfig.model_fields):
            for given in filter(None, (option_at(layer, path) for layer in layers)):
                if any(public_url(str(url)) != str(url) for url in (given if isinstance(given, list) else [given])):
                    raise self._error(
                        path, f"its password would be kept in the study's folder: set {variable_of(path)}"
                    )

    def _named(self, config: RunConfig, env: str, variant: str, seed: int) -> RunConfig:
        name = f"{re.sub(r'[^A-Za-z0-9._-]', '_', env)}--{variant}--s{seed}"
        if not re.fullmatch(RUN_NAME, name):
            too_long = f"it has {len(name)} characters, and at most 64 are possible: choose shorter variants"
            why = too_long if len(name) > 64 else "it has to begin with a letter or digit"
            raise self._error("environments", f"{name!r} cannot be a run's name: {why}")
        return config.model_copy(update={"run": name, "runs_dir": self._runs_dir, "seed": seed})

    def _budget(self) -> dict[str, Any]:
        budget = self._options("budget", self._values.get("budget"))
        return {"env_steps": None, "seconds": None} | budget

    def _named_options(self, key: str, value: Any) -> dict[str, dict[str, Any]]:
        """Returns the options of each of the ``key``, which are listed, or have options."""
        if not isinstance(value, dict | list) or not value:
            raise self._error(key, f"give a list of names, or names with options, got {value!r:.80}")
        for name in value:
            if type(name) not in (str, int):  # on, 1.10, 2026-01-01: YAML has made something else of it
                raise self._error(key, f"{name!r:.80} is no text: put the name into quotes")
        if twice := _twice(map(str, value)):
            raise self._error(key, f"two are called {twice}")
        value = value if isinstance(value, dict) else dict.fromkeys(value)
        return {str(name): self._options(f"{key}, {name}", options) for name, options in value.items()}

    def _options(self, key: str, value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._error(key, f"options are wanted, such as {{learner.lr: 1e-3}}, got {value!r:.80}")
        options = nested(value, f"{self._where}: {key}, ")
        for path, instead in OWN.items():
            if option_at(options, path) is not None:
                raise self._error(f"{key}, {path}", f"a study gives it itself, by its key {instead}: leave it out")
        return options

    def _seeds(self, value: Any) -> Iterator[int]:
        """Yields the seeds of 5 (0 to 4), 0-9, [3, 5] or [0-4, 9]."""
        if type(value) is int and not 1 <= value <= MAX_RUNS:
            raise self._error("seeds", f"{value} is no number of seeds of 1 to {MAX_RUNS:,}")
        for each in range(value) if type(value) is int else value if isinstance(value, list) else [value]:
            found = re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", str(each))
            first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
            if not (first <= last <= MAX_SEED and last - first < MAX_RUNS):
                raise self._error("seeds", f"{each!r} is none: give how many, a range like 0-9, or a list of them")
            yield from range(first, last + 1)

    def _error(self, key: str, what: str) -> ConfigError:
        return ConfigError(f"{self._where}: {key}: {what}")


def _sets(values: Mapping[str, Any], path: str) -> bool:
    """Returns whether options, in sections, have one, also as none."""
    section, _, leaf = path.rpartition(".")
    found = option_at(values, section) if section else values
    return isinstance(found, Mapping) and leaf in found


def _twice(names: Iterable[str]) -> str | None:
    """Returns the first name that is there more than once; None where each is there once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)
