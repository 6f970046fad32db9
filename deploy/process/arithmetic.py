"""What a run computes with: numpy's BLAS on one thread, and on record which kernels added the numbers up.

A BLAS that shares a product out among threads adds in another order, and how many it takes goes by the CPUs that it may
run on: without a fixed number the same seed gives other weights on another machine, or under ``taskset``.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

VARIABLES = (
    "OPENBLAS_NUM_THREADS",  # numpy's wheels; read before OMP_NUM_THREADS
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Where the implementations of BLAS find their number of threads, once, when they are loaded."""


def pin() -> None:
    """Gives numpy's BLAS one thread in this process and in those that it starts, whatever the environment had.

    Only before numpy is imported: a BLAS does not look again. torch's threads are ``learner.threads``.
    """
    os.environ.update(dict.fromkeys(VARIABLES, "1"))


def describe(mode: str) -> dict[str, str | int]:
    """Returns the CPU and numpy's BLAS, its kernel and threads; in the mode inline, where torch computes in this
    process, its kernels too. Empty for the mode cluster, whose processes are elsewhere."""
    if mode == "cluster":
        return {}
    found: dict[str, str | int] = {"cpu": cpu(), "blas": blas(), "blas_threads": blas_threads()}
    if mode == "inline":
        import torch

        found["torch_kernels"] = torch.backends.cpu.get_cpu_capability()
    return found


def changes(recorded: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Returns what of a record is otherwise now, a text each; what only one of them has is passed over."""
    return [f"{name} {own[name]}, was {was}" for name, was in recorded.items() if own.get(name, was) != was]


def cpu() -> str:
    """Returns the processor's name: libraries choose their kernels by it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (line.partition(":")[2].strip() for line in _lines(cpuinfo) if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def blas() -> str:
    """Returns name, version and kernel of numpy's BLAS, the last only of OpenBLAS, which numpy's wheels bring."""
    import numpy as np

    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    kernel = _openblas("get_corename", ctypes.c_char_p)
    return f"{built['name']} {built['version']}" + (f" {kernel.decode()}" if kernel else "")


def blas_threads() -> int:
    """Returns how many threads numpy's BLAS shares its work out to; of another than OpenBLAS, what the environment
    asks for."""
    threads = _openblas("get_num_threads", ctypes.c_int)
    asked = (os.environ.get(name, "") for name in VARIABLES)
    return int(threads or next((int(text) for text in asked if text.isdecimal()), os.cpu_count() or 1))


def _openblas(function: str, returns: type[Any]) -> Any:
    """Returns what a function of the OpenBLAS of numpy's wheel returns; None where numpy has another BLAS. Its names
    have affixes, by the size of its integers."""
    import numpy as np

    packages = Path(np.__file__).parent.parent
    for path in (*packages.glob("numpy.libs/*openblas*"), *packages.glob("numpy/.dylibs/*openblas*")):
        library = ctypes.CDLL(str(path))  # loaded already: this is the same one
        for name in (f"scipy_openblas_{function}64_", f"scipy_openblas_{function}", f"openblas_{function}64_"):
            if (found := getattr(library, name, None)) is not None:
                found.restype = returns
                return found()
    return None


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text().splitlines()
    except OSError:
        return
