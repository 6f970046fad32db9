"""One training, from an empty directory to its summary, in any mode."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.evaluator import Verdict
from deploy.config import ConfigError, RunConfig
from deploy.display import Display
from deploy.launch import check, check_values, probe_env, start_session
from deploy.plan import check_memory, check_network, plan
from deploy.run_dir import RunDirectory, RunDirError
from deploy.session import RESTARTS, Progress, RunFailedError, Say, Session, checkpoint_folder
from deploy.valkey import ServerError
from learner.checkpoint import CheckpointError, names
from replay.chunk import Schema
from replay.log import LogError
from replay.storage import CannotFit

STOP_S = 17.0
LOG_EVERY_S = 1.0
INTERRUPTED = 75
"""Exit code of a run that was asked to stop and can be resumed: EX_TEMPFAIL of sysexits.h."""
_SCREENS = ("greedy_return", "first_greedy_return")
_REMEDIES = {
    "budget of env steps": "; to go on, raise --budget.env-steps",
    "budget of seconds": "; to go on, raise --budget.seconds",
}


@dataclass
class Outcome:
    """How a run went so far; becomes summary.json. ``reason``: why it is over, empty while it is not;
    ``wall_before_s``: what it took before it was resumed."""

    reason: str = ""
    wall_before_s: float = 0.0
    solved_s: float | None = None
    solved_env_steps: int | None = None
    best: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    rows_lost: dict[str, int] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)

    def solve(self, elapsed: float) -> None:
        """The best policy has solved the environment."""
        self.reason = "solved"
        self.solved_s = elapsed
        self.solved_env_steps = int(self.figures.get("env_steps", 0))

    def summary(self, config: RunConfig, run: str, wall_s: float) -> dict[str, Any]:
        """The fields of summary.json."""
        figures = self.figures
        refused = sum(self.refused.values())
        return {
            "run": run,
            "env": config.env.id,
            "seed": config.seed,
            "mode": config.mode,
            "exit_reason": self.reason or "running",
            "wall_s": round(wall_s, 2),
            "solved_s": self.solved_s and round(self.solved_s, 2),
            "solved_env_steps": self.solved_env_steps,
            "env_steps": int(figures.get("env_steps", 0)),
            "updates": int(figures.get("updates", 0)),
            "episodes": int(figures.get("actor_episodes", 0)),
            "eval_mean": self.best.get("mean"),
            "eval_std": self.best.get("std"),
            "eval_episodes": self.best.get("episodes"),
            "chunks_sent": int(figures.get("chunks", 0)) + refused,
            "chunks_stored": int(figures.get("chunks", 0)),
            "chunks_refused": self.refused,
            "rows_lost": self.rows_lost,
            "deaths": self.deaths,
            "samples_per_insert": figures.get("samples_per_insert", 0.0),
            **{name: int(figures.get(name, 0)) for name in RESTARTS},
        }


class Stop:
    """Ctrl-C or SIGTERM: the first asks for an orderly end, the second ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while the block runs."""
        before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, _: object) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number


def train(config: RunConfig) -> int:
    """Train until solved, out of budget or interrupted; returns the exit code. Raises what makes a run fail."""
    check(config)
    schema = probe_env(config)
    check_network(config, schema)
    check_memory(config, schema)
    check_values(config, schema)
    with contextlib.closing(RunDirectory.create(config)) as directory:
        return _run(config, directory, schema, Outcome(), new=True)


def go_on(config: RunConfig, directory: RunDirectory) -> int:
    """Go on with a run, as ``train``; one that is over already is left alone."""
    outcome = earlier(config, directory)
    if over := _over(config, outcome, Stop(), outcome.wall_before_s):
        print(f"{directory.shown} is over: {over}{_REMEDIES.get(over, '')}")
        return 0
    check(config)
    schema = probe_env(config)
    check_network(config, schema)
    check_memory(config, schema)
    check_values(config, schema)
    changed = directory.note_config(config)
    # the learner's own figures are its checkpoint's, which may be older than the newest row
    outcome.figures = {name: outcome.figures[name] for name in _SCREENS if name in outcome.figures}
    return _run(config, directory, schema, outcome, new=False, changed=changed)


def earlier(config: RunConfig, directory: RunDirectory) -> Outcome:
    """How a run has gone so far, as its directory tells."""
    figures, best = directory.figures(), directory.best() or {}
    for newest in names(checkpoint_folder(config, directory))[
        :1
    ]:  # its last driver may have drained the log after its last row
        figures["env_steps"] = max(figures.get("env_steps", 0), newest.env_steps)
    outcome = Outcome(best=best, figures=figures, wall_before_s=figures.get("wall_s", 0.0))
    if best.get("solved"):
        outcome.solve(outcome.wall_before_s)
    return outcome


def _run(
    config: RunConfig,
    directory: RunDirectory,
    schema: Schema,
    outcome: Outcome,
    *,
    new: bool,
    changed: Sequence[str] = (),
) -> int:
    """From a start to an end; the directory of a ``new`` run that cannot start is removed. ``changed``: what computes
    otherwise than before it was resumed."""
    started, stop = time.monotonic() - outcome.wall_before_s, Stop()
    with stop.listening(), Display(directory.run, config) as display:
        display.say(f"run {directory.shown}")
        display.say(plan(config, schema).told(config))
        if changed:
            not_so = ", so it does not go on to the bit" if config.mode == "inline" else ""
            display.say(f"the run computes otherwise than before{not_so}: {'; '.join(changed)}")
        try:
            try:
                session = start_session(config, directory, schema, display.say)
            except (ConfigError, CannotFit, CheckpointError, LogError, ServerError):
                if new:
                    directory.discard()  # nothing has run: the name stays free
                raise
            display.say("waiting for the first experience")
            try:
                _advance_until_over(config, directory, session, display, outcome, stop, started)
            finally:
                display.say("stopping")
                _note(outcome, session.stop(STOP_S))
        except BaseException as error:
            if isinstance(error, RunFailedError) and error.details:
                with contextlib.suppress(OSError):  # a full disk: the message says what matters
                    (directory.path / "failure.txt").write_text(error.details)
                display.say(f"the part's own traceback: {directory.shown}/failure.txt")
            outcome.reason = f"failed: {error}" if str(error) else f"failed: {type(error).__name__}"
            raise
        finally:
            if not outcome.reason.startswith("failed"):  # a run that failed is to be noticed
                directory.hide_metrics_address()
            if directory.path.exists():
                summary = outcome.summary(config, directory.run, time.monotonic() - started)
                with _DiskAlarm(display.say).writing():
                    directory.write_summary(summary)
    print(_farewell(directory, outcome))
    return INTERRUPTED if outcome.reason == "interrupted" else 0


def _advance_until_over(
    config: RunConfig,
    directory: RunDirectory,
    session: Session,
    display: Display,
    outcome: Outcome,
    stop: Stop,
    started: float,
) -> None:
    disk, logged_s = _DiskAlarm(display.say), 0.0
    while not outcome.reason:
        progress = session.advance()
        _note(outcome, progress)
        if progress.verdict is not None and progress.policy is not None:
            with disk.writing():
                _judge(config, directory, outcome, progress.verdict, progress.policy, time.monotonic() - started)
        elapsed = time.monotonic() - started
        figures = {"wall_s": elapsed} | outcome.figures | {"write_failures": disk.failures}
        display.update(figures)
        due = config.mode == "inline" or elapsed - logged_s >= LOG_EVERY_S or progress.verdict is not None
        if figures.get("env_steps") and due:
            with disk.writing():
                directory.log(figures)
            logged_s = elapsed
        outcome.reason = outcome.reason or _over(config, outcome, stop, elapsed)


class _DiskAlarm:
    """A disk that refuses what a running run writes is told once per spell, counted, and stops nothing."""

    def __init__(self, say: Say) -> None:
        self._say, self._failing = say, False
        self.failures = 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Go on where the block's writing is refused."""
        try:
            yield
            self._failing = False
        except RunDirError as error:
            if not self._failing:
                self._say(f"{error}; the run goes on, make room")
            self._failing = True
            self.failures += 1


def _note(outcome: Outcome, progress: Progress | None) -> None:
    if progress is not None:
        outcome.figures |= progress.figures
        outcome.deaths = dict(progress.deaths)
        outcome.refused, outcome.rows_lost = (
            progress.refused or outcome.refused,
            progress.rows_lost or outcome.rows_lost,
        )


def _judge(
    config: RunConfig, directory: RunDirectory, outcome: Outcome, verdict: Verdict, policy: bytes, elapsed: float
) -> None:
    """Keep the policy if it is the best so far, by the mean of its most thorough evaluation; note a solution.

    Raises RunDirError, and then notes nothing, where the disk refuses the policy: a later one may be kept."""
    episodes = verdict.episodes
    outcome.figures.setdefault("first_greedy_return", verdict.screen.mean)
    rank = [verdict.solved, verdict.confirmed is not None, episodes.mean]
    if rank > outcome.best.get("rank", [False, False, float("-inf")]):
        best = {
            "version": verdict.version,
            "updates": verdict.updates,
            "episodes": len(episodes.returns),
            "mean": episodes.mean,
            "std": episodes.std,
            "lower": episodes.lower,
            "threshold": config.eval.threshold,
            "solved": verdict.solved,
            "rank": rank,
        }
        directory.save_best(policy, best)
        outcome.best = best
    if verdict.solved:
        outcome.solve(elapsed)


def _over(config: RunConfig, outcome: Outcome, stop: Stop, elapsed: float) -> str:
    """Why the run is over; empty where it is not."""
    if outcome.reason:
        return outcome.reason
    if stop.signal is not None:
        return "interrupted"
    if config.budget.env_steps and outcome.figures.get("env_steps", 0) >= config.budget.env_steps:
        return "budget of env steps"
    if config.budget.seconds and elapsed >= config.budget.seconds:
        return "budget of seconds"
    return ""


def _farewell(directory: RunDirectory, outcome: Outcome) -> str:
    best = outcome.best
    lines = [f"{outcome.reason}: {directory.shown}"]
    if outcome.reason == "interrupted":
        lines[0] += f"    go on with it: qherd resume {directory.shown}"
    if outcome.solved_s is not None:
        lines[0] = (
            f"solved after {outcome.solved_s:.1f} s and {outcome.solved_env_steps:,} env steps: {directory.shown}"
        )
    if best:
        lines.append(
            f"best policy: {best['mean']:.1f} ± {best['std']:.1f} over {best['episodes']} greedy episodes "
            f"(mean - 2 standard errors: {best['lower']:.1f})"
        )
        lines.append(f"look at it: qherd eval {directory.shown}    qherd record {directory.shown}")
    return "\n".join(lines)
