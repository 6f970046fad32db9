"""Which run a folder holds: the name in its keys stays with it, whatever the folder is called and wherever it is.

A folder that was renamed or moved, or that is reached through a link, is the run itself. One that was copied while its
original is still where it was is another run, which counts its own fences and claims for itself; where a server is
shared, in mode cluster, under a name of its own. Where the server goes with the folder the keys in it keep their name.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.config.models import RUN_NAME, RunConfig
from replay.foreign import read_object

COUNTS_BYTES = 1 << 20
"""No fences.json is bigger."""


def unique_name(env_id: str) -> str:
    """Returns the environment's name, the time and four random digits: at most 64 characters that a run's name may
    have."""
    env = re.sub(r"[^A-Za-z0-9._-]+", "-", env_id.rpartition(":")[2]).lower().lstrip("._-")
    return f"{env[:40] or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def new_nonce() -> str:
    """Returns what a run claims its name on a server with."""
    return secrets.token_hex(16)


def identity_for(counts: Mapping[str, Any], path: Path, run: str, config: RunConfig) -> dict[str, Any]:
    """Returns what fences.json has from now on beside its counts, for the folder ``path`` in which a run called ``run``
    is found."""
    now = {"run": run, "path": str(path.resolve()), "nonce": counts["nonce"]}
    if _original(counts, path) is None:
        return now
    if config.mode == "cluster":
        wanted = path.resolve().name
        now["run"] = wanted if re.fullmatch(RUN_NAME, wanted) else unique_name(config.env.id)
    return {**now, "nonce": new_nonce()}


def _original(counts: Mapping[str, Any], path: Path) -> Path | None:
    """Returns the folder that ``path`` is a copy of; None where it is none, or where its original cannot be seen."""
    original = Path(str(counts.get("path") or path))
    try:
        theirs = read_object(original / "fences.json", COUNTS_BYTES)
        same = theirs["nonce"] == counts["nonce"] and not original.samefile(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return original if same else None
