"""The run's /metrics for Prometheus: the newest report. The registry and what is shown are handed in."""

from __future__ import annotations

import contextlib
import fcntl
import platform
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version as version_of

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from learner.http_server import BoundedWSGIServer, SilentHandler
from learner.metrics import BUILD_INFO, REPORT_AGE, LearnerMetrics
from learner.report import Report
from replay.metrics import BY_REASON, LOST, PREFIX, REFUSED, Metric, flat

Labelled = Mapping[str, Mapping[str, int]]
_SIOCGIFADDR = 0x8915
"""Linux' ioctl for an interface's address."""


class RunCollector(Collector):
    """Shows the newest report of a run as ``qherd_`` metrics, each labelled with the run.

    An update replaces references; what a scrape costs, the scrape's own thread pays.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        metrics: Sequence[Metric],
        run: str,
        version: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics, self._run, self._clock = metrics, run, clock
        self._versions = {"version": version, "python": platform.python_version(), "torch": version_of("torch")}
        self._newest: tuple[Mapping[str, float], Labelled, LearnerMetrics | None, float | None] = {}, {}, None, None
        self._before: tuple[Mapping[str, float], Labelled] = {}, {}
        registry.register(self)

    def begin(self, row: Mapping[str, float], labelled: Labelled) -> None:
        """Has the counters count from these on: what the run's earlier processes did, they have shown. A counter that
        went on from a checkpoint would fall to a number above 0, and rate() would take all of that for new."""
        self._before = row, labelled

    def update(self, row: Mapping[str, float], labelled: Labelled, learner: LearnerMetrics | None = None) -> None:
        """Shows these from the next scrape on, those of the ``learner`` by their keys in ``row``; they must not change
        any more. Values that no metric shows are passed over."""
        self._newest = row, labelled, learner, self._clock()

    def collect(self) -> Iterator[Family]:
        """Yields the metrics of the newest report. One without a value has its help and its type, and no series."""
        row, labelled, learner, reported_s = self._newest
        before, labelled_before = self._before
        if learner is not None:
            row = {**flat(learner), **row}
        if reported_s is not None:
            row = {**row, REPORT_AGE.name: self._clock() - reported_s}
        for metric in self._metrics:
            if metric == BUILD_INFO:
                yield self._build_info(metric)
                continue
            names = ["run", metric.label] if metric.label else ["run"]
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(PREFIX + metric.name, metric.text, labels=names)
            if metric.label == BY_REASON:
                past = labelled_before.get(metric.name, {})
                counts = {**dict.fromkeys(metric.reasons, 0), **labelled.get(metric.name, {})}
                for reason, count in counts.items():
                    family.add_metric([self._run, reason], count - past.get(reason, 0))
            for label, key in metric.keys.items():
                if key in row:
                    past_value = before.get(key, 0) if metric.kind == "counter" else 0
                    family.add_metric([self._run, label] if label else [self._run], row[key] - past_value)
            yield family

    def _build_info(self, metric: Metric) -> Family:
        family = GaugeMetricFamily(PREFIX + metric.name, metric.text, labels=["run", *self._versions])
        family.add_metric([self._run, *self._versions.values()], 1)
        return family


class MetricsServer:
    """The run's metrics, and where an address is given the HTTP endpoint /metrics."""

    def __init__(self, metrics: Sequence[Metric], run: str, version: str, address: tuple[str, int] | None) -> None:
        """``address``: host and port (0: a free one); None serves nothing.

        Raises:
            OSError: the port is taken.
        """
        registry = CollectorRegistry()
        self._metrics = RunCollector(registry, metrics, run, version)
        self._server = _serve(registry, address) if address else None

    @property
    def address(self) -> tuple[str, int] | None:
        """Returns host and port to ask, of a server on all of the machine's addresses the one that others reach it by;
        None where nothing is served."""
        if self._server is None:
            return None
        host = str(self._server.server_address[0])
        return _own_address(host) if host in ("0.0.0.0", "::") else host, self._server.server_port

    def show(self, report: Report, driver_row: Mapping[str, float]) -> None:
        """Shows this report, and the driver's metrics beside it, from the next scrape on."""
        self._metrics.update(driver_row, _labelled(report), report.metrics)

    def begin(self, report: Report) -> None:
        """See ``RunCollector.begin``: what the learner has restored."""
        self._metrics.begin(flat(report.metrics), _labelled(report))

    def close(self) -> None:
        """Closes the endpoint and its port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def _serve(registry: CollectorRegistry, address: tuple[str, int]) -> BoundedWSGIServer:
    server = BoundedWSGIServer(address, SilentHandler)
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, name="qherd-metrics", daemon=True).start()
    return server


def _labelled(report: Report) -> Labelled:
    return {REFUSED.name: report.refused, LOST.name: report.rows_lost}


def _own_address(host: str) -> str:
    """The address that this machine has for others, where it listens on all of them: that of its default route, else of
    its first interface beyond loopback. No packet is sent for it."""
    beyond = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # reserved for documentation
    for family in beyond if host == "::" else (socket.AF_INET,):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((beyond[family], 9))
            return str(probe.getsockname()[0])
    return next(_interface_addresses(), "127.0.0.1")


def _interface_addresses() -> Iterator[str]:
    """IPv4 addresses of this machine's interfaces but loopback's (Linux)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                reply = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                address = socket.inet_ntoa(reply[20:24])
                if not address.startswith("127."):
                    yield address
