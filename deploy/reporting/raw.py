"""The raw numbers of a report: everything as JSON, a row per run as CSV."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from deploy.config.models import dump
from deploy.config.repeat import command_for
from deploy.reporting.analysis import EnvironmentAnalysis, Improvement, Report, VariantAnalysis
from deploy.reporting.comparison import Environment, Variant, provenance_of
from deploy.reporting.curves import Points
from deploy.reporting.records import RunRecord
from deploy.run_directory.evaluation import Evaluation


def as_csv(report: Report) -> str:
    """Returns a row per run: its scores, its course, with what it was computed, and the command that repeats it."""
    rows = [
        _row(env.environment, variant, run)
        for env in report.environments
        for variant in env.environment.variants
        for run in variant.runs
    ]
    written = io.StringIO()
    table = csv.DictWriter(written, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return written.getvalue()


def _cell(value: Any) -> Any:
    """Returns a value as a spreadsheet takes it: a text that it would run as a formula, perhaps a stranger's, with a
    quotation mark before it (https://owasp.org/www-community/attacks/CSV_Injection)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _row(environment: Environment, variant: Variant, run: RunRecord) -> dict[str, Any]:
    summary, final, best = run.summary, run.final, run.best
    return {
        "env": run.env,
        "variant": variant.label,
        "seed": run.config.seed,
        "run": run.name,
        "exit_reason": run.state,
        "counted": int(run.completed),
        "score": environment.score(run),
        "score_is": "final policy" if environment.final else "newest evaluation",
        "final_mean": final.mean if final else None,
        "final_stderr": final.stderr if final else None,
        "final_episodes": len(final.returns) if final else None,
        "newest_evaluation": run.newest_screen,
        "training_return": run.training_return,
        "best_selected_mean": summary.eval_mean if summary else None,
        "best_after_mean": best.mean if best else None,
        "best_after_stderr": best.stderr if best else None,
        "holdout_mean": summary.holdout_mean if summary else None,
        "holdout_episodes": summary.holdout_episodes if summary else None,
        "solved_s": summary.solved_s if summary else None,
        "solved_env_steps": summary.solved_env_steps if summary else None,
        "env_steps": summary.env_steps if summary else run.newest.get("env_steps"),
        "updates": summary.updates if summary else run.newest.get("updates"),
        "wall_s": run.wall_s,
        "start_s": summary.start_s if summary else run.newest.get("start_s"),
        "cpu_s": summary.cpu_s if summary else run.newest.get("cpu_s"),
        "learner_device": summary.learner_device if summary else None,
        **provenance_of(run),
        "command": command_for(run.config),
    }


def as_json(report: Report) -> dict[str, Any]:
    """Returns everything, curves and single returns included; None for what is no number."""
    return {
        "title": report.title,
        "call": report.call,
        "environments": [_environment(env) for env in report.environments],
        "improvements": [_improvement(each) for each in report.overall],
        "missing": [{"run": each.name, "why": each.why} for each in report.missing],
    }


def _environment(env: EnvironmentAnalysis) -> dict[str, Any]:
    return {
        "env": env.environment.env,
        "score_is": env.environment.score_is,
        "thresholds": env.thresholds.tolist(),
        "variants": [_variant(env.environment, each) for each in env.variants],
        "improvements": [_improvement(each) for each in env.improvements],
    }


def _variant(environment: Environment, each: VariantAnalysis) -> dict[str, Any]:
    found = each.statistics
    return {
        "variant": each.variant.label,
        "statistics": None
        if found is None
        else {"count": found.count, "mean": found.mean, "sd": found.sd, "iqm": found.iqm, "interval": found.interval},
        "profile": None if each.profile is None else each.profile.tolist(),
        "profile_interval": None if each.profile_band is None else [bound.tolist() for bound in each.profile_band],
        "curves": {
            axis: {
                "x": curves.x.tolist(),
                "iqm": _finite(curves.iqm),
                "interval": None if curves.band is None else [_finite(bound) for bound in curves.band],
                "runs": {run.name: _finite(y) for run, y in zip(each.drawn[axis], curves.runs, strict=True)},
            }
            for axis, curves in each.curves.items()
        },
        "runs": [{**_row(environment, each.variant, run), **_more(run)} for run in each.variant.runs],
    }


def _more(run: RunRecord) -> dict[str, Any]:
    """Returns what a run has beside its row of the CSV."""
    return {
        "final": _evaluation(run.final),
        "best": _evaluation(run.best),
        "newest": dict(run.newest),
        "config": dump(run.config),
    }


def _evaluation(found: Evaluation | None) -> dict[str, Any] | None:
    return None if found is None else found.model_dump()


def _improvement(each: Improvement) -> dict[str, Any]:
    return {
        "better": each.better,
        "than": each.than,
        "probability": each.probability,
        "interval": each.interval,
        "environments": each.environments,
    }


def _finite(values: Points) -> list[float | None]:
    """Returns the values; None for what is no number, for which JSON has no word."""
    return [value if math.isfinite(value) else None for value in values.tolist()]
