"""A policy in numpy alone: from an environment's own observations to its actions, with the values of all of them.

``load_policy`` acts with it, actors map observations with it, and ``qherd export --format numpy`` copies this file
beside the weights: it imports nothing of qherd's. There ``load`` reads policy.npz::

    policy = load(folder)
    action, q = policy.act(obs)

What a policy is stands in a dict that JSON holds, ``about``; what its network computes is a list of named operations
in that (learner/networks/program.py).
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
About = Mapping[str, Any]
Operation = Callable[[Array], Array]
PolicyState = Mapping[str, Array]
"""A policy's recurrent state: arrays [E, ...] by name, a row per lane. Empty for a feed-forward policy."""
Recurrent = Callable[[Array, PolicyState], tuple[Array, PolicyState]]
"""From an array [E, ...] and the lanes' state to an array and the state after it."""

FORMAT = 1
"""Raised where older code could not read what newer code writes."""
FILE, ABOUT = "policy.npz", "about"
"""An export's weights, and what they are the weights of, as JSON in the same file."""
MAX_COMBINATIONS = 4096
"""Combinations of a MultiDiscrete action that are numbered: each costs an output of the network."""
FORBIDDEN = np.float32(-1e30)
"""The value of an action that a mask rules out, where values are compared."""


# -- observations


class Mismatch(ValueError):
    """An observation that is not of its space. The text begins after "returned" or "was given"."""


class Observations:
    """Makes one array of an observation, which the network is given: of a single one, or of a batch, whose every entry
    has one more axis in front."""

    def __init__(self, about: About) -> None:
        """``about``: ``entries``, each with the keys that lead to it (``path``); whether they are ``flattened`` into
        one vector, and bytes of 0 to 255 ``divided`` by 255; the ``dtype`` and ``shape`` of what comes of it."""
        self._entries = [
            (tuple(each["path"]), entry_of(each), int(each.get("divisor", 1))) for each in about["entries"]
        ]
        self._space, self._flattened, self._divided = about["space"], bool(about["flattened"]), bool(about["divided"])
        self.dtype, self.shape = np.dtype(about["dtype"]), tuple(about["shape"])

    def __call__(self, obs: Any, rows: tuple[int, ...] = ()) -> Array:
        """Returns a single observation <dtype>[*shape], or with ``rows`` (B,) a batch of them <dtype>[B, *shape].

        Raises:
            Mismatch: it is not of the environment's space.
        """
        if not self._flattened:
            return self._entries[0][1](obs, rows)
        parts = []
        for path, entry, divisor in self._entries:
            part = entry(self._at(obs, path), rows).reshape(*rows, -1)
            parts.append(part / np.float32(divisor) if self._divided and divisor > 1 else part)
        return np.concatenate(parts, axis=-1, dtype=self.dtype, casting="unsafe")

    def rows(self, obs: Any) -> tuple[int, ...]:
        """Returns (B,) for a batch of observations, () for a single one, by its first entry."""
        path, entry, _ = self._entries[0]
        shape = np.shape(self._at(obs, path))
        return shape[:1] if len(shape) > len(entry.shape) else ()

    def _at(self, obs: Any, path: tuple[Any, ...]) -> Any:
        for depth, key in enumerate(path):
            try:
                obs = obs[key]
            except (KeyError, IndexError, TypeError):
                where = "".join(f"[{each!r}]" for each in path[: depth + 1])
                raise Mismatch(f"an observation without {where}; its space is {self._space}") from None
        return obs


def entry_of(about: About) -> Numbers | OneHot:
    """Returns what stores one entry of observations, or all there is where they have no entries."""
    return OneHot(about) if "counts" in about else Numbers(about)


class Numbers:
    """An entry that is an array, in its own dtype or narrowed to another."""

    def __init__(self, about: About) -> None:
        self.shape, self._dtype, self._stored = (
            tuple(about["shape"]),
            np.dtype(about["dtype"]),
            np.dtype(about["stored"]),
        )
        self._space, self._bytes = about["space"], int(about["divisor"]) > 1
        self._where = "".join(f"[{key!r}]" for key in about["path"])

    def __call__(self, given: Any, rows: tuple[int, ...]) -> Array:
        """Returns <stored>[*rows, *shape]."""
        shape = (*rows, *self.shape) if rows else self.shape
        if not (type(given) is np.ndarray and given.dtype is self._dtype and given.shape == shape):
            given = self._cast(given, shape)
        stored: Array = given if self._stored is self._dtype else given.astype(self._stored)
        return stored

    def _cast(self, obs: Any, shape: tuple[int, ...]) -> Array:
        """Returns it in its space's dtype. Whole numbers and flags have to keep their values; a space of floats takes
        any number."""
        wrong = f"an observation{self._where} of"
        says = f"; its space {self._space} says shape {self.shape} and dtype {self._dtype}"
        given = as_array(obs, shape, wrong, says)
        if given.dtype.kind not in "biuf":
            raise Mismatch(f"{wrong} dtype {given.dtype}{says}")
        if given.dtype.kind == "b" and self._bytes:
            raise Mismatch(f"{wrong} dtype bool{says}; say Box(0, 1, dtype=bool), or return 0 and 255")
        with np.errstate(all="ignore"):
            cast = given.astype(self._dtype)
        if self._dtype.kind != "f" and not np.array_equal(cast, given):
            raise Mismatch(f"{wrong} dtype {given.dtype}, with values that {self._dtype} cannot hold{says}")
        return cast


class OneHot:
    """An entry that is one number of several, or an array of such."""

    def __init__(self, about: About) -> None:
        self._counts, self._first = (np.array(about[name], np.int64) for name in ("counts", "first"))
        self._begin, self._total = np.cumsum(self._counts) - self._counts, int(self._counts.sum())
        self.shape, self._space = tuple(about["shape"]), about["space"]
        self._where = "".join(f"[{key!r}]" for key in about["path"])

    def __call__(self, obs: Any, rows: tuple[int, ...]) -> Array:
        """Returns <float32>[*rows, sum of the counts]."""
        says = f"; its space {self._space} says shape {self.shape} of integers"
        given = as_array(obs, (*rows, *self.shape), f"an observation{self._where} of", says)
        flat = given.reshape(*rows, -1)
        index = (flat if flat.dtype.kind in "biuf" else np.full(flat.shape, np.nan)) - self._first
        if not ((index >= 0) & (index < self._counts) & (index % 1 == 0)).all():
            last = self._first + self._counts - 1
            among = f"{self._first[0]} to {last[0]}" if not self.shape else f"{self._first} to {last}"
            raise Mismatch(f"the observation{self._where} {given.tolist()!r:.80}; its space {self._space} has {among}")
        hot = np.zeros((*rows, self._total), np.float32)
        np.put_along_axis(hot, self._begin + index.astype(np.int64), np.float32(1), -1)
        return hot


def as_array(obs: Any, shape: tuple[int, ...], wrong: str, says: str) -> Array:
    """Returns the observation as an array of this shape. Raises Mismatch, from ``wrong`` to ``says``."""
    try:
        given = np.asarray(obs)
    except ValueError as error:  # lists of several lengths
        raise Mismatch(f"{wrong} {type(obs).__name__} that is no array ({error}){says}") from None
    if given.shape != shape:
        raise Mismatch(f"{wrong} shape {given.shape}{says}")
    return given


# -- actions


def action_table(counts: Array, first: Array, dtype: npt.DTypeLike) -> Array:
    """Returns all combinations of a MultiDiscrete or MultiBinary space <dtype>[A, *shape]: the last entry changes
    first."""
    sizes = tuple(counts.ravel().tolist())
    places = np.unravel_index(np.arange(int(np.prod(sizes))), sizes)
    table: Array = (np.stack(places, 1).reshape(-1, *counts.shape) + first).astype(dtype)
    return table


def actions_of(about: About) -> Operation:
    """Returns a function from the numbers of actions <int64>[B] to what the environment is given, one after another."""
    if "counts" not in about:
        start = int(about["start"])
        return (lambda numbers: numbers + start) if start else (lambda numbers: numbers)
    counts, first, size = np.array(about["counts"], np.int64), np.array(about["first"], np.int64), int(about["n"])
    if not 0 < size <= MAX_COMBINATIONS or math.prod(counts.ravel().tolist()) != size:
        raise ValueError(f"actions {counts.tolist()!r:.80} that are no {size:,} combinations, up to {MAX_COMBINATIONS}")
    table = action_table(counts, first, about["dtype"])
    return lambda numbers: table[numbers]


# -- acting


class Acted(NamedTuple):
    """What ``Policy.act`` returns: the action that ``env.step`` takes, and the values <float32>[A] of all actions in
    the order of their numbers; of a batch [B, ...] and [B, A]."""

    action: Any
    q: Array


class Policy:
    """A greedy policy for the observations that an environment itself returns."""

    def __init__(self, about: About, values: Recurrent) -> None:
        """``about``: see ``learner.policy.describe``; ``values`` maps what the network is given
        <dtype>[B, (stack,) *shape] and the lanes' recurrent state to Q values <float32>[B, A] and the state after."""
        self.about, self._values = about, values
        self._observations, self._actions = Observations(about["observation"]), actions_of(about["actions"])
        self.num_actions, self.stack, self.masked = int(about["actions"]["n"]), int(about["stack"]), about["masked"]
        self._memory = Memory.of(about.get("core", ()))
        self._frames = np.zeros((0, self.stack, *self._observations.shape), self._observations.dtype)
        self._state = dict(self._memory.initial_state(0))
        self._begins = np.ones(0, np.bool_)

    def act(self, obs: Any, mask: Any = None, reward: Any = None) -> Acted:
        """Returns the best action for an observation as the environment returns it, and all values; of a batch, whose
        entries have one axis more in front, an action for each row.

        Where the policy stacks frames (``stack`` above 1) or has a recurrent core, row i of a batch is the newest
        observation of lane i, a single observation that of lane 0, and ``reset`` tells it where an episode begins.

        Args:
            mask: the actions that are allowed, [A] or [B, A] of 0 and 1, as in ``info["action_mask"]``; None: all. A
                policy that was trained with masks needs one. Where a row allows none, all are taken for allowed.
            reward: the reward, one for each row, that came with the observation: only for a policy whose core is given
                previous actions and rewards, which takes the action that it returned last for the one taken. It is
                ignored where an episode begins.

        Raises:
            ValueError: obs or mask are not what the environment's spaces have.
        """
        try:
            rows = self._observations.rows(obs)
            given = self._observations(obs, rows)
        except Mismatch as error:
            raise ValueError(f"act() was given {error}") from None
        batch = given if rows else given[None]
        if self.stack == 1 and not self._memory.widths:
            q, _ = self._values(batch, {})
            numbers = self._best(q, mask, rows)
        else:
            lanes = self._lanes(len(batch))
            state = self._remembered(lanes, reward, rows)
            frames = self._stacked(lanes, batch)
            q, state = self._values(frames, state)
            numbers = self._best(q, mask, rows)  # the last that may be refused: nothing has changed so far
            if self.stack > 1:
                self._frames[lanes] = frames
            for name, array in fed(state, numbers, np.zeros(len(q))).items():
                self._state[name][lanes] = array
            self._begins[lanes] = False
        action = self._actions(numbers)
        return Acted(action, q) if rows else Acted(action[0], q[0])

    def reset(self, lane: int | None = None) -> None:
        """Begins an episode in a lane, or in all: its next observation is the first one, fills its stack of frames, and
        finds nothing remembered. Changes nothing for a policy without stacks and core."""
        self._begins[slice(None) if lane is None else slice(lane, lane + 1)] = True

    def _lanes(self, count: int) -> slice:
        """Returns the first ``count`` lanes, those that there were not yet at the beginning of an episode."""
        if (more := count - len(self._begins)) > 0:
            self._frames = np.concatenate([self._frames, np.zeros((more, *self._frames.shape[1:]), self._frames.dtype)])
            for name, further in self._memory.initial_state(more).items():
                self._state[name] = np.concatenate([self._state[name], further])
            self._begins = np.concatenate([self._begins, np.ones(more, np.bool_)])
        return slice(0, count)

    def _stacked(self, lanes: slice, newest: Array) -> Array:
        """Returns the lanes' newest frames <dtype>[B, stack, *shape]; without stacks the newest."""
        if self.stack == 1:
            return newest
        frames, begins = self._frames[lanes].copy(), self._begins[lanes]
        frames[:, :-1] = frames[:, 1:]
        frames[:, -1] = newest
        frames[begins] = newest[begins][:, None]  # an episode's first frame fills the stack
        return frames

    def _remembered(self, lanes: slice, reward: Any, rows: tuple[int, ...]) -> PolicyState:
        """Returns the lanes' recurrent state, zero where an episode begins, with the rewards that came last."""
        state = {name: array[lanes].copy() for name, array in self._state.items()}
        begins = self._begins[lanes]
        if REWARD in state and not begins.all():
            given = np.asarray(np.nan if reward is None else reward, np.float64)
            if given.shape != rows or not np.isfinite(given[() if not rows else ~begins]).all():
                raise ValueError(
                    f"act() was given the reward {reward!r:.80}, and this policy's core is given the previous reward: "
                    f"pass the finite reward that came with the observation, of shape {rows}, or call reset() where an "
                    "episode begins"
                )
            state[REWARD][:, 0] = given
        for array in state.values():
            array[begins] = 0
        return state

    def _best(self, q: Array, mask: Any, rows: tuple[int, ...]) -> Array:
        """Returns the numbers of the greatest of the Q values that are allowed <int64>[B]."""
        numbers: Array = (q if mask is None and not self.masked else self._allowed(q, mask, rows)).argmax(1)
        return numbers

    def _allowed(self, q: Array, mask: Any, rows: tuple[int, ...]) -> Array:
        """Returns Q values <float32>[B, A] with FORBIDDEN for the actions that masks rule out."""
        wanted = (*rows, self.num_actions)
        if mask is None:
            raise ValueError(
                f"act() was given no mask, and this policy was trained with action masks: pass info['action_mask'], an "
                f"array of 0 and 1 of shape {wanted}, or one of ones to allow all actions"
            )
        given = np.asarray(mask)
        if given.shape != wanted or given.dtype.kind not in "biu" or not ((given == 0) | (given == 1)).all():
            raise ValueError(
                f"act() was given the mask {given.tolist()!r:.80} of shape {given.shape}; it has to be 0 or 1 for each "
                f"action, of shape {wanted}"
            )
        return allowed(q, given.reshape(len(q), -1))


def allowed(q: Array, mask: Array) -> Array:
    """Returns Q values <float32>[E, A] with FORBIDDEN for the actions that the lanes' masks <uint8>[E, A] rule out. A
    state that allows none, as one after the end of an episode may, keeps its own."""
    masked: Array = np.where((mask != 0) | ~mask.any(1, keepdims=True), q, FORBIDDEN)
    return masked


# -- what a recurrent policy remembers

ACTION, REWARD = "previous_action", "previous_reward"
"""What a core that is given them remembers: the number of the action + 1, 0 where there is none, and the reward."""


class Memory:
    """What a recurrent core remembers of each lane, zero where an episode begins: ``widths``, how many numbers of
    float32 by the name of the array, in the names' order. Nothing of a feed-forward network."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        self.widths = dict(sorted(widths.items()))

    @classmethod
    def of(cls, program: Sequence[About]) -> Memory:
        """Returns what the operation ``core`` among these remembers."""
        for about in program:
            if about["op"] == "core":
                cells = dict.fromkeys(("c", "h") if about["kind"] == "lstm" else ("h",), int(about["size"]))
                return cls({**cells, **({ACTION: 1, REWARD: 1} if about["previous"] else {})})
        return cls({})

    @property
    def width(self) -> int:
        """How many numbers it has for each lane."""
        return sum(self.widths.values())

    def initial_state(self, lanes: int) -> dict[str, Array]:
        """Returns the state <float32>[E, width] of so many lanes that begin an episode."""
        return {name: np.zeros((lanes, width), np.float32) for name, width in self.widths.items()}


def fed(state: PolicyState, action: Array, reward: Array) -> PolicyState:
    """Returns the lanes' state after their actions <int64>[E] and what came of them, rewards <float>[E], where the
    policy is given those at the next observation; else the state as it is."""
    if REWARD not in state:
        return state
    columns = {ACTION: np.asarray(action) + 1, REWARD: np.asarray(reward)}
    return {**state, **{name: column.astype(np.float32)[:, None] for name, column in columns.items()}}


# -- what networks compute


def network(program: Sequence[About], arrays: Mapping[str, Array]) -> Operation:
    """Returns the function that a list of operations is, with the parameters that they name: from observations
    <dtype>[B, ...] to Q values <float32>[B, A]."""
    steps = chain(program, arrays)
    return lambda obs: steps(obs.astype(np.float32, copy=False))


def recurrent(program: Sequence[About], arrays: Mapping[str, Array]) -> Recurrent:
    """Returns the same of a network that may have a core: from observations and the lanes' state to Q values and the
    state after them. Without a core the state stays as it is."""
    at = next((index for index, about in enumerate(program) if about["op"] == "core"), None)
    if at is None:
        values = network(program, arrays)
        return lambda obs, state: (values(obs), state)
    encoder, core, head = network(program[:at], arrays), _core(program[at], arrays), chain(program[at + 1 :], arrays)

    def run(obs: Array, state: PolicyState) -> tuple[Array, PolicyState]:
        features, state = core(encoder(obs), state)
        return head(features), state

    return run


def _core(about: About, arrays: Mapping[str, Array]) -> Recurrent:
    """One time step of an LSTM or a GRU as torch has them; its inputs are the features, and where it is given them the
    previous action, one-hot, and the previous reward as it is trained on."""
    parts = (f"{about['name']}.{part}_l0" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    step = {"lstm": _lstm, "gru": _gru}[about["kind"]](*(arrays[name] for name in parts))
    if (given := about["previous"]) is None:
        return step
    numbers = np.arange(1, given["actions"] + 1, dtype=np.float32)
    scale, clipped = np.float32(given["reward_scale"]), given["reward_clip"]

    def with_previous(x: Array, state: PolicyState) -> tuple[Array, PolicyState]:
        reward = (np.sign(state[REWARD]) if clipped else state[REWARD]) * scale
        h, following = step(np.concatenate([x, state[ACTION] == numbers, reward], 1, dtype=np.float32), state)
        return h, {**state, **following}

    return with_previous


def _lstm(weight_ih: Array, weight_hh: Array, bias_ih: Array, bias_hh: Array) -> Recurrent:
    """``c = f c + i g, h = o tanh(c)`` with ``i, f, o = sigmoid(...)``, ``g = tanh(...)``: as a sigmoid is
    ``(tanh(x / 2) + 1) / 2``, all four are one call."""
    size = weight_hh.shape[1]
    halves = np.full(4 * size, 0.5, np.float32)
    halves[2 * size : 3 * size] = 1
    weight, bias = np.ascontiguousarray(np.concatenate([weight_ih, weight_hh], 1).T) * halves, bias_ih + bias_hh
    bias = bias * halves

    def step(x: Array, state: PolicyState) -> tuple[Array, PolicyState]:
        gates = np.concatenate([x, state["h"]], 1) @ weight
        gates += bias
        np.tanh(gates, out=gates)
        i, f, g, o = (gates[:, part * size : (part + 1) * size] for part in range(4))
        c = (f * 0.5 + 0.5) * state["c"] + (i * 0.5 + 0.5) * g
        h = (o * 0.5 + 0.5) * np.tanh(c)
        return h, {"c": c, "h": h}

    return step


def _gru(weight_ih: Array, weight_hh: Array, bias_ih: Array, bias_hh: Array) -> Recurrent:
    """``h = (1 - z) n + z h`` with ``r, z = sigmoid(...)``, ``n = tanh(W x + b + r (W' h + b'))``."""
    size = weight_hh.shape[1]
    (of_x, bias_x), (of_h, bias_h) = _layer(weight_ih, bias_ih), _layer(weight_hh, bias_hh)

    def step(x: Array, state: PolicyState) -> tuple[Array, PolicyState]:
        given, kept = x @ of_x + bias_x, state["h"] @ of_h + bias_h
        rz = np.tanh((given[:, : 2 * size] + kept[:, : 2 * size]) * 0.5) * 0.5 + 0.5
        n = np.tanh(given[:, 2 * size :] + rz[:, :size] * kept[:, 2 * size :])
        h = n + rz[:, size:] * (state["h"] - n)
        return h, {"h": h}

    return step


def chain(program: Sequence[About], arrays: Mapping[str, Array]) -> Operation:
    """Returns the operations one after another. Each may change the array that it is given where the one before it has
    made it."""
    steps = [_OPERATIONS[about["op"]](about, arrays) for about in program]

    def run(x: Array) -> Array:
        for step in steps:
            x = step(x)
        return x

    return run


def _scale(about: About, arrays: Mapping[str, Array]) -> Operation:
    divisor = np.float32(about["divisor"])
    return lambda x: x / divisor


def _flatten(about: About, arrays: Mapping[str, Array]) -> Operation:
    if about.get("picture"):  # [B, C, H, W], whose channels come last in the vector
        return lambda x: x.transpose(0, 2, 3, 1).reshape(len(x), -1)
    return lambda x: x.reshape(len(x), -1)


def _picture(about: About, arrays: Mapping[str, Array]) -> Operation:
    """Pictures as [B, C, H, W], a stack's frames as channels. ``channels_last``: they come as [B, (S,) H, W, C]."""
    shape = tuple(about["shape"])
    if about["channels_last"]:
        return lambda x: np.moveaxis(x, -1, -3).reshape(-1, *shape)
    return lambda x: x.reshape(-1, *shape)


def _relu(about: About, arrays: Mapping[str, Array]) -> Operation:
    return lambda x: np.maximum(x, 0)


def _linear(about: About, arrays: Mapping[str, Array]) -> Operation:
    """A linear layer, and a ReLU after it where ``relu`` is there."""
    weight, bias = _layer(arrays[f"{about['name']}.weight"], arrays[f"{about['name']}.bias"])

    def plain(x: Array) -> Array:
        x = x @ weight
        x += bias
        return x

    def with_relu(x: Array) -> Array:
        x = x @ weight
        x += bias
        return np.maximum(x, 0, out=x)

    return with_relu if about.get("relu") else plain


def _layer(weight: Array, bias: Array) -> tuple[Array, Array]:
    return np.ascontiguousarray(weight.T), bias


def _norm(about: About, arrays: Mapping[str, Array]) -> Operation:
    """Layer norm over the last axis, or of pictures [B, C, H, W] over channels and pixels with a scale per channel."""
    weight, bias = arrays[f"{about['name']}.weight"], arrays[f"{about['name']}.bias"]
    axes: tuple[int, ...] = (1,)
    if about.get("picture"):
        axes, weight, bias = (1, 2, 3), weight[:, None, None], bias[:, None, None]

    def norm(x: Array) -> Array:
        x = x - x.mean(axes, keepdims=True)
        variance = np.square(x).mean(axes, keepdims=True)
        normalised: Array = x / np.sqrt(variance + np.float32(1e-5)) * weight + bias
        return normalised

    return norm


def _conv(about: About, arrays: Mapping[str, Array]) -> Operation:
    """A convolution of pictures [B, C, H, W], with ``stride``, and ``padding`` zeros on each side."""
    weight, bias = arrays[f"{about['name']}.weight"], arrays[f"{about['name']}.bias"]
    outputs, kernel = weight.shape[0], weight.shape[2:]
    matrix, stride, padding = np.ascontiguousarray(weight.reshape(outputs, -1).T), about["stride"], about["padding"]

    def conv(x: Array) -> Array:
        seen = _windows(_padded(x, padding, 0.0), kernel, stride)  # [B, C, H, W, k, k]
        batch, _, height, width = seen.shape[:4]
        columns = seen.transpose(0, 2, 3, 1, 4, 5).reshape(batch * height * width, -1)
        pixels: Array = columns @ matrix + bias
        return pixels.reshape(batch, height, width, outputs).transpose(0, 3, 1, 2)

    return conv


def _max_pool(about: About, arrays: Mapping[str, Array]) -> Operation:
    size, stride, padding = about["size"], about["stride"], about["padding"]
    return lambda x: _windows(_padded(x, padding, -np.inf), (size, size), stride).max((4, 5))


def _padded(x: Array, padding: int, value: float) -> Array:
    around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    return np.pad(x, around, constant_values=value) if padding else x


def _windows(x: Array, kernel: tuple[int, ...], stride: int) -> Array:
    windows: Array = np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))
    return windows[:, :, ::stride, ::stride]


def _max_fields(about: About, arrays: Mapping[str, Array]) -> Operation:
    """The maxima of ``fields`` x ``fields`` parts of a picture, which overlap where its sides do not divide."""
    fields = about["fields"]

    def bounds(size: int) -> list[slice]:
        return [slice(part * size // fields, -(-(part + 1) * size // fields)) for part in range(fields)]

    def pool(x: Array) -> Array:
        rows = np.stack([x[:, :, part].max(2) for part in bounds(x.shape[2])], 2)
        return np.stack([rows[:, :, :, part].max(3) for part in bounds(x.shape[3])], 3)

    return pool


def _mean_pixels(about: About, arrays: Mapping[str, Array]) -> Operation:
    return lambda x: x.mean((2, 3))


def _residual(about: About, arrays: Mapping[str, Array]) -> Operation:
    inner = chain(about["program"], arrays)
    return lambda x: x + inner(x)


def _parts(about: About, arrays: Mapping[str, Array]) -> Operation:
    """Slices of flat observations [B, (S,) N], each through a network of its own; their features one after another."""
    parts = [
        ([slice(*where) for where in part["where"]], tuple(part["shape"]), chain(part["program"], arrays))
        for part in about["parts"]
    ]

    def run(x: Array) -> Array:
        features = []
        for where, shape, steps in parts:
            own = np.concatenate([x[..., each] for each in where], -1)
            features.append(steps(own.reshape(len(x), *shape)))
        return np.concatenate(features, 1)

    return run


def _head(about: About, arrays: Mapping[str, Array]) -> Operation:
    """The expected value of each action, of whatever the head learns of the return."""
    weight, bias = _layer(*linear_head(about, arrays))
    dueling, atoms = about["dueling"], None
    if about["head"] == "atoms":
        options = about["options"]
        atoms = np.linspace(options["v_min"], options["v_max"], int(options["atoms"]), dtype=np.float32)

    def head(x: Array) -> Array:
        q = x @ weight + bias
        if atoms is None:
            return _duel(q) if dueling else q
        logits = q.reshape(len(q), -1, len(atoms))
        return _expected(_duel(logits) if dueling else logits, atoms)

    return head


def linear_head(about: About, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    """Returns the linear layer <float32>[out, in], [out] that gives a head's expected values, of atoms its logits.

    The mean over linear outputs is the output of their mean weights, and the mean over products of the features with
    embeddings is the product with the mean embedding: each is taken once rather than for each observation.
    """
    weight, bias, options = arrays["head.linear.weight"], arrays["head.linear.bias"], about["options"]
    if about["head"] == "quantiles":
        per_action = int(options["quantiles"])
        return weight.reshape(-1, per_action, weight.shape[1]).mean(1), bias.reshape(-1, per_action).mean(1)
    if about["head"] == "implicit_quantiles":
        count, cosines = int(options["fractions"]), int(options["cosines"])
        midpoints = (np.arange(count, dtype=np.float32) + np.float32(0.5)) / np.float32(count)
        basis = np.cos(np.float32(np.pi) * np.arange(cosines, dtype=np.float32) * midpoints[:, None])
        embedded = basis @ arrays["head.embedding.weight"].T + arrays["head.embedding.bias"]
        return weight * np.maximum(embedded, 0).mean(0), bias
    return weight, bias


def _duel(x: Array) -> Array:
    """Combines a state's value and advantages <float32>[B, 1 + A, ...] to ``v + a - mean(a)`` <float32>[B, A, ...]."""
    value, advantage = x[:, :1], x[:, 1:]
    dueling: Array = value + advantage - advantage.mean(1, keepdims=True)
    return dueling


def _expected(logits: Array, atoms: Array) -> Array:
    """Returns the means <float32>[B, A] of the distributions that logits <float32>[B, A, N] give the atoms."""
    weight = np.exp(logits - logits.max(2, keepdims=True))
    mean: Array = (weight @ atoms) / weight.sum(2)
    return mean


_OPERATIONS: dict[str, Callable[[About, Mapping[str, Array]], Operation]] = {
    "scale": _scale,
    "flatten": _flatten,
    "picture": _picture,
    "relu": _relu,
    "linear": _linear,
    "norm": _norm,
    "conv": _conv,
    "max_pool": _max_pool,
    "max_fields": _max_fields,
    "mean_pixels": _mean_pixels,
    "residual": _residual,
    "parts": _parts,
    "head": _head,
}


# -- an export


def load(folder: str | Path = Path(__file__).parent) -> Policy:
    """Returns the policy that ``qherd export --format numpy`` has written into a folder; the default is this file's.

    Raises:
        ValueError: there is none, or it is damaged, or of another format.
    """
    path = Path(folder) / FILE
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays.pop(ABOUT).tobytes())
        if about["format"] != FORMAT:
            raise ValueError(f"it has format {about['format']!r:.40}, and this reads {FORMAT}")
        return Policy({**about, "core": about["program"]}, recurrent(about["program"], arrays))
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {FILE}: give the folder of qherd export --format numpy") from None
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as e:
        raise ValueError(f"{path} is no policy that qherd has exported, or is damaged: {e}; export it again") from None
