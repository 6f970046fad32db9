"""Flow control in real processes: a learner that is frozen in the middle of its work, and what arrives meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from herd import ACTORS, CARTPOLE, SLOTS, Actor
from waiting import until

from replay.chunk_log.protocol import CREDIT_MS
from replay.credit import CREDIT_BYTES, Credit

CHUNK = ACTORS.lanes * ACTORS.chunk_steps


@contextlib.contextmanager
def learner(url: str, run: str) -> Iterator[subprocess.Popen[bytes]]:
    """A learner in a process of its own."""
    program = str(Path(__file__).with_name("fenced_learner.py"))
    environ = os.environ | {"QHERD_TEST_URL": url, "QHERD_TEST_RUN": run}
    with subprocess.Popen([sys.executable, program], env=environ, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def credit_on(client: redis.Redis, run: str) -> list[Credit]:
    """Of each slot, as it is published; none once it has lapsed."""
    value: bytes = client.get(f"qherd:{run}:credit") or b""  # type: ignore[assignment]
    parts = [Credit.unpack(value[at : at + CREDIT_BYTES]) for at in range(0, len(value), CREDIT_BYTES)]
    return [part for part in parts if part is not None]


@pytest.mark.long
def test_a_frozen_learner_is_sent_what_it_gave_credit_for(server_url: str, run_name: str) -> None:
    """SIGSTOP at work, until its credit has lapsed and for longer: no actor has sent more than the credit that it could
    read. Thawed it takes that in, and all go on."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(server_url))
        process = stack.enter_context(learner(server_url, run_name))
        until(lambda: len(credit_on(client, run_name)) == SLOTS, "credit", 60.0)
        actors = [Actor(server_url, run_name, slot, 1, 0.5, CARTPOLE) for slot in range(SLOTS)]
        for actor in actors:
            stack.callback(actor.end)

        def sent() -> list[int]:
            return [actor.rollout.counters.rows for actor in actors]

        until(lambda: min(sent()) > 20 * CHUNK, "all actors work", 60.0)
        os.kill(process.pid, signal.SIGSTOP)
        credit = credit_on(client, run_name)
        assert [each.incarnation for each in credit] == [1] * SLOTS
        until(lambda: not client.exists(f"qherd:{run_name}:credit"), "the credit lapses", 2 * CREDIT_MS / 1000)
        before = sent()
        waited = [actor.rollout.counters.credit_wait_s for actor in actors]
        until(
            lambda: all(
                actor.rollout.counters.credit_wait_s > was + 1.0 for actor, was in zip(actors, waited, strict=True)
            ),
            "each has looked again for a second",
        )
        assert sent() == before, "without any credit nobody sends"
        for rows, each in zip(before, credit, strict=True):
            assert rows <= each.sent + each.rows + CHUNK
        os.kill(process.pid, signal.SIGCONT)
        until(lambda: all(rows > was + 5 * CHUNK for rows, was in zip(sent(), before, strict=True)), "they go on", 60.0)
