"""One training, from an empty directory to its summary, in any mode."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.episodes import Episodes
from actors.evaluator import Verdict
from deploy.config.models import RunConfig
from deploy.monitoring.display import Display
from deploy.planning.memory import check_memory, check_network, check_windows, plan
from deploy.process.isolation import output_apart
from deploy.process.signals import Interrupted, Stop
from deploy.run_directory.directory import RunDirectory, RunDirError
from deploy.sessions.base import (
    HOLDOUT_S,
    RESTARTS,
    Progress,
    RunFailedError,
    Say,
    Session,
    checkpoint_folder,
    log_file,
)
from deploy.sessions.clock import Clock, Rates
from deploy.sessions.launch import check, check_process, check_values, give_name_back, probe_env, start_session
from learner.checkpoint import names
from replay.chunk import Schema
from replay.logs import failures_logged

LOG = logging.getLogger("qherd.driver")
STOP_S = 17.0
LOG_EVERY_S = 1.0
INTERRUPTED = 75
"""Exit code of a run that was asked to stop and can be resumed: EX_TEMPFAIL of sysexits.h."""
_SCREENS = ("greedy_return", "first_greedy_return", "confirmed_return", "confirmations")
_REMEDIES = {
    "budget of env steps": "; to go on, raise --budget.env-steps",
    "budget of seconds": "; to go on, raise --budget.seconds",
}


@dataclass
class Outcome:
    """How a run went so far; becomes summary.json. ``reason``: why it is over, empty while it is not."""

    reason: str = ""
    solved_s: float | None = None
    solved_env_steps: int | None = None
    best: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    holdout: Episodes | None = None
    figures: dict[str, float] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    rows_lost: dict[str, int] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    unevaluated: str = ""

    def solve(self, elapsed: float) -> None:
        """The best policy has solved the environment."""
        self.reason = "solved"
        self.solved_s = elapsed
        self.solved_env_steps = int(self.figures.get("env_steps", 0))

    def summary(self, config: RunConfig, run: str, clock: Clock) -> dict[str, Any]:
        """The fields of summary.json."""
        figures = self.figures
        refused = sum(self.refused.values())
        return {
            "run": run,
            "env": config.env.id,
            "seed": config.seed,
            "mode": config.mode,
            "exit_reason": self.reason or "running",
            "wall_s": round(clock.wall_s, 2),
            "start_s": round(clock.start_s, 2),
            "solved_s": self.solved_s and round(self.solved_s, 2),
            "solved_env_steps": self.solved_env_steps,
            "env_steps": int(figures.get("env_steps", 0)),
            "updates": int(figures.get("updates", 0)),
            "episodes": int(figures.get("actor_episodes", 0)),
            "eval_mean": self.best.get("mean"),
            "eval_std": self.best.get("std"),
            "eval_episodes": self.best.get("episodes"),
            "eval_lower": self.best.get("lower"),
            "best_updates": self.best.get("updates"),
            "holdout_mean": self.best.get("holdout_mean"),
            "holdout_std": self.best.get("holdout_std"),
            "holdout_episodes": self.best.get("holdout_episodes", 0),
            "final_updates": self.final.get("updates"),
            "final_mean": self.final.get("mean"),
            "confirmations": int(figures.get("confirmations", 0)),
            "chunks_sent": int(figures.get("chunks", 0)) + refused,
            "chunks_stored": int(figures.get("chunks", 0)),
            "chunks_refused": self.refused,
            "rows_lost": self.rows_lost,
            "deaths": self.deaths,
            "unevaluated": self.unevaluated,
            "samples_per_insert": figures.get("samples_per_insert", 0.0),
            **{name: int(figures.get(name, 0)) for name in RESTARTS},
        }


def train(config: RunConfig) -> int:
    """Trains until solved, out of budget or interrupted; returns the exit code. Raises what makes a run fail.

    May be called by another program, in mode ``inline`` also outside its main thread; signals are then its own matter.
    """
    check(config)
    check_process(config)
    schema = probe_env(config)
    check_network(config, schema)
    check_windows(config, schema)
    check_memory(config, schema)
    check_values(config, schema)
    stop = Stop()
    with stop.listening(), contextlib.closing(RunDirectory.create(config)) as directory:
        return _run(config, directory, schema, Outcome(), stop, new=True)


def go_on(config: RunConfig, directory: RunDirectory) -> int:
    """Goes on with a run, as ``train``; one that is over already is left alone."""
    outcome = earlier(config, directory)
    if over := _over(config, outcome, Stop(), Clock(outcome.figures).trained_s):
        print(f"{directory.shown} is over: {over}{_REMEDIES.get(over, '')}")
        return 0
    check(config)
    check_process(config)
    schema = probe_env(config)
    check_network(config, schema)
    check_windows(config, schema)
    check_memory(config, schema)
    check_values(config, schema)
    stop = Stop()
    with stop.listening():
        changed = directory.note_config(config)
        return _run(config, directory, schema, outcome, stop, new=False, changed=changed)


def earlier(config: RunConfig, directory: RunDirectory) -> Outcome:
    """How a run has gone so far, as its directory tells."""
    figures, best = directory.figures(), directory.best() or {}
    for newest in names(checkpoint_folder(config, directory))[
        :1
    ]:  # its last driver may have drained the log after its last row
        figures["env_steps"] = max(figures.get("env_steps", 0), newest.env_steps)
    outcome = Outcome(best=best, figures=figures)
    if best.get("solved"):
        outcome.solve(figures.get("wall_s", 0.0))
    return outcome


def _run(
    config: RunConfig,
    directory: RunDirectory,
    schema: Schema,
    outcome: Outcome,
    stop: Stop,
    *,
    new: bool,
    changed: Sequence[str] = (),
) -> int:
    """From a start to an end; a ``new`` run in which nothing has run gives its name back. ``changed``: what computes
    otherwise than before it was resumed."""
    # in the mode inline the environments are in this process, and what they print is no part of the run's own words
    with (
        output_apart() if config.mode == "inline" else contextlib.nullcontext(sys.stdout) as stdout,
        contextlib.ExitStack() as logging_ends,
    ):
        logging_ends.callback(log_file(config, directory, "driver").start())
        display = Display(directory.run, config, stop.ask, stdout)
        with display:
            _from_start_to_end(config, directory, schema, outcome, stop, display, new=new, changed=changed)
        display.print(_farewell(directory, outcome))
    return INTERRUPTED if outcome.reason == "interrupted" else 0


@failures_logged(LOG)
def _from_start_to_end(
    config: RunConfig,
    directory: RunDirectory,
    schema: Schema,
    outcome: Outcome,
    stop: Stop,
    display: Display,
    *,
    new: bool,
    changed: Sequence[str],
) -> None:
    """See ``_run``; ``outcome`` becomes what has come of it."""
    clock = Clock(outcome.figures)
    display.say(f"run {directory.shown}")
    display.say(plan(config, schema).told(config))
    if changed:
        not_so = ", so it does not go on to the bit" if config.mode == "inline" else ""
        display.say(f"the run computes otherwise than before{not_so}: {'; '.join(changed)}")
    try:
        try:
            session = start_session(config, directory, schema, display.say, stop)
        except BaseException:
            if new:
                give_name_back(config, directory)
            raise
        # the learner's own figures are its checkpoint's, which may be older than the newest row
        outcome.figures = {name: outcome.figures[name] for name in _SCREENS if name in outcome.figures}
        display.say("waiting for the first experience")
        try:
            _advance_until_over(config, directory, session, display, outcome, stop, clock)
        finally:
            if stop.signal is not None:
                LOG.info("asked to stop by %s", signal.Signals(stop.signal).name)
            display.say("stopping")
            _note(outcome, session.stop(STOP_S, _to_hold_out(outcome, directory), lambda: stop.signal is not None))
            with _DiskAlarm(display.say).writing():
                _keep_holdout(outcome, directory)
    except Interrupted:
        outcome.reason = "interrupted"
    except BaseException as error:
        outcome.reason = f"failed: {error}" if str(error) else f"failed: {type(error).__name__}"
        _keep_details(error, directory, display.say)
        raise
    finally:
        if not outcome.reason.startswith("failed"):  # a run that failed is to be noticed
            directory.hide_metrics_address()
        if new and outcome.reason == "interrupted" and not outcome.figures.get("env_steps"):
            give_name_back(config, directory)
        if directory.path.exists():
            with _DiskAlarm(display.say).writing():
                directory.write_summary(outcome.summary(config, directory.run, clock))


def _keep_details(error: BaseException, directory: RunDirectory, say: Say) -> None:
    """Writes a part's own traceback into the run's directory, where there still is one."""
    if isinstance(error, RunFailedError) and error.details and directory.path.exists():
        with contextlib.suppress(OSError):  # a full disk: the message says what matters
            (directory.path / "failure.txt").write_text(error.details)
        say(f"the part's own traceback: {directory.shown}/failure.txt")


def _advance_until_over(
    config: RunConfig,
    directory: RunDirectory,
    session: Session,
    display: Display,
    outcome: Outcome,
    stop: Stop,
    clock: Clock,
) -> None:
    """Raises RunFailedError where the budget of seconds is over and nothing has come in."""
    disk, logged_s, rates = _DiskAlarm(display.say), 0.0, Rates()
    while not outcome.reason:
        progress = session.advance()
        if session.begun:
            clock.begin()
        _note(outcome, progress)
        elapsed = clock.wall_s
        if progress.verdict is not None and progress.policy is not None:
            with disk.writing():
                _judge(config, directory, outcome, progress.verdict, progress.policy, elapsed)
            _tell_unconfirmed(config, progress.verdict, display.say)
        times = {"wall_s": elapsed, "start_s": clock.start_s}
        figures = times | outcome.figures | rates.note(elapsed, outcome.figures) | {"write_failures": disk.failures}
        display.update(figures)
        due = config.mode == "inline" or elapsed - logged_s >= LOG_EVERY_S or progress.verdict is not None
        if figures.get("env_steps") and due:
            with disk.writing():
                directory.log(figures)
            logged_s = elapsed
        outcome.reason = outcome.reason or _over(config, outcome, stop, clock.trained_s)
    if outcome.reason == "budget of seconds" and not outcome.figures.get("env_steps"):
        raise RunFailedError(
            f"no env step has come in within the {config.budget.seconds:g} s of --budget.seconds: {session.told()}"
        )


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
        outcome.holdout = progress.holdout
        outcome.deaths = dict(progress.deaths)
        outcome.unevaluated = progress.unevaluated
        outcome.refused, outcome.rows_lost = (
            progress.refused or outcome.refused,
            progress.rows_lost or outcome.rows_lost,
        )


def _judge(
    config: RunConfig, directory: RunDirectory, outcome: Outcome, verdict: Verdict, policy: bytes, elapsed: float
) -> None:
    """Keep the policy if it is the best so far, by the lower bound of its most thorough evaluation; note a solution.

    Raises RunDirError, and then notes nothing, where the disk refuses the policy: a later one may be kept."""
    episodes = verdict.episodes
    outcome.figures.setdefault("first_greedy_return", verdict.screen.mean)
    outcome.final = {"updates": verdict.updates, "mean": verdict.screen.mean}
    before = outcome.best.get("solved", False), outcome.best.get("rank_bound", float("-inf"))
    if (verdict.solved, episodes.cautious) > before:
        best = {
            "version": verdict.version,
            "updates": verdict.updates,
            "episodes": len(episodes.returns),
            "mean": episodes.mean,
            "std": episodes.std,
            "lower": episodes.cautious if verdict.lower is None else verdict.lower,
            "threshold": config.eval.threshold,
            "solved": verdict.solved,
            "rank_bound": episodes.cautious,
        }
        directory.save_best(policy, best)
        outcome.best = best
    if verdict.solved:
        outcome.solve(elapsed)


def _tell_unconfirmed(config: RunConfig, verdict: Verdict, say: Say) -> None:
    """Says why a confirmation failed: of the first, second, fourth, eighth, and so on."""
    confirmations, threshold = verdict.spent.confirmations, config.eval.threshold
    if threshold is not None and confirmations & (confirmations - 1) == 0 and (told := verdict.unconfirmed(threshold)):
        say(told)


def _keep_holdout(outcome: Outcome, directory: RunDirectory) -> None:
    """Writes what the hold-out has shown beside the policy that was played. Raises RunDirError where the disk refuses
    it."""
    if (held := outcome.holdout) is not None:
        shown = {"holdout_mean": held.mean, "holdout_std": held.std, "holdout_episodes": len(held.returns)}
        outcome.best = {**outcome.best, **shown}
        directory.note_holdout(shown)


def _to_hold_out(outcome: Outcome, directory: RunDirectory) -> bytes | None:
    """The best policy of a run that is over: how it was chosen favours it, so it is played once more."""
    return directory.best_policy() if outcome.reason == "solved" or outcome.reason.startswith("budget") else None


def _over(config: RunConfig, outcome: Outcome, stop: Stop, trained_s: float) -> str:
    """Why the run is over; empty where it is not."""
    if outcome.reason:
        return outcome.reason
    if stop.asked:
        return "interrupted"
    if config.budget.env_steps and outcome.figures.get("env_steps", 0) >= config.budget.env_steps:
        return "budget of env steps"
    if config.budget.seconds and trained_s >= config.budget.seconds:
        return "budget of seconds"
    return ""


def _farewell(directory: RunDirectory, outcome: Outcome) -> str:
    best = outcome.best
    lines = [f"{outcome.reason}: {directory.shown}"]
    if not directory.path.exists():
        return "interrupted before anything had run: nothing is left of it, and its name is free"
    if outcome.reason == "interrupted":
        lines[0] += f"    go on with it: qherd resume {directory.shown}"
    if outcome.solved_s is not None:
        lines[0] = (
            f"solved after {outcome.solved_s:.1f} s and {outcome.solved_env_steps:,} env steps: {directory.shown}"
        )
    if best:
        lines.append(
            f"best policy (update {best['updates']:,}): {best['mean']:.1f} ± {best['std']:.1f} over the "
            f"{best['episodes']} greedy episodes that it was chosen by; lower bound of its mean {best['lower']:.1f}"
        )
        if outcome.holdout is not None:
            lines.append(
                f"hold-out of the best policy: {outcome.holdout.mean:.1f} ± {outcome.holdout.std:.1f} over "
                f"{len(outcome.holdout.returns)} further episodes, whatever they show"
            )
        elif outcome.reason == "solved" or outcome.reason.startswith("budget"):
            lines.append(f"no hold-out was finished within {HOLDOUT_S:g} s: play it with qherd eval {directory.shown}")
        lines.append(f"look at it: qherd eval {directory.shown}    qherd record {directory.shown}")
    return "\n".join(lines)
