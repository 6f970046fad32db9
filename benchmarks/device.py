"""The learner on its device, a GPU where there is one: updates/s and phases, by encoder, batch and storage."""

from __future__ import annotations

import itertools

from benchmarks.learner_rate import running_herd
from benchmarks.result import Result
from deploy.config.layers import compose
from deploy.process.host import usable_cores
from learner.learner import device_name
from learner.loop import LearnerLoop
from learner.phases import PHASE_KEY, PHASES
from replay.metrics import flat

ENV_ID = "ALE/Pong-v5"
ENCODERS, BATCHES, STORAGES = ("nature", "impala"), (32, 512), ("ram", "device")
CAPACITY_ROWS, MIN_ROWS = 20_000, 2_000
WARM_UP_UPDATES, SECONDS, REPETITIONS = 100, 2.0, 5
SHOWN_SHARE = 0.01


def measure(quick: bool) -> list[Result]:
    """The preset's real actors, as many as there are cores for, feed a learner of the preset on a real server.

    Its limiter is as the preset's, so a learner that is faster than the actors waits for them: the rate counts the
    seconds in which it did not.
    """
    cases = itertools.product(ENCODERS, BATCHES, STORAGES)
    return [_measure(*case, quick) for case in (itertools.islice(cases, 1) if quick else cases)]


def _measure(encoder: str, batch: int, storage: str, quick: bool) -> Result:
    options = {
        "LEARNER_NETWORK_ENCODER": encoder,
        "LEARNER_BATCH": batch,
        "REPLAY_STORAGE": storage,
        "REPLAY_CAPACITY_ROWS": CAPACITY_ROWS,
        "REPLAY_MIN_ROWS": MIN_ROWS,
        "ACTORS_COUNT": max(1, min(8, int(usable_cores()) - 2)),
    }
    config = compose(ENV_ID, None, None, {f"QHERD_{name}": str(value) for name, value in options.items()})
    repetitions, seconds = (2, 0.5) if quick else (REPETITIONS, SECONDS)
    with running_herd(config, 2 if quick else WARM_UP_UPDATES) as loop:
        turns = [_turn(loop, seconds) for _ in range(repetitions)]
        device = loop.learner.device
    total_s = sum(sum(turn.values()) for _, _, turn in turns)
    shares = {phase: sum(turn[phase] for _, _, turn in turns) / total_s for phase in PHASES}
    phases = ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items() if share >= SHOWN_SHARE)
    notes = (
        f"{sum(env_steps for _, env_steps, _ in turns) / total_s:,.0f} env steps/s from {config.actors.count} actors "
        f"beside it, {sum(updates for updates, _, _ in turns) / total_s:,.1f} updates/s with the waiting",
        f"where the time went: {phases}",
    )
    rates = tuple(updates / max(1e-9, sum(turn.values()) - turn["wait"]) for updates, _, turn in turns)
    return Result(
        f"{device_name(device)}: {encoder}, batch {batch}, rows in {storage}", "updates/s at work", rates, notes=notes
    )


def _turn(loop: LearnerLoop, seconds: float) -> tuple[int, int, dict[str, float]]:
    """Runs the loop; returns its updates, the env steps that came in, and the seconds of its phases."""
    before = flat(loop.report().metrics)
    loop.train(seconds)
    after = flat(loop.report().metrics)  # on a GPU it waits for what was enqueued
    spent = {phase: after[key] - before[key] for phase in PHASES if (key := PHASE_KEY.format(phase))}
    return int(after["updates"] - before["updates"]), int(after["env_steps"] - before["env_steps"]), spent
