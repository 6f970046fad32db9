"""Prometheus metrics: each has help and its type, and a real run's move."""

from __future__ import annotations

import ipaddress
import math
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import pytest
from cli_runs import running
from made_metrics import learner_metrics, run_metrics
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from actors.heartbeat import Work
from actors.metrics import ActorMetrics, EvaluationMetrics
from deploy.config.models import RunConfig
from deploy.monitoring.metrics import RestartMetrics, RunMetrics, TrackingMetrics, catalogue, shown_by
from learner.exporter import MetricsServer, RunCollector
from learner.metrics import BUILD_INFO, REPORT_AGE, CheckpointMetrics, SampleMetrics, UpdateMetrics
from learner.report import Report
from replay.chunk import REFUSALS
from replay.ledger import LOSSES
from replay.metrics import counter, flat
from replay.samplers.prioritised import PrioritisedMetrics
from replay.samplers.uniform import UniformSampler


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def families(text: str) -> dict[str, Family]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> dict[str, Family]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        return families(reply.read().decode())


def value(found: dict[str, Family], name: str) -> float:
    """The one sample of a metric of the run, NaN where it has none yet."""
    samples = found[name].samples
    return samples[0].value if samples else math.nan


def full_report() -> tuple[dict[str, float], dict[str, dict[str, int]]]:
    """Every figure of the catalogue, and a reason for every count by reason."""
    figures = {key: 1.0 for metric in catalogue() for key in metric.keys.values()}
    return figures, {metric.name: dict.fromkeys(metric.reasons, 1) for metric in catalogue() if metric.reasons}


def test_every_metric_has_help_and_its_type(registry: CollectorRegistry) -> None:
    """Also before the first report; counters end in _total by the exposition itself."""
    metrics = RunCollector(registry, catalogue(), "a-run", "1.2.3")
    assert set(families(generate_latest(registry).decode())) == {f"qherd_{metric.name}" for metric in catalogue()}
    metrics.update(*full_report())
    found = families(generate_latest(registry).decode())
    for metric in catalogue():
        family = found[f"qherd_{metric.name}"]
        assert family.type == metric.kind, metric
        assert family.documentation == metric.text
        assert family.documentation.endswith("."), metric
        assert {sample.name for sample in family.samples} == {metric.exposed}
        assert all(sample.labels["run"] == "a-run" for sample in family.samples)
        labels = {"run", metric.label} - {""} if metric != BUILD_INFO else {"run", "version", "python", "torch"}
        assert all(set(sample.labels) == labels for sample in family.samples)
        assert len(family.samples) == max(1, len(metric.keys), len(metric.reasons))


def test_no_name_and_no_figure_comes_twice() -> None:
    names = [metric.name for metric in catalogue()]
    shown = [key for metric in catalogue() for key in metric.keys.values()]
    assert len(names) == len(set(names))
    both = {"env_steps", "updates"}  # of the process, as counters, and of the run, as gauges
    assert {figure for figure in shown if shown.count(figure) > 1} == both


def test_every_metric_is_of_a_value_that_is_reported() -> None:
    """And what is None is not there: a learner without checkpoints, updates, a server's bound."""
    metrics = run_metrics()
    work = ActorMetrics.of(2, Work(seconds=5.0, env_seconds=2.0))
    learner = learner_metrics(log_memory_bytes=1, log_memory_limit_bytes=2, exploring_return=0.5)._replace(
        update=UpdateMetrics(*[0.0] * len(UpdateMetrics._fields)),
        samples=SampleMetrics(1.0, 1.0, 1.0, 1.0, 1.0),
        sampler=PrioritisedMetrics(1.0, 1.0, 0),
        checkpoint=CheckpointMetrics(1, 0, 1, 0.0, 0.0),
    )
    full = RunMetrics(
        metrics.driver._replace(
            actors=work,
            evaluation=EvaluationMetrics(1.0, 1.0, 1),
            restarts=RestartMetrics(0, 0, 0, 0, 0),
            checkpoint_interval_seconds=30.0,
        ),
        learner,
    )
    keys = {key for metric in catalogue() for key in metric.keys.values()}
    assert keys - {*flat(full), *flat(TrackingMetrics(0))} == {REPORT_AGE.name}
    assert flat(full)["actor_own_seconds"] == 3.0
    assert keys & flat(metrics).keys() < keys
    assert "loss" not in flat(metrics)
    assert None not in flat(metrics).values()


class CountedMetrics(NamedTuple):
    draws: Annotated[int, counter("Rows that were drawn.")]
    unmarked: int = 3


class Counted(UniformSampler):
    """A sampler of a user's own that reports something."""

    metrics_type = CountedMetrics


def test_a_sampler_of_ones_own_brings_its_metrics(registry: CollectorRegistry) -> None:
    own = RunConfig.model_validate({"replay": {"sampler": f"{__name__}:Counted"}})
    metrics = RunCollector(registry, shown_by(own), "r", "1")
    learner = learner_metrics()._replace(sampler=CountedMetrics(draws=7))
    metrics.update(flat(learner), {})
    assert registry.get_sample_value("qherd_draws_total", {"run": "r"}) == 7
    assert flat(learner)["unmarked"] == 3
    assert registry.get_sample_value("qherd_unmarked", {"run": "r"}) is None
    assert shown_by(RunConfig()) == catalogue()


def test_values_and_labels(registry: CollectorRegistry) -> None:
    """The newest report; what a report lacks is absent, not 0."""
    metrics = RunCollector(registry, catalogue(), "a-run", "1.2.3")
    run = {"run": "a-run"}
    assert registry.get_sample_value("qherd_updates_total", run) is None
    assert registry.get_sample_value("qherd_report_age_seconds", run) is None
    (info,) = [family for family in registry.collect() if family.name == "qherd_build_info"]
    assert (info.samples[0].value, info.samples[0].labels["version"]) == (1, "1.2.3")
    metrics.update({"updates": 5, "loss": 0.25, "no such figure": 1}, {"chunks_refused": {"crc": 2, "value": 1}})
    assert registry.get_sample_value("qherd_updates_total", run) == 5
    assert registry.get_sample_value("qherd_loss", run) == 0.25
    assert registry.get_sample_value("qherd_greedy_return", run) is None
    assert registry.get_sample_value("qherd_chunks_refused_total", run | {"reason": "crc"}) == 2
    assert registry.get_sample_value("qherd_chunks_refused_total", run | {"reason": "value"}) == 1
    metrics.update({"updates": 6}, {})
    assert registry.get_sample_value("qherd_updates_total", run) == 6
    assert registry.get_sample_value("qherd_loss", run) is None


@pytest.mark.parametrize(("name", "reasons"), [("rows_lost", LOSSES), ("chunks_refused", REFUSALS)])
def test_every_reason_is_there_at_0_before_it_occurs(
    registry: CollectorRegistry, name: str, reasons: tuple[str, ...]
) -> None:
    """``increase()`` of a series that begins at 1 is 0: the first loss, often the only one, would fire no alert."""
    metrics = RunCollector(registry, catalogue(), "r", "1")
    for counts in (None, {}, {name: {reasons[0]: 3}}):
        if counts is not None:
            metrics.update({}, counts)
        shown = {
            each: registry.get_sample_value(f"qherd_{name}_total", {"run": "r", "reason": each}) for each in reasons
        }
        assert shown == dict.fromkeys(reasons, 0) | ({reasons[0]: 3} if counts else {})


def test_counters_count_from_the_start_of_their_process(registry: CollectorRegistry) -> None:
    """What a learner has restored its predecessor has shown: rate() takes a counter that falls for one that began at 0.
    Gauges, and what came with the driver's figures alone, stay as they are."""
    metrics, value_of, run = RunCollector(registry, catalogue(), "r", "1"), registry.get_sample_value, {"run": "r"}
    metrics.begin(
        {"updates": 1000, "env_steps": 400, "loss": 2.0, "learner_wait_seconds": 7.0}, {"rows_lost": {"gap": 5}}
    )
    figures = {"updates": 1030, "env_steps": 400, "loss": 1.5, "learner_wait_seconds": 7.5, "learner_restarts": 1}
    metrics.update(figures, {"rows_lost": {"gap": 5, "resume": 2}})
    assert value_of("qherd_updates_total", run) == 30
    assert value_of("qherd_env_steps_total", run) == 0
    assert (value_of("qherd_run_updates", run), value_of("qherd_run_env_steps", run)) == (1030, 400)
    assert value_of("qherd_loss", run) == 1.5
    assert value_of("qherd_learner_phase_seconds_total", run | {"phase": "wait"}) == 0.5
    assert value_of("qherd_restarts_total", run | {"kind": "learner"}) == 1
    assert value_of("qherd_rows_lost_total", run | {"reason": "gap"}) == 0
    assert value_of("qherd_rows_lost_total", run | {"reason": "resume"}) == 2


def test_what_falls_is_no_counter() -> None:
    """Returns are negative in many environments: rate() would take each fall for a restart."""
    assert not [metric for metric in catalogue() if metric.kind == "counter" and "return" in metric.name]


def test_the_age_of_the_report_grows_until_the_next_one(registry: CollectorRegistry) -> None:
    """The endpoint is served by a thread: it goes on showing the last report of a learner that hangs."""
    now_s = 100.0
    metrics = RunCollector(registry, catalogue(), "a-run", "1.2.3", clock=lambda: now_s)
    for reported, read, age in ((100.0, 100.0, 0.0), (100.0, 130.0, 30.0), (131.0, 131.5, 0.5)):
        now_s = reported
        metrics.update({}, {})
        now_s = read
        assert registry.get_sample_value("qherd_report_age_seconds", {"run": "a-run"}) == age


def test_phases_and_percentiles_are_labels(registry: CollectorRegistry) -> None:
    RunCollector(registry, catalogue(), "r", "1").update(
        {"learner_wait_seconds": 2.5, "td_error_p99": 3.0, "actor_restarts": 4}, {}
    )
    value_of = registry.get_sample_value
    assert value_of("qherd_learner_phase_seconds_total", {"run": "r", "phase": "wait"}) == 2.5
    assert value_of("qherd_td_error_percentile", {"run": "r", "percentile": "99"}) == 3
    assert value_of("qherd_restarts_total", {"run": "r", "kind": "actor"}) == 4
    assert value_of("qherd_restarts_total", {"run": "r", "kind": "server"}) is None


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which a server shows one report."""
    number = free_port()
    server = MetricsServer(catalogue(), "a-run", "1.2.3", ("127.0.0.1", number))
    server.show(Report(learner_metrics(updates=7), {"crc": 1}, {"gap": 64}), {"actors_alive": 2.0})
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
        MetricsServer(catalogue(), "another", "1.2.3", ("127.0.0.1", port))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_without_a_default_route_an_interfaces_address_is_told(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the machine's name, which Prometheus may not know; and it answers there."""

    def unreachable(*_: object) -> None:
        raise OSError("Network is unreachable")

    server = MetricsServer(catalogue(), "a-run", "1.2.3", (host, 0))
    with monkeypatch.context() as cut_off:
        cut_off.setattr("socket.socket.connect", unreachable)
        assert server.address is not None
        address, number = server.address
    assert ipaddress.ip_address(address)
    with urllib.request.urlopen(f"http://{address}:{number}/metrics", timeout=5) as reply:
        assert b"qherd_build_info" in reply.read()
    server.close()


def test_metrics_are_served_on_an_ipv6_address() -> None:
    server = MetricsServer(catalogue(), "a-run", "1.2.3", ("::1", 0))
    assert server.address is not None
    with urllib.request.urlopen(f"http://[{server.address[0]}]:{server.address[1]}/metrics", timeout=5) as reply:
        assert b"qherd_build_info" in reply.read()
    server.close()


def test_all_of_a_machines_addresses_are_told_as_one_that_others_can_ask() -> None:
    """On a cluster Prometheus gets the address from the learner: 0.0.0.0 would be Prometheus' own machine."""
    server = MetricsServer(catalogue(), "a-run", "1.2.3", ("0.0.0.0", 0))
    assert server.address is not None
    host, number = server.address
    assert host != "0.0.0.0"
    assert number > 0
    with urllib.request.urlopen(f"http://{host}:{number}/metrics", timeout=5) as reply:
        assert b"qherd_build_info" in reply.read()
    server.close()
    assert MetricsServer(catalogue(), "a-run", "1.2.3", None).address is None


@pytest.mark.long
def test_a_real_run_is_scraped(tmp_path: Path) -> None:
    """Local mode: the learner's figures and the actors' rise between two scrapes and agree with one another."""
    port = free_port()
    command = ("train", "CartPole-v1", "--run", "scraped", "--metrics.port", str(port), "--eval.threshold", "1e9")
    options = ("--replay.sampler", "prioritised")
    scrapes: list[dict[str, Family]] = []

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
        assert found.keys() == {f"qherd_{metric.name}" for metric in catalogue()}
        assert {sample.labels["run"] for sample in found["qherd_updates"].samples} == {"scraped"}
        figures = {metric.name: value(found, f"qherd_{metric.name}") for metric in catalogue()}
        absent = {name for name, number in figures.items() if math.isnan(number)}
        assert absent <= {"confirmed_return", "track_lost"}, "no policy was confirmed, and no tracker is on"
        assert figures["actor_env_steps"] == figures["env_steps"]
        assert figures["replay_capacity_rows"] == 50_000
        assert min(figures["env_steps"], 50_000) <= figures["replay_rows"] <= 50_000
        assert figures["actors_alive"] == figures["actors_expected"] == 1
        assert 0 < figures["env_steps_per_second"] < 1e6
        assert 0 < figures["updates_per_second"] < 1e5
        assert 0 < figures["greedy_return"] <= 500
        assert 0 < figures["exploring_return"] <= 500
        assert figures["restarts"] == 0
        assert figures["chunk_bytes"] > figures["env_steps"] * (4 * 4 + 4 * 4 + 1)
        assert figures["weight_staleness_versions"] >= figures["weight_staleness_mean_versions"] >= 0
        assert 0 < figures["sample_age_rows"] < figures["sample_age_max_rows"] <= figures["replay_rows"]
        assert 1 < figures["effective_sample_size"] <= figures["batch_size"]
        assert figures["q_bound"] == pytest.approx(100, rel=1e-4), "CartPole gives 1 a step, and gamma is 0.99"
        assert figures["samples"] == figures["updates"] * figures["batch_size"]
        assert 0 < figures["log_memory_bytes"] < figures["log_memory_limit_bytes"]
        for name in ("qherd_chunks_refused", "qherd_rows_lost"):
            assert {sample.value for sample in found[name].samples} == {0}
    assert value(second, "qherd_samples_per_insert") == pytest.approx(32, rel=0.5)
    assert value(second, "qherd_samples_per_insert_target") == 32
    for name in (*(metric.name for metric in catalogue() if metric.kind == "counter"), "actor_returns"):
        if first[f"qherd_{name}"].samples:
            assert value(second, f"qherd_{name}") >= value(first, f"qherd_{name}")
    spent = [{each.labels["phase"]: each.value for each in at["qherd_learner_phase_seconds"].samples} for at in scrapes]
    for phase in ("ingest", "sample", "transfer", "compute", "priorities", "publish", "report"):
        assert spent[1][phase] > spent[0][phase], phase
