"""Ray for a run: one of its own on this machine's loopback, or a cluster that is there."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy import arithmetic
from deploy.config import ConfigError, RunConfig
from deploy.session import RunFailedError
from deploy.valkey import PrivateDir


def start_ray(config: RunConfig, cleanup: contextlib.ExitStack) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    arithmetic.pin()  # this machine's workers inherit it
    os.environ.setdefault("RAY_worker_niceness", "0")
    if config.mode == "local":
        # Ray reads this when it is imported: "0" has every part of it listen on loopback only.
        if "ray" in sys.modules:
            raise RunFailedError("ray was imported before the run; its loopback and token settings are read at import")
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    if token := os.environ.get("RAY_AUTH_TOKEN_PATH"):  # Ray reads it in another folder
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(Path(token).absolute())
    import ray

    home = PrivateDir()
    cleanup.callback(home.remove)
    cleanup.callback(ray.shutdown)
    folder = home.path
    (folder / "empty").mkdir()
    # Ray puts the driver's working directory first on the workers' sys.path: give it one without packages.
    with contextlib.chdir(folder / "empty"), _own_signal_handlers():
        if config.mode == "cluster":
            _join_cluster(str(config.ray.address))
        else:
            ray.init(
                include_dashboard=False,
                object_store_memory=256 << 20,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(folder),
                _node_ip_address="127.0.0.1",
            )


def _join_cluster(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"the Ray cluster at {address} cannot be used: {reason}; is the address right, and are RAY_AUTH_MODE and "
            "RAY_AUTH_TOKEN the cluster's?"
        ) from None


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep our handlers of SIGINT and SIGTERM where ray.init installs its own, which end the process by SIGABRT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
