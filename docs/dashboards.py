"""Makes the Grafana dashboards: ``python -m docs.dashboards``. A test holds the files equal to what this makes.

A dashboard is a list of rows, a row a list of panels, a panel a title, a unit and its queries with their legends. What
a panel's metrics mean is taken from the catalogue, so that the panel's own help says it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from deploy.monitoring.metrics import catalogue

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "dashboards"
RUN = 'run=~"$run"'
ROW_HEIGHT, WIDTH = 8, 24


class Panel(NamedTuple):
    """One picture. ``unit`` is Grafana's name for it; ``queries`` are pairs of a legend and PromQL, in which RUN stands
    for the chosen runs."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    stacked: bool = False
    note: str = ""


def _of(metric: str, legend: str = "{{run}}") -> tuple[str, str]:
    """A gauge or a recorded series as it is."""
    return legend, f"{metric}{{{RUN}}}"


def _rate(metric: str, legend: str = "{{run}}", by: str = "run") -> tuple[str, str]:
    """A counter per second."""
    return legend, f"sum by ({by}) (rate({metric}{{{RUN}}}[$__rate_interval]))"


def _grown(metric: str, legend: str, by: str) -> tuple[str, str]:
    """How much a counter grew in the shown time's steps."""
    return legend, f"sum by ({by}) (increase({metric}{{{RUN}}}[$__rate_interval]))"


RETURNS = Panel(
    "Return",
    "none",
    (
        _of("qherd_greedy_return", "{{run}} greedy"),
        _of("qherd_confirmed_return", "{{run}} confirmed"),
        _of("qherd_evaluation_failing", "{{run}} cannot be evaluated (1)"),
        _of("run:qherd_exploring_return:mean5m", "{{run}} exploring, 5 min"),
    ),
    note="Greedy: the newest screen of the averaged policy; confirmed: its newest confirmation."
    " Exploring: what the actors' episodes got.",
)
SPEED = (
    Panel("Env steps", "ops", (_of("run:qherd_env_steps:rate1m"),)),
    Panel("Updates", "ops", (_of("run:qherd_updates:rate1m"),)),
)
ACTORS = Panel(
    "Actors", "none", (_of("qherd_actors_alive", "{{run}} alive"), _of("qherd_actors_expected", "{{run}} configured"))
)
STALENESS = Panel(
    "Weights that actors act with",
    "s",
    (_of("run:qherd_weight_staleness:seconds2m"),),
    note="Age of the slowest slot's weights, estimated from versions and the rate of publishing.",
)
SPI = Panel(
    "Samples per insert",
    "none",
    (
        _of("run:qherd_samples_per_insert:rate5m", "{{run}} 5 min"),
        _of("qherd_samples_per_insert", "{{run}} since its start"),
        _of("qherd_samples_per_insert_target", "{{run}} target"),
    ),
)

DASHBOARDS: Mapping[str, tuple[str, Mapping[str, Sequence[Panel]]]] = {
    "qherd-runs": (
        "qherd: Runs",
        {
            "Is all well?": (
                Panel(
                    "Alerts that fire",
                    "none",
                    (("{{run}}: {{alertname}}", f'ALERTS{{alertstate="firing", {RUN}}}'),),
                    kind="state-timeline",
                    note="What to do about each is in its annotation, and in docs/monitoring.md.",
                ),
                ACTORS,
                Panel("Newest report of the learner", "s", (_of("qherd_report_age_seconds"),)),
            ),
            "Does it learn?": (
                RETURNS,
                *SPEED,
                Panel(
                    "Done so far",
                    "none",
                    (_of("qherd_run_env_steps", "{{run}} env steps"), _of("qherd_run_updates", "{{run}} updates")),
                ),
            ),
            "What went wrong": (
                Panel("Restarts", "none", (_grown("qherd_restarts_total", "{{run}} {{kind}}", "run, kind"),)),
                Panel(
                    "Rows lost and chunks refused",
                    "none",
                    (
                        _grown("qherd_rows_lost_total", "{{run}} rows lost: {{reason}}", "run, reason"),
                        _grown("qherd_chunks_refused_total", "{{run}} chunks refused: {{reason}}", "run, reason"),
                        _grown("qherd_track_lost_total", "{{run}} in no tracker's record", "run"),
                    ),
                ),
                Panel(
                    "Unanswered calls",
                    "none",
                    (
                        _grown("qherd_log_unavailable_total", "{{run}} of the learner", "run"),
                        _grown("qherd_actor_push_retries_total", "{{run}} of actors", "run"),
                        _of("qherd_servers_down", "{{run}} servers down"),
                    ),
                ),
                Panel("Environments made anew", "none", (_grown("qherd_env_rebuilds_total", "{{run}}", "run"),)),
            ),
            "Checkpoints": (
                Panel(
                    "Age of the newest",
                    "s",
                    (
                        _of("qherd_checkpoint_age_seconds"),
                        _of("qherd_checkpoint_interval_seconds", "{{run}} configured interval"),
                    ),
                ),
                Panel("Learner pauses", "percentunit", (_rate("qherd_checkpoint_pause_seconds_total"),)),
                Panel("Size", "bytes", (_of("qherd_checkpoint_bytes"),)),
                Panel(
                    "Written and failed",
                    "none",
                    (
                        _grown("qherd_checkpoints_total", "{{run}} written", "run"),
                        _grown("qherd_checkpoint_failures_total", "{{run}} failed", "run"),
                    ),
                ),
            ),
            "Versions": (
                Panel(
                    "Build",
                    "none",
                    (("{{run}}: qherd {{version}}, Python {{python}}, torch {{torch}}", f"qherd_build_info{{{RUN}}}"),),
                    kind="stat",
                ),
            ),
        },
    ),
    "qherd-learning": (
        "qherd: Learning",
        {
            "Returns": (
                RETURNS,
                Panel("Episodes", "ops", (_rate("qherd_actor_episodes_total"),)),
                Panel("Newest exploring return", "none", (_of("qherd_exploring_return"),)),
            ),
            "Loss and TD error": (
                Panel("Loss", "none", (_of("qherd_loss"),)),
                Panel(
                    "|TD error|",
                    "none",
                    (
                        _of("qherd_td_error", "{{run}} mean"),
                        _of("qherd_td_error_percentile", "{{run}} {{percentile}} %"),
                    ),
                ),
                Panel("Gradient norm before clipping", "none", (_of("qherd_grad_norm"),)),
                Panel("Updates skipped", "none", (_grown("qherd_updates_skipped_total", "{{run}}", "run"),)),
            ),
            "Q": (
                Panel("Mean Q", "none", (_of("qherd_q_mean"),)),
                Panel(
                    "Greatest |Q| and what rewards allow",
                    "none",
                    (_of("qherd_q_abs_max", "{{run}} greatest |Q|"), _of("qherd_q_bound", "{{run}} bound")),
                ),
                Panel("Target network: copies", "ops", (_rate("qherd_target_syncs_total"),)),
            ),
            "Samples": (
                Panel(
                    "Age of sampled rows",
                    "none",
                    (_of("qherd_sample_age_rows", "{{run}} mean"), _of("qherd_sample_age_max_rows", "{{run}} oldest")),
                ),
                Panel(
                    "Effective sample size of a batch",
                    "percentunit",
                    (("{{run}}", f"qherd_effective_sample_size{{{RUN}}} / qherd_batch_size{{{RUN}}}"),),
                ),
                Panel("Mean priority to the power alpha", "none", (_of("qherd_priority_mean"),)),
                Panel("Importance exponent beta", "none", (_of("qherd_importance_beta"),)),
                Panel("TD errors of evicted rows", "ops", (_rate("qherd_priority_updates_missed_total"),)),
            ),
        },
    ),
    "qherd-performance": (
        "qherd: Performance",
        {
            "Where the learner's time goes": (
                Panel(
                    "Learner's time by phase",
                    "percentunit",
                    (_of("run:qherd_learner_phase:share1m", "{{run}} {{phase}}"),),
                    stacked=True,
                    note="docs/metrics.md says what each phase is, and what compute means on a GPU.",
                ),
                *SPEED,
            ),
            "Where the actors' time goes": (
                Panel(
                    "Actors' seconds by phase",
                    "none",
                    (_rate("qherd_actor_phase_seconds_total", "{{run}} {{phase}}", "run, phase"),),
                    stacked=True,
                    note="Together as many as there are actors: in the environment, own computing, the server (log), "
                    "new weights (fetch), without credit (wait). qherd doctor RUN says what to change.",
                ),
                Panel(
                    "Cores",
                    "none",
                    (
                        _rate("qherd_actor_cpu_seconds_total", "{{run}} actors, on a core"),
                        _rate("qherd_actor_starved_seconds_total", "{{run}} actors, waiting for one"),
                        _rate("qherd_learner_starved_seconds_total", "{{run}} learner, waiting for one"),
                    ),
                    note="Waiting for a core: more is asked of the machine than it has.",
                ),
            ),
            "Who waits for whom": (
                SPI,
                Panel(
                    "Limiter",
                    "none",
                    (
                        _of("qherd_limiter_error", "{{run}} error"),
                        _of("qherd_limiter_half_band", "{{run}} no credit above"),
                        ("{{run}} learner waits below", f"-qherd_limiter_half_band{{{RUN}}}"),
                    ),
                ),
                Panel("Credit", "none", (_of("qherd_credit_rows", "{{run}} rows"),)),
                Panel(
                    "Waiting",
                    "percentunit",
                    (
                        ("{{run}} learner", f'run:qherd_learner_phase:share1m{{phase="wait", {RUN}}}'),
                        _of("run:qherd_actor_credit_wait:share1m", "{{run}} actors, without credit"),
                    ),
                ),
            ),
            "Log and mirror": (
                Panel("Bytes taken in", "Bps", (_of("run:qherd_chunk_bytes:rate1m"),)),
                Panel(
                    "Rows per chunk",
                    "none",
                    (("{{run}}", f"{_rate('qherd_rows_total')[1]} / {_rate('qherd_chunks_total')[1]}"),),
                ),
                Panel("Chunks read and not yet taken in", "none", (_of("qherd_ingest_backlog_chunks"),)),
                Panel(
                    "Replay fill",
                    "percentunit",
                    (
                        _of("run:qherd_replay_fill:ratio", "{{run}} mirror"),
                        _of("run:qherd_log_memory:ratio", "{{run}} server's memory"),
                    ),
                ),
            ),
            "Memory": (
                Panel(
                    "Server",
                    "bytes",
                    (_of("qherd_log_memory_bytes"), _of("qherd_log_memory_limit_bytes", "{{run}} refuses writes at")),
                ),
                Panel("Mirror", "bytes", (_of("qherd_replay_bytes"),)),
                Panel(
                    "Rows",
                    "none",
                    (
                        _of("qherd_replay_rows", "{{run}} in the mirror"),
                        _of("qherd_replay_sampleable_rows", "{{run}} of them can be sampled"),
                        _of("qherd_log_rows", "{{run}} in the log"),
                    ),
                ),
                Panel("Trimmed for want of memory", "none", (_grown("qherd_log_full_total", "{{run}}", "run"),)),
            ),
            "Weights": (
                STALENESS,
                Panel(
                    "Versions behind",
                    "none",
                    (
                        _of("qherd_weight_staleness_versions", "{{run}} slowest slot"),
                        _of("qherd_weight_staleness_mean_versions", "{{run}} mean"),
                    ),
                ),
                Panel(
                    "Versions of weights",
                    "ops",
                    (
                        _rate("qherd_weights_published_total", "{{run}} published"),
                        _rate("qherd_weights_fetched_total", "{{run}} fetched"),
                    ),
                ),
                Panel(
                    "Bytes of weights",
                    "Bps",
                    (
                        _rate("qherd_weights_published_bytes_total", "{{run}} published"),
                        _rate("qherd_weights_fetched_bytes_total", "{{run}} fetched"),
                    ),
                ),
            ),
        },
    ),
}


def dashboard(uid: str) -> str:
    """The JSON of a dashboard."""
    title, rows = DASHBOARDS[uid]
    value = {
        "uid": uid,
        "title": title,
        "tags": ["qherd"],
        "editable": False,
        "schemaVersion": 39,
        "version": 1,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "graphTooltip": 1,
        "links": [
            {
                "type": "dashboards",
                "title": "qherd",
                "tags": ["qherd"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [_datasource(), _run()]},
        "annotations": {"list": []},
        "panels": list(_panels(rows)),
    }
    return json.dumps(value, indent=1) + "\n"


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}


def _run() -> dict[str, Any]:
    query = "label_values(qherd_build_info, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "run"},
        "definition": query,
        "refresh": 2,
        "sort": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _panels(rows: Mapping[str, Sequence[Panel]]) -> Iterator[dict[str, Any]]:
    number = y = 0
    for title, panels in rows.items():
        number += 1
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        edges = [WIDTH * i // len(panels) for i in range(len(panels) + 1)]
        for i, panel in enumerate(panels):
            number += 1
            yield _panel(number, panel, {"x": edges[i], "y": y + 1, "w": edges[i + 1] - edges[i], "h": ROW_HEIGHT})
        y += 1 + ROW_HEIGHT


def _panel(number: int, panel: Panel, place: Mapping[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal", "group": "A"} if panel.stacked else {"mode": "none"}
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 60 if panel.stacked else 0,
            "stacking": stacking,
            "showPoints": "never",
            "spanNulls": False,
        }
    if panel.unit == "percentunit":
        defaults |= {"min": 0} | ({"max": 1} if panel.stacked else {})
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    options: dict[str, Any] = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "stat":
        options = {"textMode": "name", "colorMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": _help(panel),
        "gridPos": dict(place),
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
            for i, (legend, expr) in enumerate(panel.queries)
        ],
    }


def _help(panel: Panel) -> str:
    """The note, and the catalogue's words on each metric of the panel or of the recording rules that it shows."""
    texts = {metric.exposed: metric.text for metric in catalogue()}
    shown = " ".join(expr for _, expr in panel.queries)
    shown += " ".join(expr for name, expr in _recorded().items() if name in shown)
    used = dict.fromkeys(re.findall(r"(?<![\w:])qherd_\w+", shown))
    return "\n\n".join([panel.note] * bool(panel.note) + [f"`{name}`: {texts[name]}" for name in used])


def _recorded() -> dict[str, str]:
    """The recording rules' expressions by name."""
    rules = yaml.safe_load((FOLDER.parent.parent / "prometheus" / "rules" / "recording.yml").read_text())
    return {rule["record"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(dashboard(each))
