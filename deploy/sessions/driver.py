"""One training, from an empty directory to its summary, in any mode."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.evaluator import EvaluationResult
from actors.first_look import Look
from actors.metrics import EvaluationMetrics
from deploy.config.errors import RunDirError, RunFailedError
from deploy.config.models import RunConfig
from deploy.monitoring.display import Display
from deploy.planning.memory import plan_memory
from deploy.planning.preconditions import check_before_run, resolved
from deploy.process.isolation import output_apart
from deploy.process.signals import INTERRUPTED, Interrupted, Stop
from deploy.run_directory.description import describe_policy
from deploy.run_directory.directory import RunDirectory, checkpoint_folder
from deploy.run_directory.standing import ended_well
from deploy.sessions.base import Notify, Session, log_file
from deploy.sessions.clock import Clock, Rates
from deploy.sessions.launch import give_name_back, start_session
from deploy.sessions.outcome import Outcome, closing_message, load_outcome
from deploy.tracking.tracking import Tracking, ended_by, trackers_of
from learner.checkpoint import CheckpointError, names, newest_policy
from learner.networks import choice_of
from replay.logs import failures_logged
from replay.metrics import flat

LOG = logging.getLogger("qherd.driver")
STOP_S = 17.0
LOG_EVERY_S = 1.0
_REMEDIES = {
    "budget of env steps": "; to go on, raise --budget.env-steps",
    "budget of updates": "; to go on, raise --budget.updates",
    "budget of seconds": "; to go on, raise --budget.seconds",
}


def train(config: RunConfig, since_s: float | None = None) -> int:
    """Trains until solved, out of budget or interrupted; returns the exit code. Raises what makes a run fail.

    ``since_s``: when the command was given, in seconds of ``time.monotonic()``; None: now. May be called by another
    program, in mode ``inline`` also outside its main thread; signals are then its own matter.
    """
    clock = Clock(since_s=since_s)
    with trackers_of(config.track) as tracking:
        look, stop = check_before_run(config), Stop()
        tracking.check()
        config = resolved(config, look.schema)
        with stop.listening(), contextlib.closing(RunDirectory.create(config)) as directory:
            return _run(config, directory, look, Outcome(), stop, clock, tracking, new=True)


def continue_run(config: RunConfig, directory: RunDirectory, since_s: float | None = None) -> int:
    """Continues a run, as ``train``; one that is over already is left alone."""
    outcome = load_outcome(config, directory)
    clock = Clock(outcome.wall_s, outcome.start_s, outcome.cpu_s, since_s=since_s)
    folder, row = checkpoint_folder(config, directory), directory.history.newest()
    lost = updates_lost(folder, outcome.totals.updates, row) or has_damaged_policy(folder)
    reason = stop_reason(config, outcome, Stop(), clock.trained_s)
    if reason and (not lost or outcome.reason):
        outcome.reason = reason
        if not ended_well(directory.summary().get("exit_reason")):  # killed after its last checkpoint
            directory.write_summary(outcome.summary(config, directory.run, clock))
        print(f"{directory.given_path} is over: {reason}{_REMEDIES.get(reason, '')}")
        return 0
    with trackers_of(config.track) as tracking:
        look, stop = check_before_run(config), Stop()
        tracking.check()
        config = resolved(config, look.schema)
        with stop.listening():
            changed = directory.record_config(config)
            return _run(config, directory, look, outcome, stop, clock, tracking, new=False, changed=changed)


def updates_lost(checkpoints: Path, updates: int, row: Mapping[str, float]) -> int:
    """Returns how many of a run's updates its newest checkpoint in ``checkpoints`` does not have; 0 where there is no
    checkpoint, or where it was left out since the last updates, by the newest ``row``, were skipped."""
    newest = names(checkpoints)[:1]
    return max(0, updates - newest[0].updates) if newest and not row.get("skipped_in_a_row") else 0


def has_damaged_policy(checkpoints: Path) -> bool:
    """Returns whether the policy of the newest checkpoint cannot be played; False where there is no checkpoint."""
    try:
        newest_policy(checkpoints)
    except CheckpointError:
        return bool(names(checkpoints))
    return False


def stop_reason(config: RunConfig, outcome: Outcome, stop: Stop, trained_s: float) -> str:
    """Returns why the run is over; empty where it is not."""
    if outcome.reason:
        return outcome.reason
    if stop.asked:
        return "interrupted"
    if config.budget.env_steps and outcome.totals.env_steps >= config.budget.env_steps:
        return "budget of env steps"
    if config.budget.updates and outcome.totals.updates >= config.budget.updates:
        return "budget of updates"
    if config.budget.seconds and trained_s >= config.budget.seconds:
        return "budget of seconds"
    return ""


def _run(
    config: RunConfig,
    directory: RunDirectory,
    look: Look,
    outcome: Outcome,
    stop: Stop,
    clock: Clock,
    tracking: Tracking,
    *,
    new: bool,
    changed: Sequence[str] = (),
) -> int:
    # in the mode inline the environments are in this process, and what they print is no part of the run's own words
    with (
        output_apart() if config.mode == "inline" else contextlib.nullcontext(sys.stdout) as stdout,
        contextlib.ExitStack() as logging_ends,
    ):
        logging_ends.callback(log_file(config, directory, "driver").start())
        display = Display(directory.run, config, stop.ask, stdout, worked_s=clock.wall_s)
        with display:
            Driver(config, directory, look, outcome, stop, clock, display, tracking, new=new, changed=changed).run()
        display.print(closing_message(directory, outcome))
    return INTERRUPTED if outcome.reason == "interrupted" else 0


class Driver:
    """Takes a run from its start to its end; ``outcome`` becomes what has come of it. A ``new`` run in which nothing
    has run gives its name back. ``changed``: what computes otherwise than before it was resumed."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        look: Look,
        outcome: Outcome,
        stop: Stop,
        clock: Clock,
        display: Display,
        tracking: Tracking,
        *,
        new: bool,
        changed: Sequence[str],
    ) -> None:
        self._config, self._directory = config, directory
        self._schema, self._about = look.schema, look.about
        self._outcome, self._stop, self._display = outcome, stop, display
        self._tracking = tracking
        self._new, self._changed = new, changed
        self._clock, self._disk = clock, DiskAlarm(display.notify)

    @failures_logged(LOG)
    def run(self) -> None:
        """Starts it, advances it until it is over, and ends it. Raises what makes it fail."""
        outcome = self._outcome
        self._announce()
        self._tracking.describe(self._config, self._directory)
        with self._disk.writing():
            describe_policy(self._config, self._directory, self._schema, self._about)
        try:
            self._advance_and_stop(self._started())
        except Interrupted:
            outcome.reason = "interrupted"
        except BaseException as error:
            outcome.reason = f"failed: {error}" if str(error) else f"failed: {type(error).__name__}"
            self._keep_details(error)
            raise
        finally:
            self._leave()

    def _announce(self) -> None:
        notify, config = self._display.notify, self._config
        notify(f"run {self._directory.given_path}")
        notify(plan_memory(config, self._schema).summary_line(config))
        encoder, why = choice_of(config.learner.network, self._schema)
        notify(f"encoder {encoder}, {why}")
        if self._changed:
            not_so = ", so it does not go on to the bit" if config.mode == "inline" else ""
            notify(f"the run computes otherwise than before{not_so}: {'; '.join(self._changed)}")

    def _started(self) -> Session:
        try:
            notify, counts = self._display.notify, self._tracking.counts
            return start_session(self._config, self._directory, self._schema, notify, self._stop, counts)
        except BaseException:
            if self._new:
                give_name_back(self._config, self._directory)
            raise

    def _advance_and_stop(self, session: Session) -> None:
        outcome = self._outcome
        outcome.forget_totals()
        outcome.evaluation = EvaluationMetrics.of_row(self._directory.history.newest())  # as of the checkpoint by now
        self._display.notify("waiting for the first experience")
        try:
            self._advance_until_over(session)
        finally:
            if self._stop.signal is not None:
                LOG.info("asked to stop by %s", signal.Signals(self._stop.signal).name)
            self._display.notify("stopping")
            self._clock.count_cpu()  # while those that Ray started are there
            # how the best policy was chosen favours it, so that of a run that is over is played once more
            policy = self._directory.best.packed() if outcome.completed else None
            last = session.stop(STOP_S, policy, lambda: self._stop.signal is not None)
            if last is not None:
                outcome.add(last)
            with DiskAlarm(self._display.notify).writing():
                outcome.record_holdout(self._directory)
        self._check_last_checkpoint()

    def _check_last_checkpoint(self) -> None:
        """Tells where a run is over whose last checkpoint is not on the disk.

        Raises:
            RunFailedError: its budget is used up, so that nothing is left of what it has learned last.
        """
        outcome, folder = self._outcome, checkpoint_folder(self._config, self._directory)
        lost = updates_lost(folder, outcome.totals.updates, self._directory.history.newest())
        if not outcome.completed or not lost:
            return
        told = (
            f"the last {lost:,} updates are in no checkpoint: see that {folder} can be written, then go on with "
            f"qherd resume {self._directory.given_path}"
        )
        if outcome.reason == "solved" or self._config.mode == "cluster":  # a shared disk may show it later
            self._display.notify(told)
        else:
            raise RunFailedError(told)

    def _advance_until_over(self, session: Session) -> None:
        """Raises RunFailedError where the budget of seconds is over and nothing has come in."""
        config, outcome, clock = self._config, self._outcome, self._clock
        logged_s, rates = 0.0, Rates()
        while not outcome.reason:
            progress = session.advance()
            if session.begun:
                clock.begin()
            outcome.add(progress)
            elapsed_s = clock.wall_s
            if progress.verdict is not None and progress.policy is not None:
                self._record_evaluation(progress.verdict, progress.policy, elapsed_s)
            row = self._row(elapsed_s, rates)
            self._display.update(row)
            due = config.mode == "inline" or elapsed_s - logged_s >= LOG_EVERY_S or progress.verdict is not None
            if outcome.totals.anything and due:
                with self._disk.writing():
                    self._directory.history.append(row)
                logged_s = elapsed_s
                self._tracking.offer(row, evaluated=progress.verdict is not None)
            self._show_news_of_trackers()
            outcome.reason = outcome.reason or stop_reason(config, outcome, self._stop, clock.trained_s)
        if outcome.reason == "budget of seconds" and not outcome.totals.anything:
            raise RunFailedError(
                f"no env step has come in within the {config.budget.seconds:g} s of --budget.seconds: "
                f"{session.status_line()}"
            )

    def _row(self, elapsed_s: float, rates: Rates) -> dict[str, float]:
        """Returns what the display and metrics.jsonl show now, by key."""
        outcome = self._outcome
        row = {"wall_s": elapsed_s, "start_s": self._clock.start_s}
        if self._config.mode != "cluster":  # its processes are elsewhere
            row["cpu_s"] = self._clock.cpu_s
        if outcome.metrics is not None:
            row |= flat(outcome.metrics)
            if outcome.metrics.learner is not None:
                row |= rates.update(elapsed_s, outcome.totals.env_steps, outcome.totals.updates)
        return row | flat(outcome.evaluation) | {"write_failures": self._disk.failures} | self._tracking.counts()

    def _show_news_of_trackers(self) -> None:
        for text in self._tracking.news():
            self._display.notify(text)

    def _record_evaluation(self, verdict: EvaluationResult, policy: bytes, elapsed_s: float) -> None:
        """Records the verdict, and shows why a confirmation failed: of the first, second, fourth, eighth, and so on."""
        with self._disk.writing():
            self._outcome.record_evaluation(self._config, self._directory, verdict, policy, elapsed_s)
        count, threshold = verdict.spent.confirmations, self._config.eval.threshold
        if threshold is not None and count & (count - 1) == 0 and (told := verdict.unconfirmed(threshold)):
            self._display.notify(told)

    def _keep_details(self, error: BaseException) -> None:
        """Writes a part's own traceback into the run's directory, where there still is one."""
        if isinstance(error, RunFailedError) and error.details and self._directory.path.exists():
            with contextlib.suppress(OSError):  # a full disk: the message says what matters
                (self._directory.path / "failure.txt").write_text(error.details)
            self._display.notify(f"the part's own traceback: {self._directory.given_path}/failure.txt")

    def _leave(self) -> None:
        """Leaves in the directory what is to be known of the run; or no directory."""
        outcome, directory = self._outcome, self._directory
        if not outcome.failed:  # a run that failed is to be noticed
            directory.unregister_metrics()
        if self._new and outcome.reason == "interrupted" and not outcome.totals.anything:
            give_name_back(self._config, directory)
        if directory.path.exists():
            self._clock.count_cpu()
            summary = outcome.summary(self._config, directory.run, self._clock)
            with DiskAlarm(self._display.notify).writing():
                directory.write_summary(summary)
            self._end_tracking(summary)

    def _end_tracking(self, summary: dict[str, Any]) -> None:
        """Closes the run's records in trackers; what is not in them is told, and in summary.json."""
        self._tracking.end(self._directory, ended_by(self._outcome.reason), summary)
        self._show_news_of_trackers()
        if counts := self._tracking.counts():
            with DiskAlarm(self._display.notify).writing():
                self._directory.write_summary({**summary, **counts})


class DiskAlarm:
    """Lets a run continue where the disk refuses what it writes: shown once per spell, and counted."""

    def __init__(self, notify: Notify) -> None:
        self._notify, self._failing = notify, False
        self.failures = 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Suppresses RunDirError in the block."""
        try:
            yield
            self._failing = False
        except RunDirError as error:
            if not self._failing:
                self._notify(f"{error}; the run goes on, make room")
            self._failing = True
            self.failures += 1
