"""The command ``qherd``.

Exit codes: 0 done, 1 the run failed or the user declined, 2 the call or its needs are wrong, 75 a run was interrupted
and can be resumed, 130 interrupted otherwise.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_origin

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy import __version__
from deploy.config import ConfigError, RedisConfig, RunConfig, check_bounds, compose, dump, explain

USAGE = """qherd: a herd of actors, one learner, deep Q-learning.

  qherd train [ENV]    train; LunarLander-v3 where no ENV is given
  qherd plan [ENV]     what such a run takes and does: memory, network, env steps, samples per insert
  qherd doctor [RUN]   is all here that a run needs; of a run at work: what holds it up, and what to change
  qherd resume RUN     go on with a run that was interrupted, killed, or is out of budget
  qherd scale RUN --actors N
                       have more or fewer actors in a run while it works
  qherd eval RUN       play a run's best policy greedily
  qherd record RUN     write a video of it
  qherd replay stats RUN|URL
                       what a run's replay memory holds, slot by slot
  qherd clean RUN      remove what a run has left on its server
  qherd secrets DIR    make a cluster's passwords, users and token
  qherd discovery      tell Prometheus which runs there are
  qherd --version

Each command explains itself: qherd train --help. An example:

  qherd train CartPole-v1 --learner.lr 1e-3 --actors.count 4 --budget.seconds 120
"""


class Launch(BaseModel):
    """What comes before the options."""

    model_config = ConfigDict(frozen=True)

    preset: str | None = None
    """Start from these values: cartpole, lunarlander or tutorial. The default goes by the environment."""
    config: Path | None = None
    """A YAML file of options, over the preset."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run --run where there is one of that name already: for launchers that repeat their command."""


class Train(Launch):
    """Train a Q-network with actors, a replay server and a learner. ENV, if given, comes first: a Gymnasium
    environment, or module:EnvId for one of your own.

    Options by dotted name come on top of the environment variables (QHERD_LEARNER_LR=5e-4), these on top of --config,
    this on top of the preset.
    """

    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


class Plan(BaseModel):
    """Say what a run will take and do, before it is started: memory of server, learner and actors, env steps and
    updates per second, samples per insert, bytes per second on the network, each with what it is made of. What is
    impossible is refused. ENV and the options are those of qherd train.

    The environment and the network are tried on this machine, for a second each, unless their rates are given.
    """

    preset: str | None = None
    """Start from these values: cartpole, lunarlander or tutorial. The default goes by the environment."""
    config: Path | None = None
    """A YAML file of options, over the preset."""
    env_steps_per_second: float | None = Field(None, gt=0)
    """Env steps per second of one actor, all its lanes together. The default is measured."""
    updates_per_second: float | None = Field(None, gt=0)
    """Updates per second that the learner can do. The default is measured, on this machine."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""
    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


class Doctor(BaseModel):
    """Check what a run needs: versions, limits, the environment (spaces, dtype, autoreset mode, step rate), memory,
    ports, disk, cores, GPU, the server and its memory policy, /dev/shm, Ray and each of its nodes. Options are those of
    qherd train; --env.id names the environment. Exit code 1 where there is a problem.

    With RUN, a run's directory: say whether it is well, and name what holds it up (env, actor CPU, Redis, network,
    learner or limiter) from the waits that it measures, and what to change.
    """

    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""
    preset: str | None = None
    """Start from these values: cartpole, lunarlander or tutorial. The default goes by the environment."""
    config: Path | None = None
    """A YAML file of options, over the preset."""
    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


class DoctorOfRun(BaseModel):
    """Say whether a run is well, and name what holds it up (env, actor CPU, Redis, network, learner or limiter) from
    the waits that it measures, and what to change.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class Scale(BaseModel):
    """Have N actors in a run while it works, and wait until they are there. New ones join with the newest weights;
    those that leave send what they have in hand first; every lane moves to its place on the epsilon ladder of N. What
    the run could not hold is refused, and then nothing changes. qherd resume goes on with N.

    Exit code 1 where the actors had not all answered after two minutes: a cluster may have no room for them yet.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    actors: int = Field(ge=1)
    """How many actors the run shall have."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON, with the epsilon of every lane as its actor says it."""


class Resume(BaseModel):
    """Go on with a run from its newest checkpoint, with all that it has counted, learned and stored. Its directory
    comes first: qherd resume runs/NAME.

    Options by dotted name change what may change, such as --budget.env-steps or --learner.lr; what the run has learned
    and stored goes by the others, which stay as they were.
    """

    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


class Eval(BaseModel):
    """Play a run's best policy greedily."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    episodes: int = Field(100, ge=1)
    """Greedy episodes to play."""
    seed: int = Field(1_000_000, ge=0)
    """Seed of the first episode; each further one has the next."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class Record(BaseModel):
    """Write a video of a run's best policy."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    out: Path | None = None
    """The file to write, .mp4 or .gif. The default is best.mp4 in the run's directory."""
    seed: int = Field(1_000_000, ge=0)
    """Seed of the episode."""


class ReplayStats(BaseModel):
    """Print what a run's replay memory holds, per slot: rows and bytes stored, rows per second sent, the newest weights
    acted with, incarnation, and chunks refused by reason. It reads only, and takes a second.

    A run of mode local is given by its directory, while it runs. A run on a server of your own is given by its
    directory, its name, or the server's URL.
    """

    given: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|URL")]
    """A run's directory or name, or a server's URL (redis://, rediss://, unix://)."""
    run: str | None = None
    """With a URL: the run's name. A server's only run needs none."""
    redis: RedisConfig = RedisConfig()
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class Clean(BaseModel):
    """Remove a run's keys from its Redis or Valkey server, after asking. Other runs' keys and the run's directory stay;
    a run that is alive is refused.

    Runs of mode local need none of it: their server ends with them.
    """

    given: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory or name. A directory's keys are removed only where they are that run's own."""
    redis: RedisConfig = RedisConfig()
    yes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not ask."""


class Secrets(BaseModel):
    """Make the passwords, users and token of a cluster, once: a folder with a folder for each role. Where there is one
    already it is left as it is.

    server/users.acl is the server's aclfile and holds digests only.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    server: str = "valkey:6379"
    """The server's host:port, as the nodes know it."""
    run: str | None = None
    """The only run that its users may touch. The default is any run."""
    tls: bool = False
    """URLs for TLS: rediss://."""
    ca: Path | None = None
    """With --tls: where the nodes find the certificate of your own authority."""


class Discovery(BaseModel):
    """Tell Prometheus which runs there are, and where their /metrics is: HTTP service discovery, until interrupted.

    It knows the runs of this machine's --runs-dir, or of a folder that several machines share. A run is on the list
    from its learner's start to its orderly end; it needs --metrics.port (0: a free one, so that several never meet).
    """

    runs_dir: tuple[Path, ...] = (Path("runs"),)
    """Where the folders of runs are; several may be given."""
    port: int = Field(9180, ge=0, le=65535)
    """The port to serve on; deploy/prometheus/prometheus.yml asks 9180."""
    host: str = "127.0.0.1"
    """The address to serve on."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; every failure that a user can cause is one message on stderr and exit code 2."""
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.exit(_guarded(lambda: _dispatch(arguments)))


def _dispatch(arguments: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "plan": _plan,
        "doctor": _doctor,
        "resume": _resume,
        "scale": _scale,
        "eval": _eval,
        "record": _record,
        "replay stats": _replay_stats,
        "clean": _clean,
        "secrets": _secrets,
        "discovery": _discovery,
    }
    command, *rest = arguments or ["--help"]
    if command == "replay":  # a group of commands, for now of one
        command = " ".join([command, *rest[:1]])
        rest = rest[1:]
    if command in commands:
        return commands[command](rest)
    if command == "--version":
        print(f"qherd {__version__}")
        return 0
    if command.removeprefix("replay ") in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    raise ConfigError(f"there is no command {command!r}\n\n{USAGE}".rstrip())


def _base(arguments: list[str]) -> RunConfig:
    """All layers below the command line's own options; takes ENV, which comes first, out of ``arguments``."""
    env_id = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    launch, _ = tyro.cli(Launch, args=arguments, return_unknown_args=True, add_help=False)
    base = compose(env_id, launch.preset, launch.config)
    check_bounds(arguments)
    return base


def _plan(arguments: list[str]) -> int:
    base = _base(arguments)
    call = tyro.cli(Plan, args=arguments, default=Plan(options=base), prog="qherd plan [ENV]", registry=_yaml_options())
    from deploy.outlook import plan_command

    return plan_command(call.options, call.env_steps_per_second, call.updates_per_second, as_json=call.as_json)


def _doctor(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        call = tyro.cli(DoctorOfRun, args=arguments, prog="qherd doctor")
        from deploy.doctor import doctor_of_run

        return doctor_of_run(call.run, as_json=call.as_json)
    base = _base(_with_env_first(arguments))
    full = tyro.cli(
        Doctor, args=arguments, default=Doctor(options=base), prog="qherd doctor [RUN]", registry=_yaml_options()
    )
    from deploy.doctor import doctor

    return doctor(full.options, as_json=full.as_json)


def _with_env_first(arguments: list[str]) -> list[str]:
    """A copy with the value of --env.id in front, as qherd train has it: the default preset goes by it."""
    given = [value for name, value in pairwise(arguments) if name in ("--env.id", "--env-id")]
    return [*given[-1:], *arguments]


def _train(arguments: list[str]) -> int:
    base = _base(arguments)
    full = tyro.cli(
        Train, args=arguments, default=Train(options=base), prog="qherd train [ENV]", registry=_yaml_options()
    )
    config = full.options
    if full.dry_run:
        print(yaml.safe_dump(dump(config), sort_keys=False), end="")
        return 0
    if full.resume:
        return _train_or_resume(config)
    from deploy.train import train

    return train(config)


def _train_or_resume(config: RunConfig) -> int:
    from deploy.resume import resume
    from deploy.train import train

    if config.run is None:
        raise ConfigError("--resume needs to know the run: give its name with --run")
    path = config.runs_dir / config.run
    return resume(path, config) if path.exists() else train(config)


def _resume(arguments: list[str]) -> int:
    path = Path(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else None
    if path is None and not {"-h", "--help"} & set(arguments):
        raise ConfigError("qherd resume needs the run's directory: qherd resume runs/NAME")
    from deploy.resume import config_of, resume

    check_bounds(arguments)
    base = RunConfig() if path is None else config_of(path)
    call = tyro.cli(
        Resume, args=arguments, default=Resume(options=base), prog="qherd resume RUN", registry=_yaml_options()
    )
    return resume(path or Path(), call.options)


def _yaml_options() -> tyro.constructors.ConstructorRegistry:
    """Teaches tyro to take a free mapping (env.kwargs, actors.resources) as one YAML value."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def mapping(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[dict[str, Any]] | None:
        if get_origin(info.type) is not dict:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="YAML",
            instance_from_str=lambda given: _yaml_mapping(given[0]),
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [yaml.safe_dump(value, default_flow_style=True).strip()],
        )

    return registry


def _yaml_mapping(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is no YAML mapping like '{{gravity: -9}}'")
    return value


def _scale(arguments: list[str]) -> int:
    call = tyro.cli(Scale, args=arguments, prog="qherd scale")
    from deploy.scaling import scale

    return scale(call.run, call.actors, as_json=call.as_json)


def _eval(arguments: list[str]) -> int:
    call = tyro.cli(Eval, args=arguments, prog="qherd eval")
    from deploy.playback import evaluate

    return evaluate(call.run, call.episodes, call.seed, as_json=call.as_json)


def _record(arguments: list[str]) -> int:
    call = tyro.cli(Record, args=arguments, prog="qherd record")
    from deploy.playback import record

    return record(call.run, call.out, call.seed)


def _replay_stats(arguments: list[str]) -> int:
    call = tyro.cli(ReplayStats, args=arguments, prog="qherd replay stats")
    from deploy.replay_stats import stats

    return stats(call.given, call.run, call.redis, as_json=call.as_json)


def _clean(arguments: list[str]) -> int:
    call = tyro.cli(Clean, args=arguments, prog="qherd clean")
    from deploy.clean import clean

    return clean(call.given, call.redis, yes=call.yes)


def _secrets(arguments: list[str]) -> int:
    call = tyro.cli(Secrets, args=arguments, prog="qherd secrets")
    from deploy.secrets_dir import write_secrets

    scheme, query = ("rediss" if call.tls else "redis"), f"ssl_ca_certs={call.ca}" if call.ca else ""
    try:
        made = write_secrets(call.folder, call.server, call.run, scheme, query)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    print(f"{call.folder}: {'made' if made else 'is there already, and stays as it is'}")
    return 0


def _discovery(arguments: list[str]) -> int:
    call = tyro.cli(Discovery, args=arguments, prog="qherd discovery")
    from deploy.discovery import serve

    return serve(call.runs_dir, call.host, call.port)


def _guarded(run: Callable[[], int]) -> int:
    """Turn what a user can cause into a message; let what is a defect show its traceback."""
    from actors.envs import EnvError
    from deploy.run_dir import RunDirError
    from deploy.session import RunFailedError
    from deploy.valkey import ServerError
    from learner.checkpoint import CheckpointError
    from replay.log import LogError
    from replay.storage import CannotFit

    try:
        return run()
    except ValidationError as error:
        message = explain(error, "command line")
    except (ConfigError, EnvError, RunDirError, ServerError, LogError, CannotFit, CheckpointError) as error:
        message = str(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        message = f"{error.filename or 'a file'}: {error.strerror}"
    except RunFailedError as error:
        print(f"qherd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"qherd: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
