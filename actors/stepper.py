"""The hot path: env steps of all lanes into the rows of a chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from actors.contract import name_of
from actors.errors import EnvError
from actors.lanes import REBUILT, Lane, Lanes, RecordedLane
from actors.policy import DRAWS, Policy, carried, draw, flat
from actors.rows import Columns, Rows
from learner.networks.portable import allowed, fed
from replay.chunk import ACTION_MASK, Counters, Schema
from replay.state import State, array_in

Array = npt.NDArray[Any]


class Stepper:
    """Steps lanes epsilon-greedily: where they stand, their policy's recurrent state, and the rows they leave."""

    def __init__(
        self,
        envs: Lanes,
        lane_seeds: list[int | None],
        schema: Schema,
        policy: Policy,
        chunk_steps: int,
        clock: Callable[[], float],
    ) -> None:
        """Resets the lanes.

        Raises:
            EnvError: the lanes' autoreset mode is not NEXT_STEP; their rows would be read wrongly.
        """
        if envs.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
            raise EnvError(f"autoreset mode {envs.metadata.get('autoreset_mode')}; only NEXT_STEP marks boundary rows")
        self.envs, self.schema = envs, schema
        self._policy, self._clock = policy, clock
        self.rows = Rows(chunk_steps, envs.num_envs, schema, name_of(envs.envs[0]))
        self.env_seconds = 0.0
        """Seconds in the environments' steps so far."""
        self._rebuilt: list[str] = []
        self._newest = np.s_[:, -1] if schema.stack > 1 else np.s_[:]  # the frame that a row stores
        obs, infos = envs.reset(seed=lane_seeds)
        self._obs = np.asarray(obs)
        self._policy_state = policy.initial_state(envs.num_envs)
        self._record_rebuilt(infos)

    def collect(self, plan: Array, deadline_s: float, counters: Counters) -> tuple[Columns, Counters]:
        """Steps all lanes once for each time step of ``plan`` <int64>[T, E] (see ``actors.policy.explore``), or until
        the clock is beyond the deadline. Returns the rows as columns, and the counters with them.

        Raises:
            EnvError: an observation or a reward is not finite.
        """
        steps, core_state = 0, self._core_state()
        for steps, planned in enumerate(plan, start=1):
            if self._step(steps - 1, planned) > deadline_s:
                break
        columns, counters = self.rows.finish_chunk(steps, counters)
        return columns._replace(core_state=core_state), counters

    def _core_state(self) -> npt.NDArray[np.float32] | None:
        """Returns the lanes' recurrent state where they stand <float32>[E, core]; None without a core."""
        return flat(self._policy_state) if self.schema.core else None

    def _step(self, t: int, planned: Array) -> float:
        """Steps every lane once into time step ``t``. Returns the time when they were done."""
        rows = self.rows
        q, self._policy_state = self._policy(self._obs, self._policy_state)
        if rows.extras:
            extras = self._extras()
            for name, column in extras.items():
                rows.extras[name][t] = column
            if (mask := extras.get(ACTION_MASK)) is not None:
                q, planned = self._masked(t, q, planned, mask)
        action = np.where(planned < 0, q.argmax(1), planned)
        rows.obs[t], rows.q[t], rows.action[t] = self._obs[self._newest], q, action
        started = self._clock()
        self._obs, rows.reward[t], rows.terminated[t], rows.truncated[t], infos = self.envs.step(action)
        stepped = self._clock()
        self.env_seconds += stepped - started
        if infos:  # a lane has no others
            rows.broken[t] = self._record_rebuilt(infos)
        if self._policy_state:
            self._policy_state = fed(self._policy_state, action, rows.reward[t])
            self._begin_episodes(t)
        return stepped

    def _masked(self, t: int, q: Array, planned: Array, mask: Array) -> tuple[Array, Array]:
        """Returns Q values and planned actions of time step ``t`` with what the masks <uint8>[E, A] rule out ruled out.

        Raises:
            EnvError: a mask allows nothing in the middle of an episode.
        """
        none = ~mask.any(1)
        if none.any() and (stuck := np.flatnonzero(none & ~self.rows.boundary(t))).size:
            raise EnvError(
                f"{name_of(self.envs.envs[0])}: the action_mask in lane {stuck[0]} allows no action, and its episode "
                "is not over; the environment has to allow one, or to end the episode"
            )
        return allowed(q, mask), np.where(planned < 0, planned, draw(planned, mask))

    def _begin_episodes(self, t: int) -> None:
        """Gives lanes whose time step ``t`` is a boundary row the recurrent state that an episode begins with: until
        then the policy has seen the old episode, whose terminal observation the boundary row has."""
        begun = np.flatnonzero(self.rows.boundary(t))
        self._policy_state = carried(self._policy, self._policy_state, np.arange(self.envs.num_envs), begun)

    def close_episodes(self, counters: Counters) -> tuple[Columns, Counters]:
        """Returns one boundary row per lane where it stands, as columns, and the counters with them."""
        q, _ = self._policy(self._obs, self._policy_state)
        extras = self._extras()
        if (mask := extras.get(ACTION_MASK)) is not None:
            q = allowed(q, mask)
        columns, counters = self.rows.boundary_rows(self._obs[self._newest], q, extras, counters)
        return columns._replace(core_state=self._core_state()), counters

    @property
    def draws(self) -> int:
        """What a plan's numbers are drawn from: the actions, or where masks hold DRAWS."""
        return DRAWS if any(column.name == ACTION_MASK for column in self.schema.extras) else self.schema.num_actions

    def _extras(self) -> dict[str, Array]:
        """Returns the schema's further columns where the lanes stand, <dtype>[E, *shape] by name."""
        lanes = cast("list[Lane]", self.envs.envs)
        return {each.name: np.stack([lane.extras[each.name] for lane in lanes]) for each in self.schema.extras}

    def _record_rebuilt(self, infos: Mapping[str, Array]) -> Array:
        """Returns which lanes' environments were made anew, by the lanes' infos: <bool>[E]."""
        which = infos.get(f"_{REBUILT}", np.zeros(self.envs.num_envs, np.bool_))
        self._rebuilt += infos[REBUILT][which].tolist() if which.any() else []
        return which

    def pop_rebuilt(self) -> tuple[str, ...]:
        """Returns a line for each environment that was made anew since the last call."""
        rebuilt, self._rebuilt = tuple(self._rebuilt), []
        return rebuilt

    def state(self) -> State:
        """See ``replay.state``; for lanes that are recorded."""
        values, actions = zip(*(lane.state() for lane in self._recorded()), strict=True)
        return State(
            {"lanes": list(values)},
            {"obs": np.array(self._obs)}
            | {f"actions.{lane}": array for lane, array in enumerate(actions)}
            | {f"rows.{name}": array for name, array in self.rows.state().items()}
            | {f"recurrent.{name}": np.array(array) for name, array in self._policy_state.items()},
        )

    def restore(self, state: State) -> None:
        """See ``replay.state``; plays the lanes' episodes again to there.

        Raises:
            NotReplayable: an environment does not allow that.
        """
        values, arrays = state
        obs = array_in(state, "obs", self._obs.shape, self._obs.dtype)
        (ended,) = arrays["rows.ended"]
        for i, lane in enumerate(self._recorded()):
            lane.restore(values["lanes"][i], arrays[f"actions.{i}"], obs[i], bool(ended[i]))
        self._obs = np.array(obs)
        self.rows.restore({name: arrays[f"rows.{name}"] for name in self.rows.state()})
        self._policy_state = {
            name: np.array(array_in(state, f"recurrent.{name}", array.shape, array.dtype))
            for name, array in self._policy.initial_state(self.envs.num_envs).items()
        }

    def _recorded(self) -> list[RecordedLane]:
        lanes = [env for env in self.envs.envs if isinstance(env, RecordedLane)]
        if len(lanes) < self.envs.num_envs:
            raise ValueError("only lanes that are recorded have a state: make_lanes(..., recorded=True)")
        return lanes
