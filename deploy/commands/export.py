"""``qherd export``: a run's best policy in the format of other programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from pydantic import BaseModel

from actors.envs import about_of, schema_of
from actors.errors import EnvError
from actors.policy import make_policy
from actors.seeds import PLAYBACK
from deploy.config.cli_types import as_written
from deploy.playback.film import film
from deploy.playback.players import Moved, players_of
from deploy.process.isolation import environments_apart
from deploy.run_directory.best_policy import BEST
from deploy.run_directory.description import policy_description
from deploy.run_directory.directory import RunDirectory
from learner.policy_files import Arrays

if TYPE_CHECKING:
    from deploy.export.exported import Exported
    from deploy.export.formats import Format
    from deploy.export.observed import Observed

COMPARED = 1000
"""Observations of the environment that the written files and the learner's network are compared on."""
VIDEO = "episode.gif"


class Export(BaseModel):
    """Write a run's best policy for other programs, into a new folder.

    What was written is loaded by its own runtime and compared with the learner's network on 1,000 observations of the
    environment, before it is called done; the folder is there whole or not at all.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    to: Path
    """The folder to make."""
    format: Literal["onnx", "torch", "numpy"] = "numpy"
    """onnx: policy.onnx, with the extra onnx; torch: policy.pt2, of torch.export; numpy: policy.npz and a policy.py
    that needs nothing but numpy and takes observations as the environment returns them."""
    card: bool = False
    """Add a README.md with the metadata of model hubs, the evaluation and a GIF, and the configuration."""
    env: Moved = Moved()


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return export(tyro.cli(Export, args=arguments, prog="qherd export", registry=as_written()))


def export(call: Export) -> int:
    """Writes the policy and prints what was written; returns the exit code.

    Raises:
        ConfigError: the folder exists already, a package is missing, or the format is not for this network.
        RunDirError, PolicyError: there is no best policy, or it is damaged.
        RunFailedError: what was written computes something else.
    """
    import torch

    from deploy.export.folder import check_new, written_whole
    from deploy.export.formats import FORMATS, compare

    directory, kind = RunDirectory.open(call.run), FORMATS[call.format]
    check_new(call.to)
    kind.check()
    torch.set_num_threads(directory.config.learner.threads)  # a small network is slower with more
    arrays, manifest = directory.best.load(BEST)  # once: a run at work may have another one by the end
    with environments_apart(), written_whole(call.to) as folder:
        exported, observed = _observed(directory, arrays, int(manifest["updates"]), kind, call.env.path)
        kind.write(folder, exported, observed)
        difference = compare(exported, observed, *kind.values(folder, exported, observed))
        if call.card:
            _write_card(folder, directory, exported, manifest, kind, call.env.path)
        files = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(
        f"{call.to}: {files}; loaded again and compared with the learner's network on {len(observed.raw):,} "
        f"observations: greatest difference of a Q value {difference:.2g}"
    )
    return 0


def _observed(
    directory: RunDirectory, arrays: Arrays, updates: int, kind: Format, env_path: Path | None
) -> tuple[Exported, Observed]:
    """Returns the policy of these arrays, and observations that it meets."""
    from deploy.export.exported import Exported
    from deploy.export.observed import observe
    from learner.policy import check_weights

    config = directory.config
    with players_of(directory, 1, env_path) as players:
        (env,) = players.envs
        description = policy_description(config, directory, schema_of(env), about_of(env))
        check_weights(description.spec, description.schema, arrays)
        exported = Exported.of(description, arrays, updates)
        kind.check(exported)
        policy = make_policy(description.spec, description.schema)
        policy.load(arrays)
        observed = observe(env, policy, COMPARED, PLAYBACK, config.eval.max_episode_steps)
    return exported, observed


def _write_card(
    folder: Path,
    directory: RunDirectory,
    exported: Exported,
    manifest: Mapping[str, Any],
    kind: Format,
    env_path: Path | None,
) -> None:
    """Writes the card, with a GIF where the environment renders one; on stderr why there is none."""
    from deploy.export.card import write_card

    video = None
    try:
        film(directory, folder / VIDEO, PLAYBACK, env_path)
        video = VIDEO
    except EnvError as error:
        print(f"qherd: the card has no GIF: {error}", file=sys.stderr)
    write_card(folder, directory.config, exported, manifest, kind, video)
