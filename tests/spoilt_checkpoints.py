"""Checkpoints that are whole by their sizes and digests, and hold what no learner wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from learner.checkpoint import Name, names, pack, read, write
from replay.state import State

Change = Callable[[dict[str, Any], dict[str, dict[str, Any]]], None]
"""What is done to the values and the arrays of all parts."""


def _at(place: Any, *path: str) -> Any:
    for name in path:
        place = place[name]
    return place


def value(part: str, *path: str, to: Any) -> Change:
    """Changes one of a part's values."""

    def change(values: dict[str, Any], arrays: dict[str, dict[str, Any]]) -> None:
        del arrays
        _at(values[part], *path[:-1])[path[-1]] = to

    return change


def array(part: str, name: str, to: Any) -> Change:
    """Changes one of a part's arrays."""

    def change(values: dict[str, Any], arrays: dict[str, dict[str, Any]]) -> None:
        del values
        arrays[part][name] = to(arrays[part][name])

    return change


def without(part: str, name: str = "") -> Change:
    """Takes a part, or one of its arrays or values, away."""

    def change(values: dict[str, Any], arrays: dict[str, dict[str, Any]]) -> None:
        if not name:
            del values[part]
        else:
            (arrays if name in arrays[part] else values)[part].pop(name)

    return change


def put(index: Any, to: Any) -> Callable[[Any], Any]:
    """Another element in an array."""

    def changed(old: Any) -> Any:
        new = old.copy()
        new[index] = to
        return new

    return changed


def rewrite(folder: Path, change: Change, source: Name | None = None, name: Name | None = None) -> Name:
    """Writes a checkpoint, the newest or ``source``, anew with a change in it, sizes and digests and all, in its place
    or under another name; returns the name."""
    source = source or names(folder)[0]
    parts = read(folder, source)
    values = {part: json.loads(json.dumps(state.values)) for part, state in parts.items()}
    arrays = {part: dict(state.arrays) for part, state in parts.items()}
    change(values, arrays)
    if name is None:
        shutil.rmtree(folder / str(source))
    write(folder, name or source, pack({part: State(values[part], arrays[part]) for part in values}))
    return name or source
