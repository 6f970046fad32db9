"""What is shipped for Prometheus and Grafana, held to the catalogue and to Prometheus' own tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from docs import metrics as metrics_page
from learner.catalogue import BY_REASON, catalogue
from learner.metrics import RunMetrics

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
    figures = {figure: 1.0 for metric in catalogue() for figure in metric.figures.values()}
    reasons = {metric.name: {"crc": 1} for metric in catalogue() if metric.label == BY_REASON}
    RunMetrics(registry, "r", "1").update(figures, reasons)
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


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    annotations = alert["annotations"]
    assert set(annotations) == {"summary", "description", "action"}
    assert "{{ $labels.run }}" in annotations["summary"]
    assert alert["labels"]["severity"] in ("page", "warn")
    from deploy.config import option_paths

    parts = "actors|checkpoint|env|learner|replay|redis|metrics"
    for option in re.findall(rf"\b((?:{parts})\.[a-z_]+)", annotations["action"] + annotations["description"]):
        if not option.endswith(".json"):
            assert option in set(option_paths()), option
    mentioned = set(re.findall(r"\bqherd_\w+", " ".join(annotations.values())))
    assert mentioned <= known_names()
