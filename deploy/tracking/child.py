"""``python -m deploy.tracking.child NAME``: the process of one tracker.

It reads a message a line, and writes one for what became of each; JSON both ways. A library that hangs, prints, sets
signal handlers or holds the interpreter's lock does so here, and not in the run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from deploy.tracking.tracker import Ending, Record, Refused, Tracker, make_tracker, without_secrets

RETRY_S = 10.0
"""Seconds between two attempts to begin a record."""
MAX_TEXT = 300
NICENESS = 10
"""What the run itself does comes first."""

Tell = Callable[[dict[str, Any]], None]


def run(tracker: Tracker) -> None:
    """Serves one run by stdin and stdout. The run's process ends this one: see ``relay``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the run
        signal.signal(number, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies, flush=True)

    try:
        tracker.check()
    except Refused as error:
        tell({"refused": without_secrets(str(error))})
        return
    tell({"ready": True})
    os.nice(NICENESS)
    serve(tracker, sys.stdin, tell)


def serve(tracker: Tracker, lines: Iterable[str], tell: Tell) -> None:
    """Records what the lines have: a Record, rows, an Ending. ``tell`` gets what became of each."""
    messages = map(json.loads, lines)
    first = next(messages, None)
    if first is None:  # the run ended before anything had run
        return
    record = Record(**first["begin"])
    while True:
        try:
            tell({"began": without_secrets(tracker.begin(record))})
            break
        except Exception as error:
            tell({"error": shown_error(error)})
            time.sleep(RETRY_S)
    for message in messages:
        try:
            if "end" in message:
                tracker.end(Ending(**message["end"]))
            else:
                tracker.log(message["row"])
        except Exception as error:
            tell({"lost": 1, "error": shown_error(error)})
        else:
            tell({"kept": 1})
        if "end" in message:
            return


def shown_error(error: Exception) -> str:
    """Returns what an error says, without secrets, on one line, and not all of it where it is long."""
    text = " ".join(without_secrets(str(error)).split()) or type(error).__name__
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


if __name__ == "__main__":
    run(make_tracker(sys.argv[1]))
