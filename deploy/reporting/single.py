"""What a report of a single run shows beside its scores: time, replay, staleness, faults, options, and its command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deploy.config.models import dump
from deploy.config.numbers import write_yaml
from deploy.config.repeat import command_for
from deploy.diagnosis.bottleneck import diagnose, measured
from deploy.reporting.charts import Chart, Line, Lines
from deploy.reporting.comparison import provenance_of
from deploy.reporting.document import Block, Code, Fold, Heading, Pictures, Table, Text
from deploy.reporting.records import RunRecord
from deploy.reporting.words import number, optional, share, size
from learner.phases import PHASE_KEY, PHASES

ACTOR_PHASES = {
    "env": "in the environment",
    "own": "computing: inference and rows",
    "log": "waiting for the replay server",
    "fetch": "with new weights",
    "wait": "without credit: the learner sets the pace",
}
OVER_TIME = {
    "samples_per_insert": "transitions trained on per env step",
    "weight_staleness_mean_versions": "versions that the actors' weights are behind",
    "replay_rows": "rows in the replay memory",
}
RESTARTS = ("actor", "evaluator", "learner", "server")


def blocks_of_run(run: RunRecord) -> Iterator[Block]:
    """Yields what is shown of one run."""
    yield Heading("How it went", 2)
    yield Table("times, counts and evaluations", ("what", "value"), tuple(_course(run)))
    yield from _time(run)
    yield Heading("Replay and staleness", 2)
    yield Table("replay memory, as it was at the end", ("what", "value"), tuple(_replay(run.newest)))
    if charts := tuple(_over_time(run)):
        yield Pictures(charts)
    yield Heading("Faults survived", 2)
    faults = tuple(_faults(run))
    if faults:
        yield Table("faults, and what was lost by them", ("what", "count"), faults)
    else:
        yield Text("None: nothing was restarted, refused, lost or made anew.")
    yield Heading("Configuration and versions", 2)
    yield Text("This command trains with the same options, under a name of its own:")
    yield Code(command_for(run.config))
    yield Table("with what it was computed", ("what", "value"), tuple(provenance_of(run).items()))
    yield Fold("All options", (Code(write_yaml(dump(run.config))),))


def _course(run: RunRecord) -> Iterator[tuple[str, str]]:
    yield "how it ended", run.state
    if (summary := run.summary) is None:
        return
    yield "seconds, of which start", f"{number(summary.wall_s)}, {number(summary.start_s)}"
    if summary.learner_device is not None:
        yield "learner's device", summary.learner_device
    if summary.cpu_s is not None:
        yield "CPU seconds, of all its processes", number(summary.cpu_s)
    if summary.solved_s is not None:
        yield "solved after", f"{number(summary.solved_s)} s, {optional(summary.solved_env_steps)} env steps"
    yield "env steps, updates, episodes", ", ".join(map(number, (summary.env_steps, summary.updates, summary.episodes)))
    if summary.final_mean is not None:
        yield "newest evaluation during training", f"{number(summary.final_mean)} (update {summary.final_updates:,})"
    if run.final is not None:
        yield "final policy, played after the run", _evaluated(run.final.mean, run.final.stderr, len(run.final.returns))
    if summary.eval_mean is not None:
        episodes = summary.eval_episodes or 0
        error = summary.eval_std / episodes**0.5 if summary.eval_std is not None and episodes > 1 else None
        yield "best policy: selected by this evaluation", _evaluated(summary.eval_mean, error, episodes)
    if summary.holdout_mean is not None:
        error = summary.holdout_std / summary.holdout_episodes**0.5 if summary.holdout_std is not None else None
        yield "best policy: hold-out", _evaluated(summary.holdout_mean, error, summary.holdout_episodes)
    if run.best is not None:
        yield (
            "best policy (selected), played after the run",
            _evaluated(run.best.mean, run.best.stderr, len(run.best.returns)),
        )


def _evaluated(mean: float, error: float | None, episodes: int) -> str:
    shown = "" if error is None else f" ± {number(error)} (standard error)"
    return f"{number(mean)}{shown}, {episodes} episodes"


def _time(run: RunRecord) -> Iterator[Block]:
    yield Heading("Where its time went", 2)
    newest = run.newest
    found = diagnose(measured({}, newest), run.config)
    if found.bottleneck != "not known":
        yield Text(f"Over the whole run: {found.why}.")
    phases = {phase: newest.get(PHASE_KEY.format(phase), 0.0) for phase in PHASES}
    if sum(phases.values()) > 0:
        yield _shares("the learner's time", phases, PHASES)
    actors = {phase: newest.get(f"actor_{phase}_seconds", 0.0) for phase in ACTOR_PHASES}
    if sum(actors.values()) > 0:
        yield _shares("the actors' time, over all of them", actors, ACTOR_PHASES)


def _shares(caption: str, spent: Mapping[str, float], words: Mapping[str, str]) -> Table:
    whole = sum(spent.values())
    rows = sorted(spent.items(), key=lambda pair: -pair[1])
    return Table(
        caption,
        ("phase", "share", "seconds", "what it is"),
        tuple((name, share(took / whole), number(took), words[name]) for name, took in rows if took > 0),
    )


def _replay(newest: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for name, text in (
        ("replay_rows", "rows in it"),
        ("replay_capacity_rows", "rows that it can hold"),
        ("replay_sampleable_rows", "rows that can be sampled"),
        ("rows", "rows taken in"),
        ("samples", "transitions trained on"),
        ("samples_per_insert", "samples per insert"),
        ("samples_per_insert_target", "samples per insert asked for"),
        ("sample_age_rows", "age of the newest batches, in rows"),
        ("log_rows", "rows in the server's log"),
        ("weight_staleness_mean_versions", "versions that the actors' weights are behind, mean"),
        ("weight_staleness_versions", "versions that they are behind, greatest"),
    ):
        if name in newest:
            yield text, number(newest[name])
    for name, text in (("replay_bytes", "size of the learner's mirror"), ("log_memory_bytes", "size of the server")):
        if name in newest:
            yield text, size(newest[name])


def _over_time(run: RunRecord) -> Iterator[Chart]:
    for name, label in OVER_TIME.items():
        curve = run.curve("wall_s", name)
        if curve is not None and len(curve.x) > 1:
            title = label[0].upper() + label[1:]
            last, greatest = number(float(curve.y[-1])), number(float(curve.y.max()))
            description = f"{title}: {last} at the end, {greatest} at the most."
            yield Chart(title, description, Lines("seconds", label, (Line(curve.x, curve.y, 0),)))


def _faults(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Yields what went wrong and how often; nothing where nothing did."""
    newest, summary = run.newest, run.summary
    for kind in RESTARTS:
        if count := newest.get(f"{kind}_restarts"):
            yield f"{kind} restarted", number(count)
    if summary is not None:
        for what, counts in (
            ("chunks refused", summary.chunks_refused),
            ("rows lost", summary.rows_lost),
            ("died", summary.deaths),
        ):
            for reason, count in counts.items():
                if count:
                    yield f"{what}: {reason}", number(count)
        if summary.unevaluated:
            yield "policies that could not be evaluated", summary.unevaluated[:200]
    for name, text in (
        ("env_rebuilds", "environments that raised and were made anew"),
        ("log_full", "times that the server was nearly full"),
        ("log_unavailable", "calls of the learner that a server did not answer"),
        ("actor_push_retries", "pushes of actors that the server did not answer or had no room for"),
        ("updates_skipped", "updates that were not finite, and were skipped"),
        ("checkpoint_failures", "checkpoints that could not be written"),
        ("write_failures", "rows that could not be written"),
        ("track_lost", "rows that are in no tracker's record"),
    ):
        if count := newest.get(name):
            yield text, number(count)
