"""MLflow."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.tracking.tracker import PROJECT, Ending, Record, Refused, missing

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # its 7 take minutes, in which nothing else is recorded
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Of variables that the user has not set."""
LOOK_S = 5.0
"""How long a server may take to say, before a run begins, whether it wants credentials. One that takes longer is slow
or down, and a run does not wait for that."""
KEY = "qherd.key"
"""The tag that a run is found again by."""
MAX_PARAM = 6000
"""Characters of a parameter's value."""
PER_BATCH = 100
STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MlflowTracker:
    """A run of MLflow, which has the record's key as a tag."""

    def check(self) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow
        except ImportError as error:
            raise Refused(missing("mlflow", error)) from None
        self._uri = mlflow.get_tracking_uri()
        try:
            self._client = mlflow.MlflowClient()
        except mlflow.MlflowException as error:
            raise Refused(f"MLFLOW_TRACKING_URI cannot be used: {error}") from None
        if self._uri.startswith("http"):
            refusals: list[str] = []
            look = threading.Thread(target=self._ask_for_credentials, args=(refusals,), daemon=True)
            look.start()
            look.join(LOOK_S)
            for why in refusals:
                raise Refused(why)

    def _ask_for_credentials(self, refusals: list[str]) -> None:
        """Appends why the server lets nobody in, where it says so. What else is wrong with it may pass."""
        from mlflow import MlflowException

        try:
            self._client.search_experiments(max_results=1)
        except MlflowException as error:
            if error.error_code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
                refusals.append(
                    "MLflow's server wants credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                    "MLFLOW_TRACKING_TOKEN, or write ~/.mlflow/credentials"
                )

    def begin(self, record: Record) -> str:
        client = self._client
        name = record.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if known is None else known.experiment_id
        found = client.search_runs([experiment], f"tags.`{KEY}` = '{record.key}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
        else:
            self._id = client.create_run(experiment, run_name=record.run, tags={KEY: record.key}).info.run_id
        had = found[0].data.params if found else {}  # a parameter is written once: what changed is in the files
        self._log_params({name: value for name, value in _flat(record.config) if name not in had})
        client.log_artifact(self._id, record.config_file)
        return f"run {self._id} of the experiment {name}"

    def _log_params(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value[:MAX_PARAM]) for name, value in values.items()]
        for start in range(0, len(params), PER_BATCH):
            self._client.log_batch(self._id, params=params[start : start + PER_BATCH])

    def log(self, row: Mapping[str, float]) -> None:
        self._log_metrics(row, int(row["env_steps"]))

    def _log_metrics(self, values: Mapping[str, float], env_steps: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, value, now_ms, env_steps) for name, value in values.items() if math.isfinite(value)]
        self._client.log_batch(self._id, metrics=metrics)

    def end(self, ending: Ending) -> None:
        client, summary = self._client, ending.summary
        numbers = {
            f"summary.{name}": float(value)
            for name, value in summary.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._log_metrics(numbers, ending.env_steps)
        client.set_tag(self._id, "qherd.exit_reason", str(summary["exit_reason"]))
        client.log_dict(self._id, summary, "summary.json")
        for name, path in ending.policy.items():
            folder, _, _ = f"policy/{name}".rpartition("/")
            client.log_artifact(self._id, path, folder)
        client.set_terminated(self._id, STATUS[ending.ended])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields options by their dotted names. What the user has named is a value: MLflow refuses other characters than
    its own in a parameter's name, and with it the whole record."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value and f"{prefix}{name}" != "env.kwargs":
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
