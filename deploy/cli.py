"""The command ``qherd``.

Its exit codes are in its help, below.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_origin

from deploy.process.output import GONE, silence, stand_in
from deploy.process.signals import deaf, quiet_interrupt

with quiet_interrupt():  # these take a second
    import tyro
    import yaml
    from pydantic import ValidationError

    from deploy import __version__
    from deploy.commands.arguments import (
        Clean,
        Discovery,
        Doctor,
        DoctorOfRun,
        Eval,
        Launch,
        Plan,
        Record,
        ReplayStats,
        Resume,
        Scale,
        Secrets,
        Train,
    )
    from deploy.config.models import ConfigError, RunConfig, check_bounds, compose, dump, explain
    from deploy.config.numbers import read_yaml, whole, write_yaml
    from deploy.process import arithmetic
    from replay.errors import QherdError

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

Exit codes:

  0    done: solved, or the budget is used up
  1    the run failed (also where no env step ever came in), the doctor found a problem, or you declined
  2    the call or what it needs is wrong
  75   a run was asked to stop by Ctrl-C, SIGTERM or SIGHUP, or nobody reads its output any more: qherd resume goes on;
       where nothing had run yet, the same command begins again
  130  interrupted otherwise; 129, 130, 143 (128 + signal): a second signal ended a run at once
  141  nobody reads the output of another command any more
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; every failure that a user can cause is one message on stderr and exit code 2."""
    stand_in()
    arithmetic.pin()  # no import above brings numpy
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
    os.umask(os.umask(0o077) | stat.S_IWOTH)  # what others could change in a run would be the run's own
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal has no ±
    try:
        code = _guarded(lambda: _dispatch(arguments))
    finally:
        if argv is None:
            deaf()
    if argv is None:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """Ends the process as Python does, but for taking its modules apart, which with torch takes longer than all else
    at the end of a run; threads that an environment has left are not waited for."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # gone, or closed from the start
            stream.flush()
    os._exit(code)


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
    call = tyro.cli(Plan, args=arguments, default=Plan(options=base), prog="qherd plan [ENV]", registry=_as_written())
    from deploy.planning.forecast import plan_command

    return plan_command(call.options, call.env_steps_per_second, call.updates_per_second, as_json=call.as_json)


def _doctor(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        call = tyro.cli(DoctorOfRun, args=arguments, prog="qherd doctor")
        from deploy.commands.doctor import doctor_of_run

        return doctor_of_run(call.run, as_json=call.as_json)
    base = _base(_with_env_first(arguments))
    full = tyro.cli(
        Doctor, args=arguments, default=Doctor(options=base), prog="qherd doctor [RUN]", registry=_as_written()
    )
    from deploy.commands.doctor import doctor

    return doctor(full.options, as_json=full.as_json)


def _with_env_first(arguments: list[str]) -> list[str]:
    """A copy with the value of --env.id in front, as qherd train has it: the default preset goes by it."""
    given = [value for name, value in pairwise(arguments) if name in ("--env.id", "--env-id")]
    return [*given[-1:], *arguments]


def _train(arguments: list[str]) -> int:
    base = _base(arguments)
    full = tyro.cli(
        Train, args=arguments, default=Train(options=base), prog="qherd train [ENV]", registry=_as_written()
    )
    config = full.options
    if full.dry_run:
        print(write_yaml(dump(config)), end="")
        return 0
    if full.resume:
        return _train_or_resume(config)
    from deploy.sessions.driver import train

    return train(config)


def _train_or_resume(config: RunConfig) -> int:
    from deploy.commands.resume import resume
    from deploy.sessions.driver import train

    if config.run is None:
        raise ConfigError("--resume needs to know the run: give its name with --run")
    path = config.runs_dir / config.run
    return resume(path, config) if path.exists() else train(config)


def _resume(arguments: list[str]) -> int:
    path = Path(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else None
    if path is None and not {"-h", "--help"} & set(arguments):
        raise ConfigError("qherd resume needs the run's directory: qherd resume runs/NAME")
    from deploy.commands.resume import config_of, resume

    check_bounds(arguments)
    base = RunConfig() if path is None else config_of(path)
    call = tyro.cli(
        Resume, args=arguments, default=Resume(options=base), prog="qherd resume RUN", registry=_as_written()
    )
    return resume(path or Path(), call.options)


def _as_written() -> tyro.constructors.ConstructorRegistry:
    """Teaches tyro to take a free mapping (env.kwargs) as one YAML value, and 1e6 for a whole number."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def whole_number(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda given: whole(given[0]),
            is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

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
            str_from_instance=lambda value: [write_yaml(value, flow=True).strip()],
        )

    return registry


def _yaml_mapping(text: str) -> dict[str, Any]:
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is no YAML mapping like '{{gravity: -9}}'")
    return value


def _scale(arguments: list[str]) -> int:
    call = tyro.cli(Scale, args=arguments, prog="qherd scale", registry=_as_written())
    from deploy.sessions.scale_requests import scale

    return scale(call.run, call.actors, as_json=call.as_json)


def _eval(arguments: list[str]) -> int:
    call = tyro.cli(Eval, args=arguments, prog="qherd eval", registry=_as_written())
    from deploy.commands.evaluate import evaluate

    return evaluate(call.run, call.episodes, call.seed, env_path=call.env.path, as_json=call.as_json)


def _record(arguments: list[str]) -> int:
    call = tyro.cli(Record, args=arguments, prog="qherd record", registry=_as_written())
    from deploy.commands.evaluate import record

    return record(call.run, call.out, call.seed, env_path=call.env.path)


def _replay_stats(arguments: list[str]) -> int:
    call = tyro.cli(ReplayStats, args=arguments, prog="qherd replay stats", registry=_as_written())
    from deploy.commands.replay_stats import stats

    return stats(call.given, call.run, call.redis, as_json=call.as_json)


def _clean(arguments: list[str]) -> int:
    call = tyro.cli(Clean, args=arguments, prog="qherd clean", registry=_as_written())
    from deploy.commands.clean import clean

    return clean(call.given, call.redis, yes=call.yes)


def _secrets(arguments: list[str]) -> int:
    call = tyro.cli(Secrets, args=arguments, prog="qherd secrets", registry=_as_written())
    from deploy.server.credentials import write_secrets

    if call.ca and not call.tls:
        raise ConfigError(f"--ca {call.ca} is for TLS: give --tls with it")
    scheme, query = ("rediss" if call.tls else "redis"), f"ssl_ca_certs={call.ca}" if call.ca else ""
    try:
        made = write_secrets(call.folder, call.server, call.run, scheme, query)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    print(f"{call.folder}: {'made' if made else 'is there already, and stays as it is'}")
    return 0


def _discovery(arguments: list[str]) -> int:
    call = tyro.cli(Discovery, args=arguments, prog="qherd discovery", registry=_as_written())
    from deploy.monitoring.discovery import serve

    return serve(call.runs_dir, call.host, call.port)


def _guarded(run: Callable[[], int]) -> int:
    """Turns what a user can cause into a message; lets what is a defect show its traceback."""
    try:
        try:
            return _explained(run)
        finally:
            if sys.stdout is not None:  # as >&- has it
                sys.stdout.flush()
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130
    except OSError as error:
        if error.errno not in GONE or error.filename is not None:
            raise
        silence(sys.stdout)  # what is still in its buffer is nobody's any more
        return 128 + signal.SIGPIPE


def _explained(run: Callable[[], int]) -> int:
    with quiet_interrupt():  # most commands need these, which take a second
        import deploy.sessions.base  # noqa: F401

    try:
        return run()
    except ValidationError as error:
        code, message = 2, explain(error, "command line")
    except QherdError as error:
        code, message = error.exit_code, str(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        code, message = 2, f"{error.filename or 'a file'}: {error.strerror}"
    _tell(f"qherd: {message}")
    return code


def _tell(message: str) -> None:
    """Prints on stderr, where there is one."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


if __name__ == "__main__":
    main()
