"""An object that an exception left half-changed is not used again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
B = TypeVar("B", bound="Breakable")


class Breakable:
    """An object that is broken once one of its ``@breakable`` methods raised: each of them raises that error again."""

    _broken_by: BaseException | None = None

    def check_unbroken(self) -> None:
        """Raises the error that broke this object, if one did."""
        if isinstance(self._broken_by, Exception):
            raise self._broken_by
        if self._broken_by is not None:  # Ctrl-C or an exit: raised again it would end what calls now
            raise RuntimeError(
                f"this {type(self).__name__} was interrupted half-way ({self._broken_by!r}): make a new one"
            ) from self._broken_by


def breakable(method: Callable[Concatenate[B, P], R]) -> Callable[Concatenate[B, P], R]:
    """Makes a method that raises break its object. For methods that change more than one thing."""

    @functools.wraps(method)
    def call(self: B, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.check_unbroken()
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:
            self._broken_by = error
            raise

    return call
