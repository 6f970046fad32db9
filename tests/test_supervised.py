"""The lifecycle of whatever is supervised, on a clock that is moved by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from actors.supervision.restarts import BACKOFF_S, CrashLoopError, NotNowError
from actors.supervision.supervised import TICK_S, LifecycleState, Supervised

NEW, STARTING, RUNNING, WAITING, GIVEN_UP, RELEASED = LifecycleState
PAUSE_S = 4.0


class Process:
    """Something supervised whose starts are numbered handles, with what happens to it by name."""

    def __init__(self) -> None:
        self.now, self.starts, self.pause_s = 100.0, 0, PAUSE_S
        self.blocked = False
        self.supervised = Supervised(self._start, self._pause, lambda: self.now)

    def _start(self) -> int:
        if self.blocked:
            raise NotNowError("the server is down")
        self.starts += 1
        return self.starts

    def _pause(self, error: Exception) -> float:
        if isinstance(error, KeyError):
            raise CrashLoopError("died too often", "")
        return self.pause_s

    def happens(self, event: str) -> None:
        match event:
            case "due":
                self.supervised.start_if_due()
            case "reply":
                self.supervised.replied()
            case "death":
                self.supervised.died(OSError("gone"))
            case "last death":
                self.pause_s = math.inf
                self.supervised.died(OSError("gone"))
            case "death beyond the budget":
                with pytest.raises(CrashLoopError):
                    self.supervised.died(KeyError("gone"))
            case "release":
                self.supervised.release()
            case "blocked":
                self.blocked = True
            case "free":
                self.blocked = False
            case _:
                self.now += float(event)


@pytest.mark.parametrize(
    ("events", "state", "handle"),
    [
        ([], NEW, None),
        (["due"], STARTING, 1),
        (["due", "due"], STARTING, 1),
        (["blocked", "due"], NEW, None),
        (["blocked", "due", "free", "due"], NEW, None),
        (["blocked", "due", "free", f"{BACKOFF_S}", "due"], STARTING, 1),
        (["due", "reply"], RUNNING, 1),
        (["due", "reply", "reply", "due"], RUNNING, 1),
        (["due", "death"], WAITING, None),
        (["due", "reply", "death"], WAITING, None),
        (["due", "reply", "death", "3.9", "due"], WAITING, None),
        (["due", "reply", "death", "4.0", "due"], STARTING, 2),
        (["due", "reply", "death", "4.0", "due", "reply"], RUNNING, 2),
        (["due", "death", "4.0", "blocked", "due", "free", "due"], WAITING, None),
        (["due", "death", "4.0", "blocked", "due", "free", f"{BACKOFF_S}", "due"], STARTING, 2),
        (["due", "death", "4.0", "due", "death", "4.0", "due"], STARTING, 3),
        (["due", "last death"], GIVEN_UP, None),
        (["due", "last death", "1e9", "due"], GIVEN_UP, None),
        (["due", "reply", "death beyond the budget", "1e9", "due"], GIVEN_UP, None),
        (["due", "reply", "release", "1e9", "due"], RELEASED, None),
        (["release", "due"], RELEASED, None),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_each_event_leads_to_its_state(events: Sequence[str], state: LifecycleState, handle: int | None) -> None:
    process = Process()
    for event in events:
        process.happens(event)
    supervised = process.supervised
    assert (supervised.state, supervised.handle) == (state, handle)
    assert supervised.starting == (state is STARTING)
    assert supervised.running == (state is RUNNING)
    assert supervised.has_process == (handle is not None)


def test_a_first_start_that_cannot_be_yet_is_the_callers() -> None:
    """A session that cannot start its first processes ends, with the reason."""
    process = Process()
    process.blocked = True
    with pytest.raises(NotNowError, match="the server is down"):
        process.supervised.start()
    assert process.supervised.state is NEW


def test_a_release_hands_over_what_has_to_be_ended() -> None:
    process = Process()
    process.happens("due")
    assert process.supervised.release() == 1
    assert process.supervised.release() is None


def test_the_pause_that_is_left_is_told() -> None:
    process = Process()
    process.happens("due")
    assert process.supervised.died(OSError("gone")) == PAUSE_S
    for passed_s, left_s in ((0.0, 4.0), (1.5, 2.5), (9.0, 0.0)):
        process.now += passed_s
        assert process.supervised.due_in_s == left_s


def test_silence_is_counted_from_the_start_and_from_each_reply() -> None:
    """As far as this process was there to count: an hour between two counts is its own."""
    process = Process()
    supervised = process.supervised
    process.now += 50.0
    process.happens("due")
    for passed_s, silent_s in ((0.0, 0.0), (1.5, 1.5), (0.5, 2.0), (3600.0, 2.0 + TICK_S)):
        process.now += passed_s
        supervised.count_silence()
        assert supervised.silent_s == silent_s
    process.now += 1.0
    supervised.replied()
    assert supervised.silent_s == 0.0
    process.now += 1.0
    supervised.count_silence()
    assert supervised.silent_s == 1.0
    supervised.reset_silence()
    assert supervised.silent_s == 0.0
    supervised.died(OSError("gone"))
    process.now += 5.0
    process.happens("due")
    supervised.count_silence()
    assert supervised.silent_s == 0.0, "the pause is not the next one's silence"


@pytest.mark.parametrize(
    ("events", "line"),
    [
        ([], "is about to start"),
        (["due"], "has not answered yet"),
        (["due", "reply", "7"], "last answered 7 s ago"),
        (["due", "reply", "death"], "died (OSError: gone)"),
        (["due", "reply", "death", "4", "due"], "has not answered yet"),
        (["due", "reply", "death", "4", "due", "reply", "2"], "last answered 2 s ago, died before (OSError: gone)"),
        (["due", "last death"], "died (OSError: gone)"),
        (["due", "release"], "was ended"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_a_line_tells_users_where_it_stands(events: Sequence[str], line: str) -> None:
    process = Process()
    for event in events:
        process.happens(event)
    assert process.supervised.status_line() == line
