"""Run directories with a policy, as if it had been trained: a network of random weights that was evaluated."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from actors.envs import about_of, make_env, schema_of
from deploy.config.models import RunConfig, env_of
from deploy.planning.preconditions import resolved
from deploy.run_directory.description import describe_policy
from deploy.run_directory.directory import RunDirectory
from learner.learner import host_arrays
from learner.networks import build_network
from learner.weights import pack

HERE = Path(__file__).parent
EVALUATED = {"version": 1, "updates": 7, "episodes": 5, "mean": 2.0, "std": 1.0, "lower": 1.5, "solved": False}


def a_run(folder: Path, env_id: str, seed: int = 3, env: dict[str, Any] | None = None, **learner: Any) -> Path:
    """The directory of a run with a best policy; an environment of the tests is found. ``learner``: its options."""
    own = {"id": env_id, "path": HERE if ":" in env_id else None, "action_mask": "obey" if "Mask" in env_id else "auto"}
    given = {"run": "r", "runs_dir": folder, "env": own | (env or {}), "learner": learner}
    config = RunConfig.model_validate(given)
    made = make_env(env_of(config), training=False)
    schema, about = schema_of(made), about_of(made)
    made.close()
    config = resolved(config, schema)
    torch.manual_seed(seed)
    weights = host_arrays(build_network(config.learner.network_spec, schema))
    with contextlib.closing(RunDirectory.create(config)) as directory:
        describe_policy(config, directory, schema, about)
        directory.best.save(pack(1, 7, 0, weights), EVALUATED | {"threshold": None, "rank_bound": 0.0})
    return folder / "r"
