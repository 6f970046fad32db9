"""The learner's and the replay's figures as Prometheus metrics, updated once per report. The registry is handed in."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from learner.report import Report

GAUGES = {
    "replay_rows": "Rows alive in the mirror, boundary rows included.",
    "replay_capacity_rows": "Rows that the mirror can hold.",
    "log_rows": "Rows that the server still has of those ingested.",
    "priority_mean": "Mean of the priorities to the power alpha, over the rows that can be sampled.",
    "importance_beta": "Exponent of the importance weights.",
    "samples_per_insert": "Transitions trained on per env step, realised.",
    "weight_staleness_versions": "Versions from the newest chunks' weights to the newest weights.",
    "gate_open": "1 while actors may insert.",
    "loss": "Mean loss since the last report.",
    "td_error": "Mean absolute TD error of the last batch.",
    "q_mean": "Mean Q value of the last batch.",
    "grad_norm": "Norm of the last gradient before clipping.",
    "env_steps_per_second": "Env steps inserted per second.",
    "updates_per_second": "Gradient steps per second.",
    "actors_alive": "Actors that answer.",
    "servers_down": "Replay servers that did not answer the learner's newest call; their slots wait.",
    "greedy_return": "Mean return of the newest greedy evaluation.",
    "exploring_return": "Mean return of the exploring actors' newest episodes.",
    "actor_returns_sum": "Sum of the returns of the exploring actors' episodes; falls where they are negative.",
}
COUNTERS = {
    "updates": "Gradient steps.",
    "updates_skipped": "Updates whose loss or gradient was not finite: the weights stayed as they were.",
    "env_steps": "Env steps inserted into the mirror.",
    "actor_env_steps": "Env steps that the actors took, over all incarnations.",
    "actor_episodes": "Episodes that the exploring actors finished.",
    "actor_gate_wait_seconds": "Seconds that actors waited at the gate.",
    "chunks": "Chunks ingested.",
    "priority_updates_missed": "TD errors that came for rows evicted meanwhile.",
    "chunk_bytes": "Bytes of the chunks ingested.",
    "weights_published": "Weights published.",
    "weights_published_bytes": "Bytes of the weights published.",
    "log_unavailable": "Calls of the learner that the server did not answer, or not now.",
    "log_full": "Times that the learner trimmed the log because the server's memory was nearly full.",
    "learner_wait_seconds": "Seconds that the learner waited for rows.",
    "actor_restarts": "Restarts of actors and evaluator.",
}
LABELLED = {
    "chunks_refused": ("Chunks refused, by reason.", "reason"),
    "rows_lost": ("Rows that were sent and never read, by reason.", "reason"),
}


class RunMetrics(Collector):
    """Shows the newest report of a run as ``qherd_`` metrics, each labelled with the run."""

    def __init__(self, registry: CollectorRegistry, run: str, version: str) -> None:
        self._run = run
        self._report: Mapping[str, float] = {}
        self._labelled: Mapping[str, Mapping[str, int]] = {}
        Gauge("qherd_build_info", "The version that runs.", ["version"], registry=registry).labels(version).set(1)
        registry.register(self)

    def update(self, report: Mapping[str, float], labelled: Mapping[str, Mapping[str, int]]) -> None:
        """Show this report from the next scrape on. Names outside the catalogue above are passed over."""
        self._report, self._labelled = dict(report), {name: dict(counts) for name, counts in labelled.items()}

    def collect(self) -> list[Metric]:
        """The metrics of the newest report."""
        metrics: list[Metric] = []
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"qherd_{name}", text, labels=["run"])
            if name in self._report:
                gauge.add_metric([self._run], self._report[name])
            metrics.append(gauge)
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"qherd_{name}", text, labels=["run"])
            if name in self._report:
                counter.add_metric([self._run], self._report[name])
            metrics.append(counter)
        for name, (text, label) in LABELLED.items():
            counter = CounterMetricFamily(f"qherd_{name}", text, labels=["run", label])
            for value, count in self._labelled.get(name, {}).items():
                counter.add_metric([self._run, value], count)
            metrics.append(counter)
        return metrics


class MetricsServer:
    """The run's metrics, and where an address is given the HTTP endpoint /metrics."""

    def __init__(self, run: str, version: str, address: tuple[str, int] | None) -> None:
        """``address``: host and port; None serves nothing. Raises OSError where the port is taken."""
        registry = CollectorRegistry()
        self._metrics = RunMetrics(registry, run, version)
        self._server = start_http_server(address[1], address[0], registry=registry)[0] if address else None

    def show(self, report: Report, driver_figures: Mapping[str, float]) -> None:
        """Show this report, and the driver's figures beside it, from the next scrape on."""
        labelled = {"chunks_refused": report.refused, "rows_lost": report.rows_lost}
        self._metrics.update({**report.figures, **driver_figures}, labelled)

    def close(self) -> None:
        """Give the port up."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
