"""Ray for a run: one of its own on this machine's loopback, or a cluster that is there."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import sysconfig
import threading
import traceback
from pathlib import Path

from deploy.cluster.ray_processes import end_processes
from deploy.config.errors import ConfigError, RunFailedError
from deploy.config.models import RunConfig
from deploy.process import arithmetic
from deploy.process.host import usable_cores
from deploy.server.private_dir import PrivateDir

_TLS_FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
_ANOTHER_RAYS = (
    *("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_REDIS_ADDRESS", "RAY_REDIS_USERNAME", "RAY_REDIS_PASSWORD"),
    *("RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS", *_TLS_FILES),
    *("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_RUNTIME_ENV", "RAY_RUNTIME_ENV_HOOK", "RAY_OVERRIDE_JOB_RUNTIME_ENV"),
    *("RAY_OVERRIDE_RESOURCES", "RAY_OVERRIDE_LABELS", "RAY_OVERRIDE_NODE_ID_FOR_TESTING", "RAY_TMPDIR"),
    *("RAY_object_spilling_config", "RAY_OBJECT_SPILLING_DIRECTORY"),
)
"""What KubeRay, ``ray job submit`` and users export for a cluster of theirs: where it is, how to get in, what its jobs
and nodes have. The mode local starts a Ray of its own, which none of this is about."""


SHUTDOWN_S = 4.0
"""How long a Ray of this machine's own may take to be shut down."""


def start_ray(config: RunConfig, cleanup: contextlib.ExitStack) -> None:
    """Starts this machine's own Ray (``local``), or joins the cluster; ``cleanup`` ends it.

    Raises:
        ConfigError: the cluster cannot be used, or there is no folder for Ray's sockets.
        RunFailedError: Ray was imported before, or this machine's own has not started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    arithmetic.pin()  # this machine's workers inherit it
    os.environ.setdefault("RAY_worker_niceness", "0")
    token = secrets.token_hex(32)
    if config.mode == "local":
        # Ray reads this when it is imported: "0" has every part of it listen on loopback only.
        if "ray" in sys.modules:
            raise RunFailedError("ray was imported before the run; its loopback and token settings are read at import")
        for name in _ANOTHER_RAYS:
            os.environ.pop(name, None)
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", token
        # no metrics of an autoscaler that has nothing to scale: a fixed port, in some versions on all addresses
        os.environ["AUTOSCALER_METRIC_PORT"] = "-1"
    _make_paths_absolute()
    # Ray puts the driver's working directory first on the workers' sys.path. Python's own library is there anyway, on
    # every node, and only who may change Python may write there.
    with contextlib.chdir(sysconfig.get_path("stdlib")):
        if config.mode == "cluster":
            _join_cluster(str(config.ray.address), cleanup)
        else:
            _start_own(config, cleanup, token)


def _start_own(config: RunConfig, cleanup: contextlib.ExitStack, token: str) -> None:
    """``token``: what all that it starts has among its variables."""
    import ray

    home = PrivateDir()
    cleanup.callback(home.remove)
    cleanup.callback(end_processes, token, home.path)
    cleanup.callback(_shut_down, token, home.path)  # before its folder goes
    try:
        ray.init(
            address="local",
            num_cpus=_counted_cpus(config),
            include_dashboard=False,
            object_store_memory=256 << 20,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(home.path / "ray"),  # Ray opens it, and all that it makes below, to everybody
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:  # Ray raises Exception itself where a part of it does not answer in time
        raise RunFailedError(
            f"Ray has not started on this machine: {_first_line(error)}; is it very busy, or short of memory, of "
            f"processes (ulimit -u) or of room in {home.path.parent}? Try again; qherd doctor looks at the machine",
            traceback.format_exc(),
        ) from error
    home.check()


def _shut_down(token: str, folder: Path) -> None:
    """Shuts Ray down. Its processes are killed where that takes too long: it waits for a raylet without end."""
    import ray

    killing = threading.Timer(SHUTDOWN_S, end_processes, (token, folder, 0.0))
    killing.daemon = True
    killing.start()
    try:
        ray.shutdown()
    finally:
        killing.cancel()


def _counted_cpus(config: RunConfig) -> int | None:
    """Returns how many CPUs this machine's own Ray counts; None: all that there are. It starts a worker for each before
    any is asked for, so it counts no more than the run's actors, evaluator and learner use; several runs at once on a
    big machine would have hundreds of idle ones."""
    if config.actors.cpus or config.learner.cpus:
        return None
    return max(1, min(int(usable_cores()), config.actors.count + 2))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _make_paths_absolute() -> None:
    """Makes paths in variables absolute: Ray and its workers read them in another folder."""
    for name in ("PYTHONPATH", "TMPDIR", "RAY_AUTH_TOKEN_PATH", *_TLS_FILES):
        if given := os.environ.get(name):
            paths = given.split(os.pathsep) if name == "PYTHONPATH" else [given]
            os.environ[name] = os.pathsep.join(str(Path(path).absolute()) for path in paths)


def _join_cluster(address: str, cleanup: contextlib.ExitStack) -> None:
    import ray

    cleanup.callback(ray.shutdown)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"the Ray cluster at {address} cannot be used: {_first_line(error)}; is the address right, and are "
            "RAY_AUTH_MODE and RAY_AUTH_TOKEN the cluster's?"
        ) from None
