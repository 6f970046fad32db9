"""The run's configuration: each part owns its own, this composes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import tyro
from pydantic import BaseModel, ConfigDict, Field, model_validator

from actors.config import ActorConfig, EnvConfig, EvalConfig
from learner.config import CheckpointConfig, LearnerConfig
from replay.config import ReplayConfig
from replay.kept import Kept, KeptMark
from replay.logs import Level
from replay.options import Options

RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What a run may be called: a folder, a part of keys, and nothing that a pattern or a rule could be read into."""
RENAMED = {f"replay.{name}": f"replay.prioritised.{name}" for name in ("alpha", "beta", "beta_updates")}
"""Options by names that they had once."""
_SECRET = tyro.conf.arg(help_behavior_hint=lambda value: "(set; not shown)" if "://" in value else "(default: none)")
"""The help shows defaults, and with the environment's variables that would be the passwords in them."""
SERVER_OPTIONS = (
    "--redis.url, QHERD_REDIS_URL or QHERD_REDIS_URL_FILE, which names a file that holds it (of several servers: "
    "--redis.urls, QHERD_REDIS_URLS or QHERD_REDIS_URLS_FILE)"
)
"""Where a server's URL can be given, for messages that miss one."""


class BudgetConfig(Options):
    """When a run ends that did not solve its environment."""

    env_steps: int | None = Field(None, ge=1)
    """Env steps, over all actors."""
    updates: int | None = Field(None, ge=1)
    """Updates of the learner."""
    seconds: float | None = Field(None, gt=0, le=1e9)
    """Seconds of training; the start, until learner and an actor have answered, is not counted."""


class RedisConfig(Options):
    """The chunk log's server, or servers."""

    model_config = ConfigDict(hide_input_in_errors=True)

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
        actors, learner = (list(map(_server_address, urls)) for urls in (self.actor_servers, self.servers))
        if actors and actors != learner:
            raise ValueError(
                "redis.actor_url (redis.actor_urls) has to name the servers of redis.url (redis.urls), in their order: "
                "only user and password may be others"
            )
        return self

    @model_validator(mode="after")
    def _each_server_once(self) -> Self:
        if self.url is not None and self.urls:
            raise ValueError("redis.url and redis.urls are both given; give the one server or the several")
        addresses = [_server_address(url) for url in self.urls]
        for url, address in zip(self.urls, addresses, strict=True):
            if addresses.count(address) > 1:
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


def _server_address(url: str) -> str | tuple[str, int]:
    """Returns the server that a URL means, without how to get in; the URL itself where it is malformed."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "localhost", parts.port or 6379) if parts.scheme != "unix" else parts.path
    except ValueError:
        return url


class RayConfig(Options):
    """Ray."""

    address: str | None = None
    """The existing Ray cluster of the cluster mode: host:port, or auto."""
    autoscales: bool = False
    """The cluster adds nodes when they are asked for: what does not fit yet is waited for, not refused."""


class MetricsConfig(Options):
    """Prometheus."""

    port: int | None = Field(None, ge=0, le=65535)
    """Serve /metrics of the run on this port; 0 takes a free one, which `qherd discovery` tells Prometheus."""
    host: str = "127.0.0.1"
    """The address to serve it on, on the learner's machine; 0.0.0.0 is all of them."""


class TrackConfig(Options):
    """Trackers: records of the run elsewhere, beside its own folder."""

    wandb: bool = False
    """Record the run in Weights & Biases, with the extra wandb; wandb login, WANDB_API_KEY or WANDB_MODE=offline."""
    mlflow: bool = False
    """Record the run in MLflow, with the extra mlflow, where MLFLOW_TRACKING_URI says."""
    project: str | None = Field(None, min_length=1, max_length=128)
    """W&B's project and MLflow's experiment. The default is WANDB_PROJECT, or MLFLOW_EXPERIMENT_NAME, or qherd."""


class RunConfig(Options):
    """All that a run depends on."""

    run: str | None = Field(None, pattern=f"^{RUN_NAME}$")
    """The run's name and folder. The default is unique; a name that exists is refused."""
    runs_dir: Path = Path("runs")
    """Where the folders of runs are."""
    seed: Kept[int] = Field(0, ge=0)
    """Seed of everything random: networks, sampling, exploration, environments, evaluation."""
    mode: Kept[Literal["inline", "local", "cluster"]] = "local"
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
    track: TrackConfig = TrackConfig()


def option_paths(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all options."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from option_paths(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def sections(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """Yields the models of all sections with their dotted names; the whole has none."""
    yield model, prefix
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from sections(info.annotation, f"{prefix}.{name}".removeprefix("."))


def kept_options(mode: str, model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of the options, or sections, that a resumed run of this mode has to keep."""
    for name, info in model.model_fields.items():
        kind, path = info.annotation, f"{prefix}{name}"
        if any(isinstance(mark, KeptMark) and (mode == "inline" or not mark.inline_only) for mark in info.metadata):
            yield path
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from kept_options(mode, kind, f"{path}.")


def dump(config: RunConfig) -> dict[str, Any]:
    """Returns the config as plain values, without the servers' passwords."""
    from replay.chunk_log.urls import public_url

    values = config.model_dump(mode="json")
    for name in ("url", "actor_url"):
        values["redis"][name] = public_url(given) if (given := getattr(config.redis, name)) else None
    for name in ("urls", "actor_urls"):
        values["redis"][name] = [public_url(url) for url in getattr(config.redis, name)]
    return values


def env_of(config: RunConfig) -> EnvConfig:
    """Returns the run's environment, with its folder made absolute: workers have another working directory."""
    path = config.env.path
    return config.env if path is None else config.env.model_copy(update={"path": path.resolve()})
