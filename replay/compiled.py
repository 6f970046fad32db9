"""Compiling loops over arrays, by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles for these types. Numba keeps what it has compiled beside the file or in the user's home; where neither
    can be written, each process compiles anew, which takes a second."""

    def compile_it(function: Callable[..., Any]) -> Callable[..., Any]:
        from numba import njit  # a third of a second, which only those pay who compile

        try:
            return njit(signature, cache=True)(function)
        except (RuntimeError, OSError):
            return njit(signature)(function)

    return compile_it
