"""Prometheus metrics: each has help and its type, and a real run's move."""

from __future__ import annotations

import math
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import running
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from learner.metrics import COUNTERS, GAUGES, LABELLED, MetricsServer, RunMetrics
from learner.report import Report


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> dict[str, Metric]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        return families(reply.read().decode())


def value(found: dict[str, Metric], name: str) -> float:
    """The one sample of a metric of the run, NaN where it has none yet."""
    samples = found[name].samples
    return samples[0].value if samples else math.nan


def test_every_metric_has_help_and_its_type(registry: CollectorRegistry) -> None:
    """Also before the first report; counters end in _total by the exposition itself."""
    metrics = RunMetrics(registry, "a-run", "1.2.3")
    metrics.update(dict.fromkeys([*GAUGES, *COUNTERS], 1.0), {name: {"crc": 1} for name in LABELLED})
    text = generate_latest(registry).decode()
    found = families(text)
    for name, kind in [*((n, "gauge") for n in GAUGES), *((n, "counter") for n in [*COUNTERS, *LABELLED])]:
        family = found[f"qherd_{name}"]
        assert family.type == kind, name
        assert family.documentation.endswith("."), name
        suffix = "_total" if kind == "counter" else ""
        assert [sample.name for sample in family.samples] == [f"qherd_{name}{suffix}"]
        assert family.samples[0].labels["run"] == "a-run"
    assert set(found) == {f"qherd_{name}" for name in [*GAUGES, *COUNTERS, *LABELLED, "build_info"]}
    assert text.count("# HELP") == len(set(found))


def test_values_and_labels(registry: CollectorRegistry) -> None:
    """The newest report; what a report lacks is absent, not 0."""
    metrics = RunMetrics(registry, "a-run", "1.2.3")
    run = {"run": "a-run"}
    assert registry.get_sample_value("qherd_updates_total", run) is None
    assert registry.get_sample_value("qherd_build_info", {"version": "1.2.3"}) == 1
    metrics.update({"updates": 5, "loss": 0.25, "no such figure": 1}, {"chunks_refused": {"crc": 2, "value": 1}})
    assert registry.get_sample_value("qherd_updates_total", run) == 5
    assert registry.get_sample_value("qherd_loss", run) == 0.25
    assert registry.get_sample_value("qherd_greedy_return", run) is None
    assert registry.get_sample_value("qherd_chunks_refused_total", run | {"reason": "crc"}) == 2
    assert registry.get_sample_value("qherd_chunks_refused_total", run | {"reason": "value"}) == 1
    metrics.update({"updates": 6}, {})
    assert registry.get_sample_value("qherd_updates_total", run) == 6
    assert registry.get_sample_value("qherd_loss", run) is None


def test_what_falls_is_no_counter() -> None:
    """Returns are negative in many environments: rate() would take each fall for a restart."""
    assert not [name for name in COUNTERS if "return" in name]


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which a server shows one report."""
    number = free_port()
    server = MetricsServer("a-run", "1.2.3", ("127.0.0.1", number))
    server.show(Report({"updates": 7.0}, {"crc": 1}, {"gap": 64}), {"actors_alive": 2.0})
    yield number
    server.close()
    with pytest.raises(OSError, match="refused"):
        scrape(number)


def test_the_endpoint_shows_learner_and_driver(port: int) -> None:
    found = scrape(port)
    assert value(found, "qherd_updates") == 7
    assert value(found, "qherd_actors_alive") == 2
    assert value(found, "qherd_rows_lost") == 64
    with pytest.raises(OSError, match="in use"):
        MetricsServer("another", "1.2.3", ("127.0.0.1", port))


def test_a_real_run_is_scraped(tmp_path: Path) -> None:
    """Local mode: the learner's figures and the actors' rise between two scrapes and agree with one another."""
    port = free_port()
    command = ("train", "CartPole-v1", "--run", "scraped", "--metrics.port", str(port), "--eval.threshold", "1e9")
    options = ("--replay.sampler", "prioritised")
    scrapes: list[dict[str, Metric]] = []

    def moved() -> bool:
        try:
            found = scrape(port)
        except OSError:
            return False
        ready = ("qherd_greedy_return", "qherd_loss", "qherd_exploring_return")
        at_work = (
            "qherd_actors_alive",
            "qherd_env_steps_per_second",
            "qherd_updates_per_second",
        )  # 0 in a slice of waiting
        if any(math.isnan(value(found, name)) for name in ready) or not all(value(found, name) for name in at_work):
            return False
        rising = ("qherd_env_steps", "qherd_updates", "qherd_weights_published", "qherd_actor_episodes")
        if not scrapes or all(value(found, name) > value(scrapes[0], name) for name in rising):
            scrapes.append(found)
        return len(scrapes) == 2

    with running(*command, *options, cwd=tmp_path) as run:
        run.until(moved, 60, "two scrapes with all figures, rising")
    first, second = scrapes
    for found in scrapes:
        assert found.keys() == {f"qherd_{name}" for name in [*GAUGES, *COUNTERS, *LABELLED, "build_info"]}
        assert {sample.labels["run"] for sample in found["qherd_updates"].samples} == {"scraped"}
        figures = {name: value(found, f"qherd_{name}") for name in [*GAUGES, *COUNTERS]}
        assert not [name for name, number in figures.items() if math.isnan(number)]
        assert figures["actor_env_steps"] == figures["env_steps"]
        assert figures["replay_capacity_rows"] == 50_000
        assert min(figures["env_steps"], 50_000) <= figures["replay_rows"] <= 50_000
        assert figures["actors_alive"] == 1
        assert 0 < figures["env_steps_per_second"] < 1e6
        assert 0 < figures["updates_per_second"] < 1e5
        assert 0 < figures["greedy_return"] <= 500
        assert 0 < figures["exploring_return"] <= 500
        assert figures["actor_restarts"] == 0
        assert figures["chunk_bytes"] > figures["env_steps"] * (4 * 4 + 4 * 4 + 1)
        assert figures["weight_staleness_versions"] >= 0
        assert not found["qherd_chunks_refused"].samples
        assert not found["qherd_rows_lost"].samples
    assert value(second, "qherd_samples_per_insert") == pytest.approx(16, rel=0.5)
    for name in (*COUNTERS, "actor_returns_sum"):
        assert value(second, f"qherd_{name}") >= value(first, f"qherd_{name}")
