"""The driver's metrics of actors and evaluator: see ``replay.metrics``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

from actors.heartbeat import Work
from replay.metrics import Shown, counter, gauge

if TYPE_CHECKING:
    from actors.evaluator import EvaluationResult

RAY = "modes local and cluster"
EVALUATED = "from the first evaluation on"
CONFIRMED = "from the first confirmation on, with `eval.threshold`"


class ActorMetrics(NamedTuple):
    """The actors at work, and where the time of all of them went, over the whole run. The mode inline, in which they
    take turns with the learner, measures no times."""

    actors_alive: Annotated[int, gauge("Actors that have answered and did not die since.")]
    actor_phase_seconds: Annotated[
        Mapping[str, float] | None,
        Shown(
            "counter",
            "Seconds of the actors by phase, summed over them: in the environment, computing, waiting for the server, "
            "with new weights, without credit.",
            when=RAY,
            label="phase",
            values=("env", "own", "log", "fetch", "wait"),
            key="actor_{}_seconds",
        ),
    ] = None
    actor_seconds: float | None = None
    actor_cpu_seconds: Annotated[
        float | None, counter("Seconds that the actors were on a core, summed over them.", when=RAY)
    ] = None
    actor_starved_seconds: Annotated[
        float | None, counter("Seconds that the actors waited for a core, summed over them.", when=RAY)
    ] = None
    weights_fetched: Annotated[
        int | None, counter("Versions of the weights that actors fetched, summed over them.", when=RAY)
    ] = None
    weights_fetched_bytes: Annotated[
        int | None, counter("Bytes of the weights that actors fetched, summed over them.", when=RAY)
    ] = None

    @classmethod
    def of(cls, alive: int, work: Work) -> Self:
        """Returns them for so many actors that are alive, and the work of all that ever were."""
        return cls(
            actors_alive=alive,
            actor_phase_seconds={
                "env": work.env_seconds,
                "own": work.own_seconds,
                "log": work.log_seconds,
                "fetch": work.fetch_seconds,
                "wait": work.wait_seconds,
            },
            actor_seconds=work.seconds,
            actor_cpu_seconds=work.cpu_seconds,
            actor_starved_seconds=work.starved_seconds,
            weights_fetched=work.fetches,
            weights_fetched_bytes=work.fetched_bytes,
        )


def work_of(row: Mapping[str, float]) -> Work:
    """Returns the work that a row of metrics.jsonl has: what the actors of a resumed run did before."""
    return Work(
        seconds=row.get("actor_seconds", 0.0),
        env_seconds=row.get("actor_env_seconds", 0.0),
        log_seconds=row.get("actor_log_seconds", 0.0),
        fetch_seconds=row.get("actor_fetch_seconds", 0.0),
        wait_seconds=row.get("actor_wait_seconds", 0.0),
        cpu_seconds=row.get("actor_cpu_seconds", 0.0),
        starved_seconds=row.get("actor_starved_seconds", 0.0),
        fetches=int(row.get("weights_fetched", 0)),
        fetched_bytes=int(row.get("weights_fetched_bytes", 0)),
    )


class EvaluationMetrics(NamedTuple):
    """The newest verdicts. ``confirmations``: how many the run has had; ``first_greedy_return``: its first screen's."""

    greedy_return: Annotated[float | None, gauge("Mean return of the newest greedy screen.", when=EVALUATED)] = None
    confirmed_return: Annotated[float | None, gauge("Mean return of the newest confirmation.", when=CONFIRMED)] = None
    confirmations: int | None = None
    first_greedy_return: float | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, float]) -> Self:
        """Returns those that a row of metrics.jsonl has."""
        count = row.get("confirmations")
        return cls(
            row.get("greedy_return"),
            row.get("confirmed_return"),
            None if count is None else int(count),
            row.get("first_greedy_return"),
        )

    def after(self, verdict: EvaluationResult) -> Self:
        """Returns them after another verdict: a confirmation's mean stays until the next one."""
        confirmed = self.confirmed_return if verdict.confirmed is None else verdict.confirmed.mean
        mean, first = verdict.screen.mean, self.first_greedy_return
        return type(self)(mean, confirmed, verdict.spent.confirmations, mean if first is None else first)
