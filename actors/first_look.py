"""One look at an environment before anything is started: made, reset, stepped and closed, in a process of its own.

A fault that shows within the first env steps would otherwise cost minutes of restarts, and one that ends its process
(``os._exit``, a crash in C) or hangs would take the command along. The process is a fork of this one: it has the same
folder, import path and variables, costs no second import of numpy, and whatever the environment does to it (threads,
GPU, signal handlers, what it prints) stays there.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import math
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import gymnasium as gym
import numpy as np
from pydantic import TypeAdapter

from actors.closing import CLOSE_S, close_all
from actors.config import EnvConfig
from actors.contract import Interrupted, columns_of, name_of
from actors.envs import about_of, make_env, schema_of
from actors.errors import ContractError, EnvError
from actors.seeds import evaluation_seed
from actors.supervision.restarts import cause
from replay.chunk import ACTION_MASK, Schema

STEPS, SECONDS, FEWEST = 200, 0.2, 3
"""A look ends after so many env steps, or so many seconds and at least twice ``FEWEST`` env steps."""
REPORT_AFTER_S, REPORT_EVERY_S = 2.0, 10.0
"""How long something may take before it is reported, and how often it is reported again."""
TRIES = 3
"""An environment that raises is made anew, as in training; one that raises in each of so many tries is refused."""
PR_SET_PDEATHSIG = 1

Notify = Callable[[str], None]


class Played(NamedTuple):
    """How an environment was played: env steps, ends of episodes, the slowest env step, and whether the same seed gave
    the same first observation again."""

    steps: int
    ends: int
    slowest_s: float
    reproduces: bool


class Look(NamedTuple):
    """What a look has found: the rows' schema, the environment's own observations and actions (``Checked.about``), its
    spaces in words, the seconds that making it took, how it was played, and warnings."""

    schema: Schema
    about: dict[str, Any]
    spaces: str
    make_s: float
    played: Played
    warnings: tuple[str, ...]


def first_look(config: EnvConfig, seed: int, step_timeout_s: float, notify: Notify) -> Look:
    """Plays the environment for a moment in a child process; ``seed`` is a training lane's. Making it may take any
    time, which ``notify`` reports; a reset or a step at most ``step_timeout_s``, as in training.

    Raises:
        EnvError: its actors would die of what it did.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # Python 3.12 warns of any thread at a fork; those of numpy's BLAS stand it
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(config, seed, writing)
    os.close(writing)
    watched = _Watched(config.id, child, step_timeout_s, notify)
    try:
        with contextlib.closing(os.fdopen(reading, "rb", buffering=0)):
            found = watched.wait(reading)
    finally:
        watched.end()
    if "error" in found:
        raise EnvError(found["error"])
    schema = TypeAdapter(Schema).validate_python(found["schema"])
    return Look(
        schema, found["about"], found["spaces"], found["make_s"], Played(*found["played"]), tuple(found["warnings"])
    )


@dataclass
class _Watched:
    """The child that looks, and what it was last reported to do."""

    env_id: str
    pid: int
    step_timeout_s: float
    notify: Notify
    doing: str = "made"
    since_s: float = field(default_factory=time.monotonic)
    status: int | None = None
    reported: tuple[str, float] = ("", -math.inf)

    def wait(self, reading: int) -> dict[str, Any]:
        """Returns what the child has found.

        Raises:
            EnvError: it ended or hung before.
        """
        unread = b""
        while True:
            if select.select([reading], [], [], 0.1)[0]:
                read = os.read(reading, 1 << 16)
                *lines, unread = (unread + read).split(b"\n")
                for line in map(json.loads, lines):
                    if "doing" not in line:
                        return dict(line)
                    self.doing, self.since_s = line["doing"], time.monotonic()
                if read:
                    continue
            if self._ended():
                raise EnvError(self._how_it_ended())
            self._check_time()

    def _check_time(self) -> None:
        """Tells what takes long. Raises EnvError where it hangs."""
        now_s, (what, reported_s) = time.monotonic(), self.reported
        for_s, bounded = now_s - self.since_s, self.doing in ("reset", "stepped")
        if for_s > REPORT_AFTER_S and (what != self.doing or now_s - reported_s > REPORT_EVERY_S):
            self.reported = self.doing, now_s
            until = f"; it is given up after {self.step_timeout_s:g} s (actors.step_timeout_s)" if bounded else ""
            self.notify(f"the environment {self.env_id} is being {self.doing}, for {for_s:.0f} s now{until}")
        if self.doing == "closed" and for_s > CLOSE_S + 1:
            raise EnvError(f"{self.env_id} hangs as it is closed: not done within {CLOSE_S:g} s")
        if bounded and for_s > self.step_timeout_s:
            raise EnvError(
                f"{self.env_id} hangs as it is {self.doing}: not done within {self.step_timeout_s:g} s "
                "(actors.step_timeout_s); raise that option if it takes that long"
            )

    def _ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def _how_it_ended(self) -> str:
        code = os.waitstatus_to_exitcode(self.status or 0)
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        return f"{self.env_id} ended its process {how} as it was {self.doing}, as os._exit() or a crash does"

    def end(self) -> None:
        """Let the child close its environment, and end it where it does not."""
        until_s = time.monotonic() + CLOSE_S + 1
        if not self._ended() and self.doing != "closed":
            os.kill(self.pid, signal.SIGTERM)
        while not self._ended() and time.monotonic() < until_s:
            time.sleep(0.005)
        if not self._ended():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _in_child(config: EnvConfig, seed: int, writing: int) -> NoReturn:
    """Look, write what was found, and end without this process's own end, which is the parent's."""
    code = 1
    try:
        atexit._clear()  # what the parent has registered is its own
        _quiet_and_mortal()
        with os.fdopen(writing, "wb", buffering=0) as pipe:

            def write(**line: Any) -> None:
                pipe.write(json.dumps(line, default=str).encode() + b"\n")

            try:
                found = _look(config, seed, lambda doing: write(doing=doing))
                write(**found._asdict() | {"schema": asdict(found.schema)})
            except Exception as error:
                write(error=str(error) if isinstance(error, EnvError) else f"{config.id}: {cause(error)}")
        atexit._run_exitfuncs()  # what the environment has registered
        code = 0
    except BaseException:  # a signal: whoever sent it waits for no words
        pass
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _quiet_and_mortal() -> None:
    """Sends what is printed here to stderr, and has this process end with its parent."""

    def ended(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ended)
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            raise Interrupted
    os.dup2(2, 1)
    sys.stdout = sys.stderr


def _look(config: EnvConfig, seed: int, doing: Callable[[str], None]) -> Look:
    """Plays some env steps; where the environment raises, in another one, as a lane does."""
    for tries in range(1, TRIES + 1):
        began, notices, seen = time.monotonic(), list[str](), set[str]()
        doing("made")
        env = make_env(config, training=True)
        make_s, schema, about = time.monotonic() - began, schema_of(env), about_of(env)
        spaces = " ".join(f"{env.unwrapped.observation_space} -> {env.unwrapped.action_space}".split())
        try:
            played = _play(env, seed, doing, seen, settled=config.action_mask != "auto")
            break
        except _Masked:
            return _look(config.model_copy(update={"action_mask": "obey"}), seed, doing)
        except ContractError:
            raise
        except Exception as error:
            if tries == TRIES:
                unused = ACTION_MASK in seen and config.action_mask != "obey"
                masked = "; its infos have an action_mask, which --env.action-mask obey uses" if unused else ""
                where = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
                raised = f"{config.id} raised in each of {TRIES} tries: {cause(error)}{where}{masked}"
                raise EnvError(raised) from error
        finally:
            doing("closed")
            notices += close_all([env])
    if ACTION_MASK in seen and config.action_mask == "auto":
        notices.append(
            f"{name_of(env)}: its infos have an action_mask, and those of its first reset had none: it is ignored"
        )
    return Look(schema, about, spaces, make_s, played, tuple(notices))


class _Masked(Exception):
    """An environment whose first infos have an action mask."""


def _play(env: gym.Env[Any, Any], seed: int, doing: Callable[[str], None], seen: set[str], *, settled: bool) -> Played:
    """Plays at random, the first half after a training seed, the second after one of the evaluations'; ``seen`` gets
    the infos' keys. ``settled``: whether action masks are obeyed.

    Raises:
        ContractError: what is not finite.
        _Masked: the first infos have an action mask, and it is not settled whether masks are obeyed.
    """
    rng, steps, ends, slowest_s, reproduces = np.random.default_rng(seed), 0, 0, 0.0, True
    assert isinstance(env.action_space, gym.spaces.Discrete)
    until_s = heard_s = time.monotonic()
    for half, first in enumerate((seed, evaluation_seed(seed)), start=1):
        doing("reset")
        obs, infos = _reset(env, first)
        if not settled and ACTION_MASK in infos:
            raise _Masked
        if half == 1:
            again, _ = _reset(env, first)
            reproduces, until_s = np.array_equal(obs, again), time.monotonic() + SECONDS
        doing("stepped")
        over = False
        while steps < half * STEPS // 2 and (steps < half * FEWEST or time.monotonic() < until_s):
            if over:
                doing("reset")
                obs, infos = _reset(env, None)
                doing("stepped")
            seen.update(infos)
            action, steps, before_s = _any_action(env, infos, rng), steps + 1, time.monotonic()
            with _noting(f"in step({action}), env step {steps} of the try"):
                obs, reward, terminated, truncated, infos = env.step(action)
            now_s = time.monotonic()
            _check_finite(env, "step", obs, float(reward))
            over, slowest_s = terminated or truncated, max(slowest_s, now_s - before_s)
            ends += over
            if now_s - heard_s > 0.5:  # one that is slow does not hang
                heard_s = now_s
                doing("stepped")
    return Played(steps, ends, slowest_s, reproduces)


def _any_action(env: gym.Env[Any, Any], infos: Mapping[str, Any], rng: np.random.Generator) -> int:
    """Returns a random one of the actions that are allowed, where action masks hold, else of all."""
    assert isinstance(env.action_space, gym.spaces.Discrete)
    if any(column.name == ACTION_MASK for column in columns_of(env)):
        if not infos[ACTION_MASK].any():
            raise ContractError(f"{name_of(env)}: its action_mask allows no action, and the episode is not over")
        return int(rng.choice(np.flatnonzero(infos[ACTION_MASK])))
    return int(rng.integers(env.action_space.n))


def _reset(env: gym.Env[Any, Any], seed: int | None) -> tuple[Any, dict[str, Any]]:
    with _noting("in reset()"):
        obs, infos = env.reset(seed=seed)
    _check_finite(env, "reset", obs, 0.0)
    return obs, infos


@contextlib.contextmanager
def _noting(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(where)
        raise


def _check_finite(env: gym.Env[Any, Any], method: str, obs: Any, reward: float) -> None:
    if not np.isfinite(obs).all():
        what = f"an observation that is not finite as {obs.dtype}: {_few(obs)}"
        raise ContractError(f"{name_of(env)}: {method}() returned {what}")
    if not abs(reward) <= float(np.finfo(np.float32).max):
        raise ContractError(f"{name_of(env)}: step() returned the reward {reward}, which float32 has to hold")


def _few(obs: Any) -> str:
    """Some of its numbers."""
    return " ".join(np.array2string(np.asarray(obs), threshold=6, edgeitems=2).split())
