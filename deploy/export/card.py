"""The README.md of an exported policy, as model hubs read it: metadata in front, then what it is and how it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy import __version__
from deploy.config.models import RunConfig, dump
from deploy.config.numbers import write_yaml
from deploy.export.exported import Exported
from deploy.export.formats import Format
from deploy.run_directory.files import replace_file
from learner.networks.portable import Memory

CONFIG = "config.yaml"
LEFT_OUT = ("run", "runs_dir", "redis", "ray", "metrics")
"""Options that are of a machine, not of what was learned."""


def write_card(
    folder: Path, config: RunConfig, exported: Exported, manifest: Mapping[str, Any], kind: Format, video: str | None
) -> None:
    """Writes README.md and the configuration that the policy was trained with. ``manifest``: best.json; ``video``: the
    name of a file in the folder."""
    replace_file(folder / CONFIG, write_yaml(_portable(config)).encode())
    front = write_yaml(_metadata(config, manifest))
    replace_file(folder / "README.md", f"---\n{front}---\n\n{_text(config, exported, manifest, kind, video)}".encode())


def _portable(config: RunConfig) -> dict[str, Any]:
    """Returns the options without folders and addresses of this machine."""
    values = {name: value for name, value in dump(config).items() if name not in LEFT_OUT}
    values["env"] = {name: value for name, value in values["env"].items() if name != "path"}
    values["checkpoint"] = {name: value for name, value in values["checkpoint"].items() if name != "dir"}
    values["replay"] = {name: value for name, value in values["replay"].items() if name != "memmap_dir"}
    return values


def shown(manifest: Mapping[str, Any]) -> tuple[float, float, int, bool]:
    """Returns mean, standard deviation and episodes of the policy's evaluation, and whether it is the hold-out: that
    one if there is one, else the one that the policy was chosen by, which favours it."""
    held = "holdout_mean" in manifest
    names = ("holdout_mean", "holdout_std", "holdout_episodes") if held else ("mean", "std", "episodes")
    mean, std, episodes = (manifest[name] for name in names)
    return float(mean), float(std), int(episodes), held


def _metadata(config: RunConfig, manifest: Mapping[str, Any]) -> dict[str, Any]:
    mean, std, _, _ = shown(manifest)
    env = config.env.id
    metric = {"type": "mean_reward", "name": "mean_reward", "value": f"{mean:.2f} +/- {std:.2f}", "verified": False}
    result = {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"type": env, "name": env},
        "metrics": [metric],
    }
    return {
        "library_name": "qherd",
        "tags": [env, "reinforcement-learning", "deep-reinforcement-learning", config.learner.algorithm],
        "model-index": [{"name": config.learner.algorithm, "results": [result]}],
    }


def _text(config: RunConfig, exported: Exported, manifest: Mapping[str, Any], kind: Format, video: str | None) -> str:
    mean, std, episodes, held = shown(manifest)
    about, env = exported.about, config.env
    how = (
        "a hold-out: episodes that had no part in its selection"
        if held
        else "the evaluation that it was selected by, which favours it"
    )
    own = " --env.path FOLDER" if ":" in env.id else ""
    given = about["network_input"]
    parts = [
        f"# {config.learner.algorithm} on {env.id}",
        f"The best policy of a qherd run, of update {manifest['updates']:,}.",
        f"![An episode]({video})" if video else "",
        "## Evaluation",
        f"Greedy: {mean:.2f} ± {std:.2f} (mean and standard deviation) over {episodes} episodes; {how}.",
        "## How it is used",
        kind.use(about["masked"], list(Memory.of(about["core"]).widths)),
        "| | |\n|---|---|\n"
        f"| the environment's observations | `{about['observation']['space']}` |\n"
        f"| what the network is given | `<{given['dtype']}>{['B', *given['shape']]}`, divided by {given['divisor']} in "
        f"it; stacked frames: {about['stack']} |\n"
        f"| actions | `{about['actions']['space']}`, numbered from 0 to {about['actions']['n'] - 1} |\n"
        f"| action masks | {'obeyed' if about['masked'] else 'none'} |",
        f"The environment: `{env.id}` with `{json.dumps(about['env']['kwargs'])}`.",
        "## How it was trained",
        f"With qherd {__version__}, by\n\n```sh\nqherd train --config {CONFIG}{own}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
