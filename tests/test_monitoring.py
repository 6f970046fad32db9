"""What is shipped for Prometheus and Grafana, held to the catalogue and to Prometheus' own tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from deploy.monitoring.metrics import catalogue
from docs import dashboards as dashboards_page
from docs import metrics as metrics_page
from learner.exporter import RunCollector
from replay.metrics import BY_REASON

ROOT = Path(__file__).resolve().parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"


def tool(name: str) -> str:
    """Debian's prometheus or promtool."""
    if found := shutil.which(name):
        return found
    reason = f"no {name} on PATH: apt-get install prometheus"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def promtool(*arguments: str | Path, given: str | None = None) -> str:
    """What promtool says; it has to be content, and without a remark."""
    done = subprocess.run(
        [tool("promtool"), *map(str, arguments)], input=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def exposition() -> str:
    """/metrics with a value for every metric of the catalogue."""
    registry = CollectorRegistry()
    figures = {key: 1.0 for metric in catalogue() for key in metric.keys.values()}
    reasons = {metric.name: {"crc": 1} for metric in catalogue() if metric.label == BY_REASON}
    RunCollector(registry, catalogue(), "r", "1").update(figures, reasons)
    return generate_latest(registry).decode()


def rules() -> list[dict[str, Any]]:
    """All rules, recording and alerting."""
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def known_names() -> set[str]:
    """Names that a query may use: the catalogue's, the recording rules', and what Prometheus adds itself."""
    return (
        {metric.exposed for metric in catalogue()} | {rule["record"] for rule in rules() if "record" in rule} | {"up"}
    )


# -- the catalogue


def test_the_page_is_the_catalogue() -> None:
    assert metrics_page.PAGE.read_text() == metrics_page.page(), "make it anew: python -m docs.metrics"


def test_metrics_has_the_catalogue_and_nothing_else() -> None:
    exposed = set(re.findall(r"^(qherd_\w+)\{", exposition(), re.MULTILINE))
    assert exposed == {metric.exposed for metric in catalogue()}


def test_promtool_finds_nothing_to_remark_in_metrics() -> None:
    assert promtool("check", "metrics", given=exposition()) == ""


def test_units_are_base_units() -> None:
    assert not [
        each.name for each in catalogue() if re.search(r"_(ms|millis\w*|kb|mb|minutes|percent)(_|$)", each.name)
    ]


# -- rules


def test_promtool_accepts_configuration_and_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert "SUCCESS" in promtool("check", "rules", *sorted((PROMETHEUS / "rules").glob("*.yml")))


def test_alerts_fire_and_stay_silent_as_their_cases_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", *sorted((PROMETHEUS / "tests").glob("*.yml")))


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    cases = [
        case["name"].partition(":")[0]
        for file in (PROMETHEUS / "tests").glob("*.yml")
        for case in yaml.safe_load(file.read_text())["tests"]
    ]
    assert set(cases) == {f"{alert['alert']} {how}" for alert in alerts() for how in ("fires", "silent")}


def test_there_is_an_alert_for_each_of_these() -> None:
    wanted = "LearnerStalled NoExperience StaleWeights ReplayNearLimit ActorsMissing CheckpointTooOld NonFiniteLoss"
    wanted += " QDiverging SamplesPerInsertOff"
    assert {f"Qherd{name}" for name in wanted.split()} <= {alert["alert"] for alert in alerts()}


def test_the_page_lists_the_alerts_and_their_severities() -> None:
    listed = re.findall(r"^\| `(Qherd\w+)` \|.*\| (\w+) \|$", (ROOT / "docs/monitoring.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted((alert["alert"], alert["labels"]["severity"]) for alert in alerts())


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    annotations = alert["annotations"]
    assert set(annotations) == {"summary", "description", "action"}
    assert "{{ $labels.run }}" in annotations["summary"]
    assert alert["labels"]["severity"] in ("page", "warn")
    from deploy.config.models import option_paths

    parts = "actors|checkpoint|env|learner|replay|redis|metrics"
    for option in re.findall(rf"\b((?:{parts})\.[a-z_]+)", annotations["action"] + annotations["description"]):
        if not option.endswith(".json"):
            assert option in set(option_paths()), option
    mentioned = set(re.findall(r"\bqherd_\w+", " ".join(annotations.values())))
    assert mentioned <= known_names()


# -- dashboards

GRAFANA = ROOT / "deploy" / "grafana"
UNITS = {"none", "ops", "s", "bytes", "Bps", "percentunit"}


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((GRAFANA / "dashboards").glob("*.json"))]


def panels() -> list[dict[str, Any]]:
    return [panel for board in dashboards() for panel in board["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Legend and expression of every target."""
    return [(target["legendFormat"], target["expr"]) for panel in panels() for target in panel["targets"]]


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """All series that a query names. Grafana's variables stand for a duration and for names of runs."""
    plain = expression.replace("$__rate_interval", "1m").replace("$run", "r")
    found: list[promql_parser.VectorSelector] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        for part in ("lhs", "rhs", "expr", "vector_selector", "vs", "args"):
            inner = getattr(node, part, None)
            for each in inner if isinstance(inner, list) else [inner]:
                if each is not None and type(each).__module__.startswith("promql"):
                    visit(each)

    visit(promql_parser.parse(plain))
    assert found, expression
    return found


def labels_of() -> dict[str, set[str]]:
    """The labels that a name's series have."""
    of_catalogue = {each.exposed: {"run", each.label} - {""} for each in catalogue()}
    of_catalogue["qherd_build_info"] = {"run", "version", "python", "torch"}
    recorded = {
        rule["record"]: set(re.findall(r"\w+", re.search(r"by \(([^)]*)\)", rule["expr"])[1]))  # type: ignore[index]
        for rule in rules()
        if "record" in rule
    }
    alerting = {"ALERTS": {"run", "alertname", "alertstate", "severity"}, "up": {"run", "job"}}
    return of_catalogue | recorded | alerting


def test_the_dashboards_are_what_makes_them() -> None:
    assert {board["uid"] for board in dashboards()} == set(dashboards_page.DASHBOARDS)
    for uid in dashboards_page.DASHBOARDS:
        made = dashboards_page.dashboard(uid)
        assert (GRAFANA / "dashboards" / f"{uid}.json").read_text() == made, "make it anew: python -m docs.dashboards"


@pytest.mark.parametrize(("legend", "expression"), queries())
def test_a_query_parses_and_its_names_and_labels_are_ours(legend: str, expression: str) -> None:
    known, labels = labels_of(), set[str]()
    for selector in selectors(expression):
        assert selector.name in known, expression
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= known[selector.name], expression
        assert "run" in matched, "the chosen runs only"
        labels |= known[selector.name]
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels
    assert "{{run}}" in legend, "several runs may be chosen"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_a_rule_uses_names_and_labels_of_ours(rule: dict[str, Any]) -> None:
    known = labels_of()
    for selector in selectors(rule["expr"]):
        assert selector.name in known
        assert {matcher.name for matcher in selector.matchers.matchers} <= known[selector.name]


def test_every_metric_is_on_a_dashboard() -> None:
    """By itself or through a recording rule."""
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    shown = {selector.name for _, expression in queries() for selector in selectors(expression)}
    shown |= {selector.name for name in shown & set(recorded) for selector in selectors(recorded[name])}
    at_a_glance = {"qherd_env_steps_per_second", "qherd_updates_per_second"}  # the terminal's; rate() is better
    elsewhere = {"qherd_actor_env_steps_total", "qherd_limiter_min_rows"}
    assert {metric.exposed for metric in catalogue()} - shown == at_a_glance | elsewhere


def test_dashboards_have_what_grafana_needs() -> None:
    boards = dashboards()
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == len(boards)
    for board in boards:
        numbers = [panel["id"] for panel in board["panels"]]
        assert len(numbers) == len(set(numbers))
        assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "run"]
        cells = [
            (x, y)
            for at in (panel["gridPos"] for panel in board["panels"])
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        ]
        assert len(cells) == len(set(cells)), "panels that overlap"
        assert max(x for x, _ in cells) < 24
    for panel in panels():
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["title"]
        assert panel["description"], panel["title"]
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}


def test_provisioning_finds_the_dashboards_and_prometheus() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/qherd.yml").read_text())["providers"]
    assert (source["type"], source["url"]) == ("prometheus", "$__env{PROMETHEUS_URL}")
    assert (provider["type"], provider["options"]["path"]) == ("file", "$__env{DASHBOARDS}")
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
