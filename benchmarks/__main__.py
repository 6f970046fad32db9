"""``python -m benchmarks``: all benchmarks, their medians, the ratios and the targets."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path

from benchmarks import machine
from benchmarks.result import Result, not_a_measurement, show

NAMES = (
    "log_rate",
    "replay",
    "dataset_rate",
    "sequences",
    "actor_rate",
    "learner_rate",
    "metrics_cost",
    "policy",
    "start_time",
    "solve",
)
BY_NAME_ONLY = ("device", "flow", "soak", "resume", "scaling", "broadcast", "report", "tracking")
"""Some ten minutes each."""


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", choices=NAMES + BY_NAME_ONLY, action="append", help="this benchmark only; may be repeated"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, some seconds each: whether all of it runs, not a measurement"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file too")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in qherd's workers; before numpy and torch are imported
    found = machine.describe()
    print(machine.show(found) + "\n", flush=True)
    results: dict[str, list[Result]] = {}
    for name in options.only or NAMES:
        measured = importlib.import_module(f"benchmarks.{name}").measure(options.quick)
        results[name] = [not_a_measurement(result) for result in measured] if options.quick else measured
        show(results[name])
        if options.json:
            _write(options.json, found, results)


def _write(path: Path, found: dict[str, object], results: dict[str, list[Result]]) -> None:
    texts = {name: [result.as_dict() for result in some] for name, some in results.items()}
    path.write_text(json.dumps({"machine": found, "results": texts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
