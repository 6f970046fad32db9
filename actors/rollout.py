"""One actor's work without its process: step the lanes, send their rows as far as there is credit, take new weights."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actors.config import ActorConfig
from actors.contract import EnvError, name_of
from actors.epsilon import annealed, ladder
from actors.lanes import REBUILT, Lane, RecordedLane
from actors.policy import Policy, explore
from actors.rows import Columns, Rows
from actors.seeds import training_seed
from learner.cpu_time import CpuTime
from learner.weights import unpack
from replay.breakable import Breakable, breakable
from replay.chunk import Chunk, Counters, Schema, encode
from replay.chunk_log.protocol import ChunkId, ChunkLog, Fenced, Full, Status, Unavailable, WeightsHeader
from replay.credit import Credit
from replay.state import State, array_in, count, restore_rng, rng_state

LOG = logging.getLogger("qherd.actor")
POLL_MIN_S, POLL_MAX_S = 0.02, 0.5
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Place:
    """Which actor this is: its slot of ``slots``, its incarnation, and the run's name and seed."""

    run: str
    seed: int
    slot: int
    slots: int
    incarnation: int

    def seeds(self, lanes: int) -> tuple[list[int | None], np.random.Generator]:
        """A seed per lane, and the generator of the actions. Each restart has new ones, by its incarnation, which
        is on record in the run's fences.json."""
        root = np.random.SeedSequence(self.seed, spawn_key=(self.slot, self.incarnation))
        actions, *per_lane = root.spawn(lanes + 1)
        return [training_seed(stream) for stream in per_lane], np.random.default_rng(actions)


class Work(NamedTuple):
    """Where an actor's seconds in ``collect`` went, and the weights it fetched; all cumulative."""

    seconds: float = 0.0
    env_seconds: float = 0.0
    """In the environments' steps."""
    log_seconds: float = 0.0
    """Waiting for the server: chunks, questions, and pauses while it was away."""
    fetch_seconds: float = 0.0
    """Fetching, checking and loading weights."""
    wait_seconds: float = 0.0
    """Without credit, or before the first weights."""
    cpu_seconds: float = 0.0
    """On a core: of all of the above."""
    starved_seconds: float = 0.0
    """Ready to run while others had all cores: of all of the above."""
    fetches: int = 0
    fetched_bytes: int = 0

    @property
    def own_seconds(self) -> float:
        """Its own computing: inference, rows, encoding."""
        return max(0.0, self.seconds - self.env_seconds - self.log_seconds - self.fetch_seconds - self.wait_seconds)

    def plus(self, other: Work) -> Work:
        """The sums, field by field."""
        return Work._make(a + b for a, b in zip(self, other, strict=True))


class Heartbeat(NamedTuple):
    """What an actor answers: its incarnation and that one's counters, a chunk in hand included; a line for each
    environment made anew since it last did: ``lane 3: RuntimeError: the bridge is down, after env step 812 of it``; and
    where its time went."""

    counters: Counters
    rebuilt: tuple[str, ...]
    work: Work = Work()
    incarnation: int = 0


class Rollout(Breakable):
    """Steps lanes epsilon-greedily and sends what they leave, one chunk in flight.

    ``log`` has to be this thread's own. While a chunk is in doubt (Unavailable, Full) nothing is stepped and nothing is
    dropped: the same id is sent again. An exception in the middle of a chunk leaves rows that do not follow the ones
    sent: the rollout is broken then, and each further call raises the same. After ``flush`` nothing is collected.
    """

    def __init__(
        self,
        place: Place,
        envs: SyncVectorEnv,
        schema: Schema,
        policy: Policy,
        log: ChunkLog,
        config: ActorConfig,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises EnvError for lanes whose autoreset mode is not NEXT_STEP: their rows would be read wrongly."""
        if envs.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
            raise EnvError(f"autoreset mode {envs.metadata.get('autoreset_mode')}; only NEXT_STEP marks boundary rows")
        self._place, self._envs, self._schema, self._policy = place, envs, schema, policy
        self._log, self._config, self._clock, self._sleep = log, config, clock, sleep
        lane_seeds, self._rng = place.seeds(envs.num_envs)
        self._run_env_steps = 0  # as the newest weights tell
        self.place(place.slots)
        self._rebuilt: list[str] = []
        obs, infos = envs.reset(seed=lane_seeds)
        self._obs = np.asarray(obs)
        self._note_rebuilt(infos)
        self._rows = Rows(config.chunk_steps, envs.num_envs, schema, name_of(envs.envs[0]))
        self._newest = np.s_[:, -1] if schema.stack > 1 else np.s_[:]  # the frame that a row stores
        self._pending: bytes | None = None
        self._seq = 1
        self._status = Status(None, None)
        self._acknowledged_s = 0.0
        self._fetched_s = -np.inf
        self._away = False
        self._poll_s = POLL_MIN_S
        self.weight_version = 0
        self.counters = Counters()
        self._work: dict[str, Any] = Work()._asdict()

    @breakable
    def collect(self, seconds: float) -> Heartbeat:
        """Work for about ``seconds``: chunks where there is credit, polls where there is none."""
        started, cpu = self._clock(), CpuTime.now()
        end = started + seconds
        while self._clock() < end:
            if not self.ready():
                self._wait(min(self._poll_s * self._rng.uniform(0.8, 1.2), max(0.0, end - self._clock())))
                self._poll_s = min(POLL_MAX_S, self._poll_s * 1.5) if self.weight_version else POLL_MIN_S
                continue
            self._poll_s = POLL_MIN_S
            self.fill()
            self.send()
        self._work["seconds"] += self._clock() - started
        now = CpuTime.now()
        self._work["cpu_seconds"] += now.on_core_s - cpu.on_core_s
        self._work["starved_seconds"] += now.starved_s - cpu.starved_s
        return Heartbeat(self.counters, self.take_rebuilt(), Work(**self._work), self._place.incarnation)

    def take_rebuilt(self) -> tuple[str, ...]:
        """A line for each environment that was made anew since the last call."""
        rebuilt, self._rebuilt = tuple(self._rebuilt), []
        return rebuilt

    @breakable
    def ready(self) -> bool:
        """Whether the next chunk may be collected: nothing in doubt, credit, weights. Asks the log if not."""
        if self._pending is not None:
            return self.send() and self._may_act()
        if not self._may_act():
            self._ask(lambda: self._log.status(self._place.slot))
        return self._may_act()

    @breakable
    def fill(self) -> None:
        """Collect rows until the chunk is full or ``flush_s`` is over, and encode it."""
        deadline = self._clock() + self._config.flush_s
        rows, steps = self._rows, 0
        plan = explore(self._epsilon, self._config.chunk_steps, self._schema.num_actions, self._rng)
        for steps, planned in enumerate(plan, start=1):
            if self._step(rows, steps - 1, planned) > deadline:
                break
        self._encode(*rows.close(steps, self.counters))

    def _step(self, rows: Rows, t: int, planned: Array) -> float:
        """One env step of every lane into time step ``t``: the hot path. Returns the time when they were done."""
        q = self._policy(self._obs)
        action = np.where(planned < 0, q.argmax(1), planned)
        rows.obs[t], rows.q[t], rows.action[t] = self._obs[self._newest], q, action
        if rows.extras:
            for name, column in self._extras().items():
                rows.extras[name][t] = column
        started = self._clock()
        self._obs, rows.reward[t], rows.terminated[t], rows.truncated[t], infos = self._envs.step(action)
        stepped = self._clock()
        self._work["env_seconds"] += stepped - started
        if infos:  # a lane has no others
            rows.broken[t] = self._note_rebuilt(infos)
        return stepped

    def _extras(self) -> dict[str, Array]:
        """The schema's further columns where the lanes stand, <dtype>[E, *shape] by name."""
        lanes = cast("list[Lane]", self._envs.envs)
        return {each.name: np.stack([lane.extras[each.name] for lane in lanes]) for each in self._schema.extras}

    def _note_rebuilt(self, infos: Mapping[str, Array]) -> Array:
        """Which lanes' environments were made anew, as the lanes say: <bool>[E]."""
        which = infos.get(f"_{REBUILT}", np.zeros(self._envs.num_envs, np.bool_))
        self._rebuilt += infos[REBUILT][which].tolist() if which.any() else []
        return which

    def state(self) -> State:
        """All that a fresh rollout of the same place goes on from bit by bit, between two chunks; for lanes that are
        recorded. Not in it: when weights were fetched last, and the pauses of ``collect``; they count seconds.

        Raises ValueError while a chunk is in doubt.
        """
        self.check_unbroken()
        if self._pending is not None:
            raise ValueError(f"chunk {self._seq} of slot {self._place.slot} is in doubt; send it first")
        values, actions = zip(*(lane.state() for lane in self._recorded()), strict=True)
        credit, header = self._status
        return State(
            {
                "slot": self._place.slot,
                "incarnation": self._place.incarnation,
                "seq": self._seq,
                "counters": list(self.counters),
                "rng": rng_state(self._rng),
                "weight_version": self.weight_version,
                "credit": credit and list(credit),
                "run_env_steps": self._run_env_steps,
                "newest_weights": header and list(header),
                "lanes": list(values),
            },
            {"obs": np.array(self._obs), "epsilon": self._epsilon}
            | {f"actions.{lane}": array for lane, array in enumerate(actions)}
            | {f"rows.{name}": array for name, array in self._rows.state().items()}
            | {f"policy.{name}": array for name, array in self._policy.state().items()},
        )

    @breakable
    def restore(self, state: State) -> None:
        """Go on where the rollout was that gave ``state``: its lanes' episodes are played again to there.

        Raises NotReplayable where an environment does not allow that, and ValueError for another place's state. This
        rollout is of no use then; another incarnation of the slot may start from scratch.
        """
        values, arrays = state
        (ended,) = arrays["rows.ended"]
        lanes = self._recorded()
        told, own = (values["slot"], values["incarnation"]), (self._place.slot, self._place.incarnation)
        if told != own or len(values["lanes"]) != len(lanes):
            raise ValueError(f"the state of slot and incarnation {told} with {len(ended)} lanes is not {own}'s")
        obs = array_in(state, "obs", self._obs.shape, self._obs.dtype)
        for i, lane in enumerate(lanes):
            lane.restore(values["lanes"][i], arrays[f"actions.{i}"], obs[i], bool(ended[i]))
        credit, header = values["credit"], values["newest_weights"]
        self._status = Status(credit and Credit(*credit), header and WeightsHeader(*header))
        self._obs = np.array(obs)
        self._epsilon = np.array(array_in(state, "epsilon", self._floor.shape, self._floor.dtype))
        self._rows.restore(_named("rows.", arrays))
        self._policy.load(_named("policy.", arrays))
        self._seq, self.counters = count(values["seq"], "seq"), Counters.of(values["counters"], "counters")
        self.weight_version = count(values["weight_version"], "weight_version")
        self._run_env_steps = count(values.get("run_env_steps", 0), "run_env_steps")
        restore_rng(self._rng, values["rng"])

    def _recorded(self) -> list[RecordedLane]:
        lanes = [env for env in self._envs.envs if isinstance(env, RecordedLane)]
        if len(lanes) < self._envs.num_envs:
            raise ValueError("only lanes that are recorded have a state: make_lanes(..., recorded=True)")
        return lanes

    def _encode(self, columns: Columns, counters: Counters) -> None:
        self.counters = counters
        place = self._place
        chunk = Chunk(place.slot, place.incarnation, self._seq, self.weight_version, counters, *columns)
        self._pending = encode(chunk, self._schema, place.run)

    @breakable
    def send(self) -> bool:
        """Send the chunk in hand; False leaves it in doubt, to be sent again under the same id. Raises Fenced."""
        chunk, chunk_id = self._pending, ChunkId(self._place.incarnation, self._seq)
        assert chunk is not None
        if not self._ask(lambda: self._log.append(self._place.slot, chunk_id, chunk)):
            return False
        self._pending = None
        self._seq += 1
        self._acknowledged_s = self._clock()
        return True

    def _ask(self, call: Callable[[], Status]) -> bool:
        """Do one call on the log and act on the status it returns; False where the log is away."""
        try:
            with self._charging("log_seconds"):
                self._note(call())
            self._take_weights()
            if self._away:
                LOG.info("the server takes and answers calls again")
            self._away = False
        except (Unavailable, Full) as error:
            if not self._away:
                LOG.warning("waits for the server: %s", error)
            self.counters = self.counters._replace(refusals=self.counters.refusals + 1)
            self._away = True
            self._note(Status(None, None))
            return False
        return True

    @contextlib.contextmanager
    def _charging(self, what: str) -> Iterator[None]:
        """Book the block's time, however it ends."""
        started = self._clock()
        try:
            yield
        finally:
            self._work[what] += self._clock() - started

    def _may_act(self) -> bool:
        """Whether there are weights, and credit for a whole chunk."""
        credit = self._status.credit
        if credit is None or self.weight_version == 0:
            return False
        chunk_rows = self._config.chunk_steps * self._envs.num_envs
        own = (self._place.incarnation, self.counters.rows, chunk_rows)
        return credit.allows(*own, waited_s=0.0) or credit.allows(*own, self._clock() - self._acknowledged_s)

    def _note(self, status: Status) -> None:
        """Raises Fenced where the learner has rows of a newer incarnation."""
        before, now = (credit and credit[:2] for credit in (self._status.credit, status.credit))
        if before != now:
            self._acknowledged_s = self._clock()
        self._status, place = status, self._place
        if status.credit is not None and status.credit.incarnation > place.incarnation:
            newer = status.credit.incarnation
            raise Fenced(f"slot {place.slot}: incarnation {newer} has taken over from {place.incarnation}")

    def _take_weights(self) -> None:
        """Fetch newer weights, at most every ``fetch_every_s``; the run's env steps in their header anneal epsilon."""
        header, now = self._status.weights, self._clock()
        if header is None or header.version <= self.weight_version:
            return
        if now - self._fetched_s < self._config.fetch_every_s:
            return
        with self._charging("fetch_seconds"):
            value = self._log.fetch_weights()
            if value is None:
                return
            fetched, arrays = unpack(value)
            if (
                fetched.version <= self.weight_version
            ):  # the server has come back with older ones since it told of newer
                return
            self._policy.load(arrays)
        self._work["fetches"] += 1
        self._work["fetched_bytes"] += len(value)
        self.weight_version, self._fetched_s = fetched.version, now
        self._run_env_steps = fetched.env_steps
        LOG.debug("took the weights of update %d, %d bytes", fetched.updates, len(value))
        self._anneal()

    def place(self, slots: int) -> tuple[float, ...]:
        """The run has so many slots from now on: each lane moves to its place on their ladder.

        Returns what epsilon each lane anneals to. Raises ValueError where this actor's slot is none of them.
        """
        lanes = self._place.slot * self._envs.num_envs + np.arange(self._envs.num_envs)
        self._floor = ladder(lanes, slots * self._envs.num_envs, self._config.epsilon, self._config.epsilon_alpha)
        self._place = replace(self._place, slots=slots)
        self._anneal()
        return tuple(self._floor.tolist())

    def _anneal(self) -> None:
        self._epsilon = annealed(self._floor, self._run_env_steps, self._config.epsilon_anneal_env_steps)

    def _wait(self, seconds: float) -> None:
        with self._charging("log_seconds" if self._away else "wait_seconds"):
            self._sleep(seconds)
        if not self._away and self.weight_version:
            self.counters = self.counters._replace(credit_wait_s=self.counters.credit_wait_s + seconds)

    @breakable
    def flush(self, deadline_s: float) -> bool:
        """Close every lane with a boundary row and send what is in hand; True where all is stored in ``deadline_s``."""
        end = self._clock() + deadline_s
        while self._pending is not None and not self.send():
            if self._clock() > end:
                return False
            self._sleep(POLL_MIN_S)
        if self.weight_version == 0 or self.counters.rows == 0:
            return True
        q = self._policy(self._obs)
        self._encode(*self._rows.boundary(self._obs[self._newest], q, self._extras(), self.counters))
        while not self.send():
            if self._clock() > end:
                return False
            self._sleep(POLL_MIN_S)
        return True


def _named(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Those of ``arrays`` whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
