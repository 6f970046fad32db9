"""The run's configuration: each part owns its own, this composes them.

Layers, later ones win: defaults, preset, YAML file, environment (QHERD_...), command line.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from actors.config import ActorConfig, EnvConfig, EvalConfig
from deploy.config.numbers import read_yaml
from learner.config import CheckpointConfig, LearnerConfig
from replay.config import ReplayConfig
from replay.errors import QherdError
from replay.logs import Level

PRESETS = Path(__file__).parents[1] / "presets"
PREFIX = "QHERD_"
MOST_BYTES = 1 << 20
"""No file of options is bigger."""
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What a run may be called: a folder, a part of keys, and nothing that a pattern or a rule could be read into."""
RENAMED = {f"replay.{name}": f"replay.prioritised.{name}" for name in ("alpha", "beta", "beta_updates")}
"""Options by names that they had once."""
_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT|_PORT(_\d+_\w+)?$")
"""Variables that Kubernetes sets in every pod beside a service called qherd-something."""
_SECRET = tyro.conf.arg(help_behavior_hint=lambda value: "(set; not shown)" if "://" in value else "(default: none)")
"""The help shows defaults, and with the environment's variables that would be the passwords in them."""


SERVER_OPTIONS = (
    "--redis.url, QHERD_REDIS_URL or QHERD_REDIS_URL_FILE, which names a file that holds it (of several servers: "
    "--redis.urls, QHERD_REDIS_URLS or QHERD_REDIS_URLS_FILE)"
)
"""Where a server's URL can be given, for messages that miss one."""


class ConfigError(QherdError, ValueError):
    """A configuration that cannot be used; the text names the value and the remedy."""


class BudgetConfig(BaseModel):
    """When a run ends that did not solve its environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env_steps: int | None = Field(None, ge=1)
    """Env steps, over all actors."""
    seconds: float | None = Field(None, gt=0)
    """Seconds of training; the start, until learner and an actor have answered, is not counted."""


class RedisConfig(BaseModel):
    """The chunk log's server, or servers."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: Annotated[str | None, _SECRET] = None
    """Redis or Valkey >= 7.0 of the cluster mode (redis://, rediss://, unix://). Its password is never written down."""
    urls: Annotated[tuple[str, ...], _SECRET] = ()
    """Several servers in its place; the actors are spread over them. The first one admits learners."""
    actor_url: Annotated[str | None, _SECRET] = None
    """The same server with the actors' own user, who may append to streams and read weights and credit, nothing else.
    The default is the user of the learner."""
    actor_urls: Annotated[tuple[str, ...], _SECRET] = ()
    """With redis.urls: the same servers in the same order, with the actors' own users."""

    @model_validator(mode="after")
    def _actors_have_the_same_servers(self) -> Self:
        if self.actor_servers and list(map(_place, self.actor_servers)) != list(map(_place, self.servers)):
            raise ValueError(
                "redis.actor_url (redis.actor_urls) has to name the servers of redis.url (redis.urls), in their order: "
                "only user and password may be others"
            )
        return self

    @model_validator(mode="after")
    def _each_server_once(self) -> Self:
        if self.url is not None and self.urls:
            raise ValueError("redis.url and redis.urls are both given; give the one server or the several")
        places = [_place(url) for url in self.urls]
        for url, place in zip(self.urls, places, strict=True):
            if places.count(place) > 1:
                from replay.chunk_log.urls import public_url

                raise ValueError(f"redis.urls has the server of {public_url(url)} more than once")
        return self

    @property
    def servers(self) -> tuple[str, ...]:
        """The URLs of all servers, the one that admits learners first."""
        return self.urls or ((self.url,) if self.url is not None else ())

    @property
    def actor_servers(self) -> tuple[str, ...]:
        """The same, as the actors are to use them; empty where nothing is said of them."""
        return self.actor_urls or ((self.actor_url,) if self.actor_url is not None else ())


def _place(url: str) -> str | tuple[str, int]:
    """Which server a URL means, without how to get in; the URL itself where it is malformed."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "localhost", parts.port or 6379) if parts.scheme != "unix" else parts.path
    except ValueError:
        return url


class RayConfig(BaseModel):
    """Ray."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = None
    """The existing Ray cluster of the cluster mode: host:port, or auto."""
    autoscales: bool = False
    """The cluster adds nodes when they are asked for: what does not fit yet is waited for, not refused."""


class MetricsConfig(BaseModel):
    """Prometheus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: int | None = Field(None, ge=0, le=65535)
    """Serve /metrics of the run on this port; 0 takes a free one, which `qherd discovery` tells Prometheus."""
    host: str = "127.0.0.1"
    """The address to serve it on, on the learner's machine; 0.0.0.0 is all of them."""


class RunConfig(BaseModel):
    """All that a run depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str | None = Field(None, pattern=f"^{RUN_NAME}$")
    """The run's name and folder. The default is unique; a name that exists is refused."""
    runs_dir: Path = Path("runs")
    """Where the folders of runs are."""
    seed: int = Field(0, ge=0)
    """Seed of everything random: networks, sampling, exploration, environments, evaluation."""
    mode: Literal["inline", "local", "cluster"] = "local"
    """inline: one process, reproducible to the bit; local: Ray and Valkey on this machine; cluster: existing ones."""
    log_level: Level = "info"
    """What the run's folder logs/ has at the least; debug: also each version of the weights that an actor takes."""
    env: EnvConfig = EnvConfig()
    actors: ActorConfig = ActorConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    budget: BudgetConfig = BudgetConfig()
    redis: RedisConfig = RedisConfig()
    ray: RayConfig = RayConfig()
    metrics: MetricsConfig = MetricsConfig()


def preset_names() -> list[str]:
    """The presets that come with qherd."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_for(env_id: str) -> str | None:
    """The default preset of an environment."""
    for name in preset_names():
        if _read_yaml(PRESETS / f"{name}.yaml").get("default_for") == env_id:
            return name
    return None


def compose(
    env_id: str | None, preset: str | None, file: Path | None, environ: Mapping[str, str] = os.environ
) -> RunConfig:
    """Defaults, preset, file and environment as one config; the command line comes on top of it.

    Raises ConfigError where any of them names something unknown or a value out of its bounds.
    """
    layers = []
    if file is not None:
        contents = _read_yaml(file)
        # a run's own config.yaml has its options below "config"
        layers.append((f"file {file}", contents.get("config", contents) if "versions" in contents else contents))
    layers.append(("environment", _from_environment(environ)))
    if env_id is not None:
        layers.append(("command line", {"env": {"id": env_id}}))
    given = [_get(layer, "env.id") for _, layer in reversed(layers)]
    name = preset or preset_for(next((known for known in given if known), EnvConfig().id))
    if name is not None:
        layers.insert(0, (f"preset {name}", _preset(name)))
    values: dict[str, Any] = {}
    for where, layer in layers:
        try:
            RunConfig.model_validate(layer)
        except ValidationError as error:
            raise ConfigError(explain(error, where)) from None
        _merge(values, layer)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, " and ".join(where for where, _ in layers))) from None


def check_bounds(arguments: Sequence[str]) -> None:
    """Raises ConfigError for a command line's value out of its bounds, by the option's dotted name.

    What has the wrong type or is unknown is left to the parser, which shows the option's help with it.
    """
    known = set(option_paths())
    values: dict[str, Any] = {}
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and (now := RENAMED.get(name.removeprefix("--").replace("-", "_"))):
            raise ConfigError(f"{name}: the option is called --{now.replace('_', '-')} now")
    for name, text in pairwise(arguments):
        path = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and path in known:
            with contextlib.suppress(yaml.YAMLError):
                _put(values, path, read_yaml(text))
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        bounds = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
        if all(finding["type"] in bounds for finding in error.errors()):
            raise ConfigError(explain(error, "command line")) from None


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path."""
    *parents, leaf = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[leaf] = value


def _preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise ConfigError(f"preset {name!r} does not exist; one of {', '.join(preset_names())} does")
    values = _read_yaml(PRESETS / f"{name}.yaml")
    values.pop("default_for", None)
    return values


def explain(error: ValidationError, where: str) -> str:
    """pydantic's findings, a line each, with the nearest name for one that is unknown."""
    lines = []
    for finding in error.errors(include_url=False):
        path = ".".join(map(str, finding["loc"]))
        if finding["type"] == "extra_forbidden":
            lines.append(f"{path}: {_unknown(path)}")
        else:
            shown = "" if path.startswith("redis") else f", got {finding['input']!r}"  # it may hold a password
            lines.append(f"{path}: {finding['msg']}{shown}")
    return f"configuration ({where}):\n  " + "\n  ".join(lines)


def option_paths(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """The dotted names of all options."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from option_paths(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _takes_text(path: str) -> bool:
    """Whether an option is a text, so that a run may be called 12 or 12e4."""
    kind: Any = RunConfig
    for name in path.split("."):
        kind = kind.model_fields[name].annotation
    return kind in (str, str | None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def dump(config: RunConfig) -> dict[str, Any]:
    """The config as plain values, without the servers' passwords."""
    from replay.chunk_log.urls import public_url

    values = config.model_dump(mode="json")
    for name in ("url", "actor_url"):
        values["redis"][name] = public_url(given) if (given := getattr(config.redis, name)) else None
    for name in ("urls", "actor_urls"):
        values["redis"][name] = [public_url(url) for url in getattr(config.redis, name)]
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """QHERD_LEARNER_LR=5e-4 is learner.lr; values are read as YAML. QHERD_REDIS_URL_FILE names a file that holds the
    value of QHERD_REDIS_URL, as containers get their secrets."""
    environ = _with_files(environ)
    known = {_variable(path): path for path in option_paths()}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or (variable not in known and _KUBERNETES.search(variable)):
            continue
        if variable not in known:
            if now := {_variable(old): new for old, new in RENAMED.items()}.get(variable):
                raise ConfigError(f"environment variable {variable}: it is called {_variable(now)} now")
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"environment variable {variable}: there is no such option{hint}")
        try:
            value = read_yaml(text)
            _put(values, known[variable], text if _is_number(value) and _takes_text(known[variable]) else value)
        except yaml.YAMLError:
            shown = "" if known[variable].startswith("redis") else f": {text!r}"  # it may hold a password
            raise ConfigError(f"environment variable {variable} is no YAML value{shown}") from None
    return values


def _variable(path: str) -> str:
    """Returns the environment's variable for an option."""
    return PREFIX + path.upper().replace(".", "_")


def _with_files(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with the contents of the files that its QHERD_..._FILE name."""
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
    """What is in a file that the user names, which may be a pipe. Raises ConfigError where there is no end to it."""
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path} has more than {MOST_BYTES:,} bytes: it is no file of options, or of a secret")
    return data.decode()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(_read_text(path))
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:  # its text quotes the line, which may hold a password
        line = f", line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        raise ConfigError(f"config file {path}{line} is no YAML: {getattr(error, 'problem', 'damaged')}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {path} is no YAML: {error}") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"config file {path} holds {type(values).__name__}, not options")
    return values or {}


def _merge(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict) and key not in ("kwargs", "resources"):
            _merge(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, Mapping) else value


def _get(values: Mapping[str, Any], path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None  # type: ignore[assignment]
    return values


def _unknown(path: str) -> str:
    """Returns what is wrong with an option that there is not, and its name of now, or the nearest one."""
    if path in RENAMED:
        return f"the option is called {RENAMED[path]} now"
    near = difflib.get_close_matches(path, list(option_paths()), n=1, cutoff=0.5)
    return f"there is no such option{f'; did you mean {near[0]}?' if near else ''}"
