"""What pydantic found in a configuration, in words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import ValidationError

from deploy.config.models import RENAMED, option_paths


def explain(error: ValidationError, where: str, section: str = "") -> str:
    """Returns pydantic's findings on the options of a section, a line each, with the nearest name for one that is
    unknown."""
    lines = []
    for finding in error.errors(include_url=False):
        path = ".".join(map(str, ((section,) if section else ()) + finding["loc"]))
        if finding["type"] == "extra_forbidden":
            lines.append(f"{path}: {_unknown(path)}")
        else:
            # redis may hold a password; what is wrong with a whole section has its values in the message
            hidden = path.startswith("redis") or isinstance(finding["input"], Mapping)
            shown = "" if hidden else f", got {finding['input']!r}"
            lines.append(f"{path}: {finding['msg'].removeprefix('Value error, ')}{shown}")
    return f"configuration ({where}):\n  " + "\n  ".join(lines)


def _unknown(path: str) -> str:
    """Returns what is wrong with an option that there is not, and its name of now, or the nearest one."""
    if path in RENAMED:
        return f"the option is called {RENAMED[path]} now"
    near = difflib.get_close_matches(path, list(option_paths()), n=1, cutoff=0.5)
    return f"there is no such option{f'; did you mean {near[0]}?' if near else ''}"
