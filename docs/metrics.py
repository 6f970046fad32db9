"""Makes docs/metrics.md from the parts' metrics: ``python -m docs.metrics``. A test holds the file equal to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deploy.monitoring.metrics import PARTS
from learner.phases import PHASES
from replay.metrics import Metric

PAGE = Path(__file__).with_suffix(".md")
HEAD = """\
# Metrics

<!-- made by python -m docs.metrics from the metrics.py of replay, learner, actors and deploy: edit those -->

What `/metrics` of a run has (`--metrics.port`; [monitoring](monitoring.md) says how to collect it). Every metric has
the label `run`. A metric that has no value yet has its help and no series: *there* says what it takes. Figures are
renewed once per report of the learner, four times a second (in the inline mode: with each advance). Counters count
from the start of the learner's process, so that `rate` and `increase` are right across its restarts; what the run has
done in all is in `qherd_run_env_steps` and `qherd_run_updates`.
"""
PHASE_HEAD = """
## Phases of the learner

`qherd_learner_phase_seconds_total` charges every second to exactly one phase, so that their rates add up to 1. On a GPU
work is asynchronous: `compute` is then the time that it takes to enqueue the updates (and to wait where the queue is
full), and the GPU's own time shows where the learner waits for a result, in `priorities` and `report`.

| phase | the learner |
|---|---|
"""


def page() -> str:
    """The page's text."""
    parts = "".join(f"\n## {part}\n\n" + "".join(_table(metrics)) for part, metrics in PARTS.items())
    return HEAD + parts + PHASE_HEAD + "".join(f"| `{phase}` | {text} |\n" for phase, text in PHASES.items())


def _table(metrics: tuple[Metric, ...]) -> Iterator[str]:
    yield "| metric | type | what | there |\n|---|---|---|---|\n"
    for metric in metrics:
        yield f"| `{metric.exposed}`{_label(metric)} | {metric.kind} | {metric.text} | {metric.when or 'always'} |\n"


def _label(metric: Metric) -> str:
    """The label and its values, where they are known beforehand."""
    if not metric.label:
        return ""
    if metric.name == "build_info":
        return " by `version`, `python`, `torch`"
    values = ", ".join(metric.reasons or metric.keys)
    return f" by `{metric.label}`" + (f": {values}" if values and metric.label != "phase" else "")


if __name__ == "__main__":
    PAGE.write_text(page())
