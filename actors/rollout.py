"""One actor's work without its process: step the lanes, send their rows as far as there is credit, take new weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.actor_id import ActorId
from actors.closing import close_all
from actors.config import ActorConfig
from actors.epsilon import Exploration
from actors.heartbeat import Heartbeat, WorkMeter
from actors.lanes import Lanes
from actors.outbox import Outbox
from actors.policy import Policy, explore
from actors.rows import Columns
from actors.stepper import Stepper
from actors.subscription import WeightSubscription
from replay.breakable import Breakable, breakable
from replay.chunk import Chunk, Counters, Schema, encode
from replay.chunk_log.protocol import ChunkLog, Full, Status, Unavailable
from replay.state import State, array_in, count, restore_rng, rng_state

LOG = logging.getLogger("qherd.actor")
POLL_MIN_S, POLL_MAX_S = 0.02, 0.5
Array = npt.NDArray[Any]


class Rollout(Breakable):
    """Steps lanes epsilon-greedily and sends what they leave, one chunk in flight.

    ``log`` has to be this thread's own. While a chunk is in doubt (Unavailable, Full) nothing is stepped and nothing is
    dropped: the same id is sent again. An exception in the middle of a chunk leaves rows that do not follow the ones
    sent: the rollout is broken then, and each further call raises the same. After ``flush`` nothing is collected.
    """

    def __init__(
        self,
        actor: ActorId,
        envs: Lanes,
        schema: Schema,
        policy: Policy,
        log: ChunkLog,
        config: ActorConfig,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises EnvError for lanes whose autoreset mode is not NEXT_STEP: their rows would be read wrongly."""
        lane_seeds, self._rng = actor.seeds(envs.num_envs)
        self._actor, self._log, self._config = actor, log, config
        self._clock, self._sleep = clock, sleep
        self._exploration = Exploration(actor.slot, actor.slots, envs.num_envs, config)
        self._stepper = Stepper(envs, lane_seeds, schema, policy, config.chunk_steps, clock)
        self._outbox, self._meter = Outbox(actor, clock), WorkMeter(clock)
        self._chunk_rows = config.chunk_steps * envs.num_envs
        self._weights = WeightSubscription(policy, config.fetch_every_s)
        self._poll_s = POLL_MIN_S
        self.counters = Counters()

    @property
    def weight_version(self) -> int:
        """The version of the weights that it acts with; 0 before the first."""
        return self._weights.version

    @property
    def schema(self) -> Schema:
        """The schema of its rows."""
        return self._stepper.schema

    @property
    def lanes(self) -> list[Any]:
        """The environments, one a lane."""
        return list(self._stepper.envs.envs)

    @property
    def in_doubt(self) -> bool:
        """Whether a chunk is in hand that is not known to be stored."""
        return self._outbox.pending is not None

    @property
    def may_act(self) -> bool:
        """Whether there are weights, and credit for a whole chunk."""
        return self.weight_version > 0 and self._outbox.allows(self.counters.rows, self._chunk_rows)

    @breakable
    def collect(self, seconds: float) -> Heartbeat:
        """Works for about ``seconds``: chunks where there is credit, polls where there is none."""
        with self._meter.collecting() as started:
            end = started + seconds
            while self._clock() < end:
                if not self.ready():
                    self._wait(min(self._poll_s * self._rng.uniform(0.8, 1.2), max(0.0, end - self._clock())))
                    self._poll_s = min(POLL_MAX_S, self._poll_s * 1.5) if self.weight_version else POLL_MIN_S
                    continue
                self._poll_s = POLL_MIN_S
                self.fill()
                self.send()
        work = self._meter.work(self._stepper.env_seconds)
        return Heartbeat(self.counters, self.pop_rebuilt(), work, self._actor.incarnation)

    def pop_rebuilt(self) -> tuple[str, ...]:
        """Returns a line for each environment that was made anew since the last call."""
        return self._stepper.pop_rebuilt()

    @breakable
    def ready(self) -> bool:
        """Returns whether the next chunk may be collected: nothing in doubt, credit, weights. Asks the log if not."""
        if self.in_doubt:
            return self.send() and self.may_act
        if not self.may_act:
            self._call(lambda: self._log.status(self._actor.slot))
        return self.may_act

    @breakable
    def fill(self) -> None:
        """Collects rows until the chunk is full or ``flush_s`` is over, and encodes it."""
        deadline_s = self._clock() + self._config.flush_s
        num_actions = self.schema.num_actions
        plan = explore(self._exploration.epsilon, self._config.chunk_steps, num_actions, self._rng)
        self._encode(*self._stepper.collect(plan, deadline_s, self.counters))

    def _encode(self, columns: Columns, counters: Counters) -> None:
        self.counters = counters
        actor = self._actor
        chunk = Chunk(actor.slot, actor.incarnation, self._outbox.seq, self.weight_version, counters, *columns)
        self._outbox.pending = encode(chunk, self.schema, actor.run)

    @breakable
    def send(self) -> bool:
        """Sends the chunk in hand; False leaves it in doubt, to be sent again under the same id.

        Raises:
            Fenced: a newer incarnation of the slot is at work.
        """
        chunk = self._outbox.pending
        assert chunk is not None
        if not self._call(lambda: self._log.append(self._actor.slot, self._outbox.chunk_id, chunk)):
            return False
        self._outbox.stored()
        return True

    def _call(self, call: Callable[[], Status]) -> bool:
        """Makes one call of the log and acts on the status it returns; False where the log is unavailable."""
        try:
            with self._meter.charging("log_seconds"):
                self._outbox.record(call())
            self._fetch_weights_if_newer()
        except (Unavailable, Full) as error:
            if not self._outbox.unavailable:
                LOG.warning("waits for the server: %s", error)
            self.counters = self.counters._replace(refusals=self.counters.refusals + 1)
            self._outbox.unavailable = True
            self._outbox.record(Status(None, None))
            return False
        if self._outbox.unavailable:
            LOG.info("the server takes and answers calls again")
        self._outbox.unavailable = False
        return True

    def _fetch_weights_if_newer(self) -> None:
        """Fetches newer weights, at most every ``fetch_every_s``; the run's env steps in their header anneal
        epsilon."""
        now_s = self._clock()
        if not self._weights.is_due(self._outbox.weights, now_s):
            return
        with self._meter.charging("fetch_seconds"):
            packed = self._log.fetch_weights()
            header = self._weights.load(packed, now_s)
        if packed is not None and header is not None:
            self._meter.count_fetch(len(packed))
            self._exploration.anneal(header.env_steps)
            LOG.debug("took the weights of update %d, %d bytes", header.updates, len(packed))

    def set_slot_count(self, slots: int) -> tuple[float, ...]:
        """Moves each lane to its place on the ladder of so many slots. Returns the epsilon that each anneals to.

        Raises:
            ValueError: this actor's slot is none of them.
        """
        return self._exploration.set_slot_count(slots)

    def _wait(self, seconds: float) -> None:
        unavailable = self._outbox.unavailable
        with self._meter.charging("log_seconds" if unavailable else "wait_seconds"):
            self._sleep(seconds)
        if not unavailable and self.weight_version:
            self.counters = self.counters._replace(credit_wait_s=self.counters.credit_wait_s + seconds)

    @breakable
    def flush(self, deadline_s: float) -> bool:
        """Closes every lane with a boundary row and sends what is in hand; True where all is stored in
        ``deadline_s``."""
        end = self._clock() + deadline_s
        if self.in_doubt and not self._send_until(end):
            return False
        if self.weight_version == 0 or self.counters.rows == 0:
            return True
        self._encode(*self._stepper.close_episodes(self.counters))
        return self._send_until(end)

    def _send_until(self, end_s: float) -> bool:
        """Sends the chunk in hand again and again; False where it is not stored by then."""
        while not self.send():
            if self._clock() > end_s:
                return False
            self._sleep(POLL_MIN_S)
        return True

    def close(self) -> list[str]:
        """Closes the environments; returns a line for each that did not let itself be closed."""
        return close_all(self.lanes)

    def state(self) -> State:
        """Returns all that a fresh rollout of the same actor goes on from bit by bit, between two chunks; for lanes
        that are recorded. Not in it: when weights were fetched last, and the pauses of ``collect``; they count seconds.

        Raises:
            ValueError: a chunk is in doubt.
        """
        self.check_unbroken()
        outbox, (lanes, arrays) = self._outbox.state(), self._stepper.state()
        values = {
            "slot": self._actor.slot,
            "incarnation": self._actor.incarnation,
            "counters": list(self.counters),
            "rng": rng_state(self._rng),
            "weight_version": self.weight_version,
            "run_env_steps": self._exploration.run_env_steps,
        }
        arrays = {**arrays, "epsilon": self._exploration.epsilon, **self._weights.arrays()}
        return State({**values, **outbox, **lanes}, arrays)

    @breakable
    def restore(self, state: State) -> None:
        """Goes on where the rollout was that gave ``state``: its lanes' episodes are played again to there. After an
        exception this rollout is of no use; another incarnation of the slot may start from scratch.

        Raises:
            NotReplayable: an environment does not allow that.
            ValueError: the state is another actor's.
        """
        values, arrays = state
        saved, own = (values["slot"], values["incarnation"]), (self._actor.slot, self._actor.incarnation)
        if saved != own or len(values["lanes"]) != len(self.lanes):
            lanes = len(arrays["rows.ended"][0])
            raise ValueError(f"the state of slot and incarnation {saved} with {lanes} lanes is not {own}'s")
        self._stepper.restore(state)
        self._outbox.restore(values)
        floor = self._exploration.floor
        self._exploration.epsilon = np.array(array_in(state, "epsilon", floor.shape, floor.dtype))
        self._exploration.run_env_steps = count(values.get("run_env_steps", 0), "run_env_steps")
        self._weights.restore(arrays, values["weight_version"])
        self.counters = Counters.of(values["counters"], "counters")
        restore_rng(self._rng, values["rng"])
