"""The environments that evaluations are played in: as training makes and treats them, without its limit."""

from __future__ import annotations

import logging
from collections.abc import Callable

from actors.closing import close_all
from actors.config import EnvConfig
from actors.contract import Env
from actors.envs import Where, make_env
from actors.lanes import LaneError
from actors.supervision.restarts import CrashLoopError, Restarts, cause

LOG = logging.getLogger("qherd.evaluator")
RESTARTS = 5
"""How often the environment of one player may raise and be made anew within ten minutes."""


class Players:
    """Environments that episodes are played in; one that raises is made anew, within a budget. A context manager that
    closes them."""

    def __init__(self, config: EnvConfig, count: int, *, render_mode: str | None = None) -> None:
        """Makes ``count`` environments."""
        self._config, self._count, self._render_mode = config, count, render_mode
        self.envs: list[Env] = []
        self.make_anew()

    def make_anew(self) -> None:
        """Closes all environments and makes others, with budgets of their own."""
        self.close()
        self._remade: list[str] = []
        named = (f"environment {index} of {self._config.id}" for index in range(self._count))
        self._budgets = [Restarts(name, RESTARTS, allowed_by="qherd") for name in named]
        try:
            for index in range(self._count):
                self.envs.append(self._make(index))
        except BaseException:
            self.close()
            raise

    def _make(self, index: int) -> Env:
        where = Where(-1, index, index)
        return make_env(self._config, training=False, render_mode=self._render_mode, where=where)

    def replace(self, index: int, error: Exception) -> Env:
        """Makes an environment in place of one that raised, and returns it.

        Raises:
            LaneError: it is beyond its budget, or could not be made.
        """
        try:
            self._budgets[index].died(error)
        except CrashLoopError as crash_loop:
            raise LaneError(str(crash_loop)) from error
        LOG.warning("environment %d raised and is made anew", index, exc_info=error)
        close_all([self.envs[index]])
        try:
            self.envs[index] = self._make(index)
        except Exception as again:
            raise LaneError(
                f"environment {index} of {self._config.id} could not be made anew: {cause(again)}; it had to be "
                f"because of {cause(error)}"
            ) from again
        self._remade.append(f"environment {index}: {cause(error)}")
        return self.envs[index]

    def pop_remade(self) -> tuple[str, ...]:
        """Returns a line for each environment that was made anew since the last call."""
        remade, self._remade = tuple(self._remade), []
        return remade

    def close(self) -> list[str]:
        """Closes them all; returns a line for each that did not let itself be closed."""
        envs, self.envs = self.envs, []
        return close_all(envs)

    def __enter__(self) -> Players:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Replace = Callable[[int, Exception], Env]
"""What to play in instead of the environment of that index, which raised."""


def no_other(index: int, error: Exception) -> Env:
    """Lets the error of an environment end what is played."""
    del index
    raise error
