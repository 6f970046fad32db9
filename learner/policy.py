"""A run's policy for any program: from the environment's own observations to its actions, without Ray or a server."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from learner.checkpoint import newest_policy
from learner.networks import NetworkConfig, NetworkSpec, encoder_of, parameter_shapes
from learner.networks.portable import FILE, FORMAT, Policy, Recurrent, recurrent
from learner.networks.program import core_of, program_of
from learner.policy_files import PolicyError, read_best
from replay.chunk import Schema
from replay.foreign import Unreadable, read_object

DESCRIPTION = "policy.json"
"""In a run's directory: what its policy's network is given, and what its actions are."""
MAX_BYTES = 64 << 20
"""No description is bigger: each of a million one-hot numbers has some."""


class Description(NamedTuple):
    """What policy.json holds: the environment (``id``, ``kwargs``, ``path``), what ``Checked`` is ``about``, the frames
    that the policy stacks, its network, and where the run's checkpoints are; None: in its own directory."""

    env: dict[str, Any]
    about: dict[str, Any]
    stack: int
    schema: Schema
    spec: NetworkSpec
    checkpoints: str | None = None

    def dump(self) -> dict[str, Any]:
        """Returns it as plain values."""
        config, options = self.spec.config.model_dump(mode="json"), dict(self.spec.options)
        reward = {"reward_scale": self.spec.reward_scale, "reward_clip": self.spec.reward_clip}
        network = {"config": config, "head": self.spec.head, "options": options, **reward}
        return {"format": FORMAT, **self._asdict(), "schema": asdict(self.schema), "spec": network}

    @classmethod
    def read(cls, path: Path) -> Description:
        """Returns what a file holds. Raises PolicyError where it is damaged or of another format."""
        try:
            values = read_object(path, MAX_BYTES)
        except Unreadable as error:
            raise PolicyError(str(error)) from error
        if values.get("format") != FORMAT:
            raise PolicyError(
                f"{path} has format {values.get('format')!r:.40}, this qherd reads {FORMAT}: load it with the "
                "run's own qherd, or have qherd resume write it anew"
            )
        try:
            given = {name: values[name] for name in cls._fields}
            spec = given["spec"]
            config = NetworkConfig.model_validate(spec["config"])
            reward = float(spec.get("reward_scale", 1.0)), bool(spec.get("reward_clip", False))
            given["spec"] = NetworkSpec(config, spec["head"], spec["options"], *reward)
            given["schema"] = TypeAdapter(Schema).validate_python(given["schema"])
            return cls(**given)
        except (ValidationError, ValueError, LookupError, TypeError) as error:
            raise PolicyError(
                f"{path} is damaged: {type(error).__name__}: {error}; qherd resume writes it anew"
            ) from error


def load_policy(run: str | Path, which: Literal["best", "final"] = "best") -> Policy:
    """Returns a run's policy, which acts on observations as the environment itself returns them; see ``Policy.act``.

    A network with the encoder ``mlp`` acts in numpy, all others in torch, as in the run's own evaluations. One with
    parts of the user's own imports them, from the folder that policy.json names too: load those from where you trust.

    Args:
        run: the run's directory, also of one that is at work.
        which: ``best``, the policy that was evaluated best, or ``final``, the averaged one in the newest checkpoint.

    Raises:
        PolicyError, CheckpointError: there is no such run, it has no such policy yet, or a file is damaged; the text
            has the remedy.
    """
    if which not in ("best", "final"):
        raise PolicyError(f"which is {which!r}; it has to be 'best' or 'final'")
    folder = Path(run).absolute()
    found = description_of(folder)
    own = folder / "checkpoints"
    if which == "best":
        arrays, _ = read_best(own)
    else:
        arrays, _ = newest_policy(own if found.checkpoints is None else Path(found.checkpoints))
    _find_own_parts(found, folder)
    check_weights(found.spec, found.schema, arrays)
    values = values_of(found, arrays)
    try:
        core = core_of(found.spec, found.schema.num_actions)
        return Policy({**found.about, "stack": found.stack, "env": found.env, "core": core}, values)
    except (ValueError, LookupError, TypeError) as error:
        raise PolicyError(f"{folder / DESCRIPTION} is damaged: {error!r:.200}; qherd resume writes it anew") from error


def description_of(folder: Path) -> Description:
    """Returns what a run's policy.json holds. Raises PolicyError where it cannot be read."""
    path = folder / DESCRIPTION
    if path.exists() or path.is_symlink():
        return Description.read(path)
    if (folder / FILE).exists():
        raise PolicyError(f"{folder} is an exported policy, no run: use load() of the policy.py in it")
    if (folder / "config.yaml").exists():
        raise PolicyError(f"{folder} has no {DESCRIPTION}: qherd resume writes it, where an older qherd began the run")
    raise PolicyError(f"{folder} is no run: give its directory, such as runs/NAME")


def check_weights(spec: NetworkSpec, schema: Schema, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raises PolicyError where the arrays are not the parameters of this network."""
    shapes = parameter_shapes(spec, schema)
    given = {name: array.shape for name, array in arrays.items()}
    if shapes != given:
        name = min(name for name, _ in set(shapes.items()) ^ set(given.items()))
        raise PolicyError(
            f"the weights are of another network than the run's: {name} has the shape {given.get(name)}, and "
            f"{shapes.get(name)} is wanted; put the run's own files back, or export and evaluate another run"
        )


def _find_own_parts(found: Description, folder: Path) -> None:
    """Has a user's own encoder or head found in the environment's folder, as in the run. Raises PolicyError where that
    is within the policy's own ``folder``: what came with weights is not run."""
    path = found.env.get("path")
    if path is None or ":" not in found.spec.config.encoder + found.spec.head:
        return
    where = Path(path).resolve()
    if any(Path(known).resolve() == where for known in sys.path):
        return
    if where.is_relative_to(folder.resolve()):
        raise PolicyError(
            f"{folder / DESCRIPTION} names {path} as the folder of its network's code, which is within the policy's "
            "own: nothing is run that comes with a policy; where you trust it, put its folder on PYTHONPATH"
        )
    sys.path.append(path)


def values_of(found: Description, arrays: Mapping[str, npt.NDArray[Any]]) -> Recurrent:
    """Returns the function from what the network is given and the lanes' recurrent state to Q values and the state
    after."""
    program = program_of(found.spec, found.schema)
    if program is not None and encoder_of(found.spec.config, found.schema) == "mlp":
        return recurrent(program, arrays)
    from learner.networks.torch_policy import TorchPolicy

    policy = TorchPolicy(found.spec, found.schema)
    policy.load(arrays)
    return policy
