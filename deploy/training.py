"""Starts, watches and stops a run from any program, a notebook or a test: what ``qherd train`` does, as a context
manager.

The run is that command, in a process of its own. In this one it would take over what is the program's: torch's threads
and its deterministic mode, stdout, the signals' handlers, a Ray that may be connected already; and what BLAS computes
goes by how numpy was imported here. In its own it is the command's run to the bit, and what it leaves is what the
command leaves: nothing. What is shown of it comes from the files that it writes in any case.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import yaml
from pydantic_core import PydanticSerializationError

from deploy.config.errors import ConfigError, RunDirError, RunFailedError
from deploy.config.layers import PREFIX, compose
from deploy.config.models import RunConfig
from deploy.config.numbers import write_yaml
from deploy.process.children import STOPPED, handing_over, qherd_command
from deploy.run_directory.history import MetricHistory
from deploy.run_directory.lock import RunLock
from deploy.run_directory.run_name import unique_name
from deploy.run_directory.standing import Standing, standing_of

POLL_S = 0.25
SHOWN_AGAIN_S = 1.0
END_S = 60.0
"""A run that was asked to stop ends within 25 s; one that has not within this time never will, and is killed."""
KEPT_BYTES = 1 << 16
"""Of what the command writes on stderr, the end is kept."""

Phase = Literal["starting", "training", "stopping", "over"]


@dataclass(frozen=True)
class Progress:
    """How far a run is. ``metrics``: all of the newest row of metrics.jsonl, by key; the others are of it, too.

    ``phase``: ``starting`` until a row has come in, ``stopping`` after ``Training.stop``, ``over`` once, at the end.
    ``elapsed_s``: seconds of the run, those before it was resumed included. Returns are means over episodes, None
    before there are any: of the actors, who explore; of the newest greedy evaluation; of the newest evaluation that
    was played to confirm one.
    """

    phase: Phase
    elapsed_s: float
    env_steps: int
    updates: int
    episodes: int
    exploring_return: float | None
    greedy_return: float | None
    confirmed_return: float | None
    metrics: Mapping[str, float]

    @classmethod
    def of_row(cls, phase: Phase, row: Mapping[str, float]) -> Self:
        """Returns what a row of metrics.jsonl has; 0 and None for what it has not."""
        return cls(
            phase,
            row.get("wall_s", 0.0),
            int(row.get("env_steps", 0)),
            int(row.get("updates", 0)),
            int(row.get("actor_episodes", 0)),
            row.get("exploring_return"),
            row.get("greedy_return"),
            row.get("confirmed_return"),
            row,
        )


class Training:
    """A run of ``qherd train``, at work while the block of its ``with`` runs::

        with Training("CartPole-v1", overrides={"learner.lr": 5e-4}) as run:
            for progress in run:
                print(progress.env_steps, progress.greedy_return)
        print(run.outcome.state, run.directory)

    Whatever ends the block ends the run in order, as Ctrl-C in a terminal does: with a checkpoint, from which
    ``resume=True``, or ``qherd resume``, goes on; and nothing of it is left. The thread that enters the block has to
    live until its end. No handler of a signal is set.
    """

    def __init__(
        self,
        env: str | None = None,
        *,
        preset: str | None = None,
        config: Path | str | None = None,
        overrides: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        """Resolves the configuration as ``qherd train ENV --preset P --config FILE`` does, QHERD_... variables
        included; ``overrides``, options by dotted name, are on top. Starts nothing. ``resume``: go on with the run of
        that name where there is one already.

        Raises:
            ConfigError: an option is unknown or out of its bounds; the message is the command's.
        """
        given = {**({} if env is None else {"env.id": env}), **(overrides or {})}
        resolved = compose(None, preset, None if config is None else Path(config), overrides=given)
        if resume and resolved.run is None:
            raise ConfigError("resume=True needs to know the run: give its name with overrides={'run': NAME}")
        self.config = resolved.model_copy(update={"run": resolved.run or unique_name(resolved.env.id)})
        self._options, self._resume = _as_yaml(self.config), ["--resume"] if resume else []
        self.directory = (self.config.runs_dir / str(self.config.run)).absolute()
        self._folder = Path.cwd()  # that relative paths are meant from
        self._history, self._lock = MetricHistory(self.directory), RunLock(self.directory, self.directory)
        self._command: _Command | None = None
        self._worked_s, self._stopping, self._told = 0.0, False, False

    @property
    def outcome(self) -> Standing:
        """How the run stands, and, when it is over, how it ended: ``state`` is ``at work``, ``solved``, ``out of
        budget``, ``interrupted``, ``failed`` or ``killed``, and ``damaged`` where its files cannot be read."""
        failure = self._entered().failure()
        if isinstance(failure, ConfigError) and not self._resume:  # perhaps since another run has the name
            return Standing(self.directory, "failed", f"failed: {failure}")
        try:
            return standing_of(self.directory)
        except RunDirError:  # nothing had run yet, and the name is free again
            if failure is not None:
                return Standing(self.directory, "failed", f"failed: {failure}")
            return Standing(self.directory, "interrupted", "interrupted before anything had run")

    def __enter__(self) -> Self:
        """Starts the run; returns when its directory is there.

        Raises:
            ConfigError: what the command refuses, with its message.
            RunFailedError: it has failed already.
        """
        if self._command is not None:
            raise RuntimeError("a Training is entered once: make another one, with resume=True to go on with its run")
        self._worked_s = self._history.newest().get("wall_s", 0.0)
        self._command = _Command(["train", *self._resume], self._options, self._folder)
        try:
            begun = f"process {self._command.pid} "
            while not (self._lock.owner() or "").startswith(begun) and not self._command.over(POLL_S / 5):
                pass
            self._check()
        except BaseException:
            self._command.end()
            raise
        return self

    def __iter__(self) -> Iterator[Progress]:
        """Yields the newest progress whenever there is any, at the latest after a second, until the run is over. What
        came in during the loop's body is passed over: the whole history is in metrics.jsonl.

        Raises:
            ConfigError, RunFailedError: the run has failed; the message is the command's.
            RunDirError: its files cannot be read any more.
        """
        shown, shown_s, over = None, time.monotonic(), False
        while not over:
            over = self._entered().over(POLL_S)
            progress = self._progress(over)
            if progress != shown or time.monotonic() - shown_s >= SHOWN_AGAIN_S:
                shown, shown_s = progress, time.monotonic()
                yield progress
        self._check()

    def stop(self) -> None:
        """Asks the run for an orderly end, with a checkpoint, and returns at once. The loop over the run goes on until
        it has ended."""
        self._stopping = True
        self._entered().stop()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Ends the run in order; meanwhile Ctrl-C ends it at once, without a checkpoint.

        Raises:
            ConfigError, RunFailedError: the run has failed, and the block has not been told.
        """
        self._stopping = True
        self._entered().end()
        if error is None:
            self._check()

    def _entered(self) -> _Command:
        if self._command is None:
            raise RuntimeError("the run is at work in the block of its with only: with Training(...) as run")
        return self._command

    def _progress(self, over: bool) -> Progress:
        row = self._history.newest()
        phase: Phase = "training" if row.get("wall_s", 0.0) > self._worked_s else "starting"
        return Progress.of_row("over" if over else "stopping" if self._stopping else phase, row)

    def _check(self) -> None:
        """Raises what the run has failed of, once."""
        if not self._told:
            failure = self._entered().failure()
            self._told = failure is not None
            if failure is not None:
                raise failure


class _Command:
    """A command of qherd as a process of its own, and the end of what it prints, which a thread reads, so that it never
    waits for a reader. Where this process ends, the command is asked to stop, and finds that nobody reads it."""

    def __init__(self, arguments: list[str], config: str, folder: Path) -> None:
        self._printed, self._last = b"", secrets.token_bytes(16)
        self._reader, self._writer = os.pipe()
        self._asked = self._closed = False
        try:
            self._process = self._start(arguments, config, folder)
        except BaseException:
            os.close(self._reader)
            os.close(self._writer)
            raise
        self._thread = threading.Thread(target=self._read, name="qherd-output", daemon=True)
        self._thread.start()

    def _start(self, arguments: list[str], config: str, folder: Path) -> subprocess.Popen[bytes]:
        # the variables are in the configuration already, under the program's own options
        environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        with handing_over(config) as (options, descriptor):
            return subprocess.Popen(
                qherd_command([*arguments, *options]),
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=self._writer,
                stderr=self._writer,
                pass_fds=[descriptor],
                start_new_session=True,  # Ctrl-C is the program's, and ends its block
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def over(self, timeout_s: float) -> bool:
        """Returns whether it has ended, or ends within this time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Asks it to stop, once: asked again it would end at once."""
        if not self._asked:
            self._asked = True
            self._process.terminate()

    def end(self) -> None:
        """Has it stop, and waits for that. Ctrl-C meanwhile ends it at once, and is raised afterwards."""
        interrupted = None
        while self._process.poll() is None:
            try:
                self.stop()
                self._process.wait(END_S)
            except KeyboardInterrupt as error:
                interrupted = error
                self._process.terminate()
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._close()
        if interrupted is not None:
            raise interrupted

    def failure(self) -> ConfigError | RunFailedError | None:
        """Returns what it has ended of; None where it is at work, or has ended as it should, or was asked to."""
        code = self._process.returncode
        if code in (None, 0, *STOPPED):
            return None
        self._close()
        text = self._printed.decode(errors="replace")
        _, said, message = f"\n{text}".rpartition("\nqherd: ")
        if said and code == ConfigError.exit_code:
            return ConfigError(message.strip())
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return RunFailedError(message.strip() if said else f"qherd train {how}", details=text)

    def _read(self) -> None:
        while self._last not in self._printed:
            self._printed = (self._printed + os.read(self._reader, KEPT_BYTES))[-KEPT_BYTES:]
        self._printed = self._printed.partition(self._last)[0]

    def _close(self) -> None:
        """Ends the thread, after all that was printed; what a process that outlives the command still prints is
        lost."""
        if not self._closed:
            self._closed = True
            os.write(self._writer, self._last)
            self._thread.join()
            os.close(self._writer)
            os.close(self._reader)


def _as_yaml(config: RunConfig) -> str:
    """Returns the configuration for the command, with its servers' passwords."""
    try:
        return write_yaml(config.model_dump(mode="json"))
    except (PydanticSerializationError, yaml.YAMLError) as error:
        raise ConfigError(f"configuration (overrides): a value is none that YAML could hold: {error}") from None
