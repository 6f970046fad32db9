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
from importlib import import_module
from pathlib import Path

from deploy.process.output import GONE, printable, silence, stand_in
from deploy.process.signals import ignore_signals, quiet_interrupt

with quiet_interrupt():  # these take a third of a second
    from pydantic import ValidationError

    from deploy import __version__
    from deploy.config.errors import ConfigError
    from deploy.config.explain import explain
    from deploy.process import arithmetic
    from replay.errors import QherdError

COMMANDS = {
    "train": "train",
    "plan": "plan",
    "doctor": "doctor",
    "resume": "resume",
    "scale": "scale",
    "eval": "evaluate",
    "study": "study",
    "runs": "runs",
    "watch": "watch",
    "compare": "compare",
    "record": "record",
    "report": "report",
    "export": "export",
    "dataset": "dataset",
    "replay stats": "replay_stats",
    "clean": "clean",
    "secrets": "secrets",
    "discovery": "discovery",
    "completion": "completion",
}
"""The module of each command, below ``deploy.commands``: imported where it is called."""
USAGE = """qherd: a herd of actors, one learner, deep Q-learning.

  qherd train [ENV]    train; LunarLander-v3 where no ENV is given
  qherd plan [ENV]     what such a run takes and does: memory, network, env steps, samples per insert
  qherd doctor [RUN]   is all here that a run needs; of a run at work: what holds it up, and what to change
  qherd resume RUN     go on with a run that was interrupted, killed, or is out of budget
  qherd scale RUN --actors N
                       have more or fewer actors in a run while it works
  qherd eval RUN       play a run's best or final policy: the mean return, and how far it can be trusted
  qherd record RUN     write a video of it
  qherd export RUN --to DIR
                       write it for other programs: ONNX, torch.export, or numpy alone
  qherd dataset RUN --out ID
                       write episodes of it, or what its replay memory holds, as a Minari dataset
  qherd study FILE     train environments x variants x seeds, as the file has them, and play each final policy
  qherd report RUN|STUDY...
                       what runs and studies have come to: curves, scores, intervals, on a page
  qherd runs [FOLDER]  list the runs here: at work or how they ended, how far they are, their returns
  qherd watch RUN      show the live table of a run that was started elsewhere
  qherd compare RUN RUN...
                       show runs side by side: which options differ, and what they have come to
  qherd replay stats RUN|URL
                       what a run's replay memory holds, slot by slot
  qherd clean RUN      remove what a run has left on its server
  qherd secrets DIR    make a cluster's passwords, users and token
  qherd discovery      tell Prometheus which runs there are
  qherd completion bash|zsh|fish
                       print what has a shell complete commands and options
  qherd --version

Each command explains itself: qherd train --help. An example:

  qherd train CartPole-v1 --learner.lr 1e-3 --actors.count 4 --budget.seconds 120

Exit codes:

  0    done: solved, or the budget is used up
  1    the run failed (also where no env step ever came in), or runs of the study; the doctor found a problem, or you
       declined
  2    the call or what it needs is wrong
  75   a run was asked to stop by Ctrl-C, SIGTERM or SIGHUP, or nobody reads its output any more: qherd resume goes on;
       where nothing had run yet, the same command begins again; a study goes on by the same command
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
            ignore_signals()
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
    command, *rest = arguments or ["--help"]
    if command == "replay":  # a group of commands, for now of one
        command = " ".join([command, *rest[:1]])
        rest = rest[1:]
    if command == "completion":
        from deploy.commands.completion import run as print_completion

        return print_completion(rest, COMMANDS)
    if command in COMMANDS:
        _check_folder()
        with quiet_interrupt():
            run: Callable[[list[str]], int] = import_module(f"deploy.commands.{COMMANDS[command]}").run
        return run(rest)
    if command == "--version":
        print(f"qherd {__version__}")
        return 0
    if command.removeprefix("replay ") in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    raise ConfigError(f"there is no command {command!r}\n\n{USAGE}".rstrip())


def _check_folder() -> None:
    """Raises ConfigError where the working directory is not there any more: what is relative to it has no place."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the working directory was removed: cd into one that is there") from None


def _guarded(run: Callable[[], int]) -> int:
    """Turns what a user can cause into a message; lets what is a defect show its traceback."""
    try:
        return _with_messages(run)
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except OSError as error:
        if error.errno not in GONE or error.filename is not None:
            raise
        silence(sys.stdout)  # what is still in its buffer is nobody's any more
        return 128 + signal.SIGPIPE


def _with_messages(run: Callable[[], int]) -> int:
    try:
        code = run()
        if sys.stdout is not None:  # as >&- has it
            sys.stdout.flush()
        return code
    except ValidationError as error:
        code, message = 2, explain(error, "command line")
    except QherdError as error:
        code, message = error.exit_code, str(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        code, message = 2, f"{error.filename or 'the output or a file'}: {error.strerror}"
    _print_error(f"qherd: {message}")
    return code


def _print_error(message: str) -> None:
    """Prints on stderr, where there is one."""
    try:
        print(printable(message, but="\n\t"), file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


if __name__ == "__main__":
    main()
