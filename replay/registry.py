"""Parts by name: one of a registry, or a user's own by ``module:Name``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def load(registry: Mapping[str, str], name: str, what: str) -> Any:
    """Returns the object that a registry has by this name, or a user's own by ``module:Name``.

    Raises:
        ValueError: an unknown name, or a module that cannot be imported or has no such name.
    """
    module, colon, attribute = registry.get(name, name).partition(":")
    if not colon:
        raise ValueError(f"{what} {name!r} is unknown: use {', '.join(registry)}, or module:Name of your own")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {name!r} cannot be imported: {error}; give its folder with --env.path") from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything, and may call sys.exit()
        raise ValueError(f"{what} {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def make(name: str, what: str, build: Callable[[], T]) -> T:
    """Returns what ``build`` makes of the part of this name.

    Raises:
        ValueError: whatever a user's own part (``module:Name``) raises.
    """
    if ":" not in name:
        return build()
    try:
        return build()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what} {name!r} cannot be made: {type(error).__name__}: {error}") from error
