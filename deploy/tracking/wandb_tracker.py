"""Weights & Biases."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy.tracking.tracker import PROJECT, Ending, Record, Refused, missing

INIT_S = 30.0
KEY_LENGTH = 40
"""wandb.init takes no shorter key; by then the run is under way."""


class WandbTracker:
    """A run of W&B, whose id is the record's key. Its own files are in ``runs/NAME/wandb``."""

    def check(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError as error:
            raise Refused(missing("wandb", error)) from None
        settings = wandb.setup().settings
        if settings.mode in ("online", "shared") and not (
            settings.api_key or settings.identity_token_file or _in_netrc(settings.base_url)
        ):
            raise Refused(
                "W&B has no API key here: run wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline to record into "
                "the run's folder and wandb sync later"
            )
        if settings.mode in ("online", "shared") and settings.api_key and len(settings.api_key) < KEY_LENGTH:
            raise Refused(
                f"W&B's API key here has {len(settings.api_key)} characters, and its keys have {KEY_LENGTH} or more: "
                "run wandb login, or set WANDB_API_KEY, to the whole key"
            )

    def begin(self, record: Record) -> str:
        import wandb

        # artifacts of an offline run wait there for wandb sync; the default is in the user's home
        os.environ.setdefault("WANDB_DATA_DIR", str(Path(record.folder, "wandb", "data")))
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            x_disable_stats=True,  # of this process, which is not the run
            init_timeout=INIT_S,
        )
        self._run = wandb.init(
            project=record.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            id=record.key,
            resume="allow",
            name=record.run,
            dir=record.folder,
            settings=settings,
        )
        config: Any = self._run.config
        config.update({"env_id": record.env, **record.config}, allow_val_change=True)
        self._run.define_metric("env_steps")
        self._run.define_metric("*", step_metric="env_steps")
        self._artifact = f"{record.run}-policy"
        return f"offline, in {Path(self._run.dir).parent}" if self._run.offline else str(self._run.url)

    def log(self, row: Mapping[str, float]) -> None:
        self._run.log(dict(row))

    def end(self, ending: Ending) -> None:
        import wandb

        self._run.summary.update({"summary": ending.summary})
        if ending.policy:
            artifact = wandb.Artifact(self._artifact, type="model", metadata=_scores(ending.summary))
            for name, path in ending.policy.items():
                artifact.add_file(path, name=name)
            self._run.log_artifact(artifact, aliases=["best"])
        self._run.finish(exit_code=int(ending.ended == "failed"))
        wandb.teardown()  # ends W&B's own process


def _scores(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name.startswith(("env", "eval", "holdout", "best"))}


def _in_netrc(url: str) -> bool:
    """Returns whether the file that ``wandb login`` writes has the server."""
    path = os.environ.get("NETRC") or Path("~/.netrc").expanduser()
    try:
        return netrc.netrc(path).authenticators(urlsplit(url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
