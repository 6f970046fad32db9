"""Checks of this machine: versions, ports, disk, open files, cores, GPU and shared memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from deploy.config.models import RunConfig
from deploy.diagnosis.checks.check import Check
from deploy.planning.memory import (
    megabytes,
)
from deploy.planning.preconditions import check_port
from deploy.process.arithmetic import changes
from deploy.process.host import existing_folder, host_and_port, usable_cores

RAY_OBJECTS_BYTES = 256 << 20
"""Ray's object store in the local mode."""
FILES_PER_ACTOR, FILES = 32, 512


def versions(recorded: dict[str, str] | None = None) -> Check:
    """Checks Python and the packages against the least that qherd was tested with, or against those that a run was
    started with."""
    own = {"python": platform.python_version()}
    wrong = []
    for text in importlib.metadata.requires("qherd") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            own[requirement.name] = found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    if wrong:
        return Check("versions", "problem", "; ".join(wrong), "install qherd anew: make setup, or pip install")
    if changed := changes(recorded or {}, own):
        return Check("versions", "warning", "; ".join(changed), "results may differ from those before")
    names = ("python", "ray", "torch", "gymnasium", "numpy", "redis")
    return Check("versions", "ok", ", ".join(f"{name} {own[name]}" for name in names if name in own))


def ports_checks(config: RunConfig) -> Iterator[Check]:
    check_port(config)
    if config.metrics.port:
        yield Check("ports", "ok", f"{host_and_port(config.metrics.host, config.metrics.port)} is free for /metrics")


def disk_check(folder: Path) -> Check:
    """Checks whether a run's directory can be made, and how much room there is."""
    existing = existing_folder(folder)
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Check("disk", "problem", f"{existing} cannot be written", "choose another --runs-dir")
    if free < 1 << 30:
        return Check("disk", "warning", f"{megabytes(free)} are free in {existing}", "make room: checkpoints need it")
    return Check("disk", "ok", f"{megabytes(free)} are free in {existing}")


def open_files_check(config: RunConfig) -> Check:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES + FILES_PER_ACTOR * config.actors.count
    if config.mode == "local" and 0 <= soft < needed:
        return Check(
            "open files", "warning", f"at most {soft}, about {needed} are needed", f"ulimit -n {min(hard, 65536)}"
        )
    return Check("open files", "ok", f"at most {soft}")


def cores_check(config: RunConfig) -> Check:
    cores, load = usable_cores(), os.getloadavg()[0]
    if load > 1.5 * cores:
        return Check(
            "cores", "warning", f"{cores:g}, with a load of {load:.1f}", "others are at work here: rates will be low"
        )
    if config.mode == "local" and config.actors.count + 1 > 4 * cores:
        return Check(
            "cores",
            "warning",
            f"{cores:g} for the learner and {config.actors.count} actors",
            "more actors than cores help only where the environment waits; see qherd plan",
        )
    return Check("cores", "ok", f"{cores:g}, with a load of {load:.1f}")


def gpu_checks(config: RunConfig) -> Iterator[Check]:
    import torch

    from learner.learner import choose_device

    smi = shutil.which("nvidia-smi")
    seen = smi is not None and subprocess.run([smi, "-L"], capture_output=True, check=False, timeout=20).returncode == 0
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Check("GPU", "ok", f"{', '.join(names)}; the learner's device is {choose_device(config.learner.device)}")
    elif seen:
        yield Check("GPU", "warning", f"this torch ({torch.__version__}) cannot use the GPU", "install torch with CUDA")
    elif config.mode == "cluster":
        yield Check("GPU", "ok", "none here; the cluster's are below")
    else:
        choose_device(config.learner.device)
        yield Check("GPU", "ok", "none; the learner computes on the CPU")


def shared_memory_check(config: RunConfig) -> Check:
    """Checks /dev/shm, where Ray keeps its objects: containers have 64 MB of it by default."""
    folder = Path("/dev/shm")
    if sys.platform != "linux" or not folder.is_dir():
        return Check("/dev/shm", "ok", "not used on this system")
    free = shutil.disk_usage(folder).free
    if config.mode == "local" and free < RAY_OBJECTS_BYTES:
        return Check(
            "/dev/shm",
            "warning",
            f"{megabytes(free)} are free, Ray's objects want {megabytes(RAY_OBJECTS_BYTES)}",
            "give the container more: docker run --shm-size=512m; Ray uses the slower /tmp otherwise",
        )
    return Check("/dev/shm", "ok", f"{megabytes(free)} are free")
