"""Where a mirror's columns lie: host memory, a file mapped into it, or the learner's device.

A storage allocates columns and moves rows in and out of them; which rows is the mirror's business.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from replay.errors import QherdError

Array = npt.NDArray[Any]
Kind = Literal["ram", "memmap", "device"]
CGROUP = Path("/sys/fs/cgroup")


class CannotFit(QherdError, ValueError):
    """A mirror that is bigger than what there is for it; the text has both numbers."""


class Storage(Protocol):
    """Columns of a mirror: ``Any`` is the storage's own kind of array."""

    def free_bytes(self) -> int | None:
        """Returns the bytes that it could allocate now; None where that is not known."""

    def allocate(self, rows: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        """Returns a column <dtype>[rows, *shape] of zeros."""

    def put(self, column: Any, indices: Array | slice, values: Array) -> None:
        """Writes the host's ``values`` <dtype>[M, *shape] to ``indices``."""

    def gather(self, column: Any, indices: Array, out: Array | None = None) -> Any:
        """Returns the rows at ``indices`` <int64>[B] as a contiguous <dtype>[B, *shape] of their own; in ``out``, an
        array of the host, where it is given and the rows lie there."""

    def host(self, column: Any, rows: int) -> Array:
        """Returns the first ``rows`` rows as a host's array, perhaps a view."""

    def join(self, one: Any, other: Any, batches: int) -> Any:
        """Returns what was gathered of K batches, [K·M, ...] and [K·N, ...], as batches of M + N rows each."""


class Ram:
    """Host memory."""

    def free_bytes(self) -> int | None:
        return available_memory()

    def allocate(self, rows: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        return np.zeros((rows, *shape), dtype)

    def put(self, column: Array, indices: Array | slice, values: Array) -> None:
        column[indices] = values

    def gather(self, column: Array, indices: Array, out: Array | None = None) -> Array:
        # "raise" would fill a buffer of its own first; indices are of the ring, and none is beyond it.
        return column.take(indices, axis=0, out=out, mode="raise" if out is None else "clip")

    def host(self, column: Array, rows: int) -> Array:
        return column[:rows]

    def join(self, one: Array, other: Array, batches: int) -> Array:
        parts = [each.reshape(batches, -1, *each.shape[1:]) for each in (one, other)]
        return np.concatenate(parts, axis=1).reshape(-1, *one.shape[1:])


class Memmap(Ram):
    """Files without a name in ``folder``, mapped into memory: the system keeps in RAM what is used and there is room
    for. Nothing of them is left behind, however the process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self._folder).free

    def allocate(self, rows: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        nbytes = rows * math.prod(shape) * np.dtype(dtype).itemsize
        with tempfile.TemporaryFile(dir=self._folder) as file:
            # Without the blocks a full disk would end the process by SIGBUS in the middle of a write.
            os.posix_fallocate(file.fileno(), 0, nbytes)
            return np.memmap(file, dtype, "r+", shape=(rows, *shape))


class Device:
    """The memory of a torch device. Batches are gathered there: of a sample only the row numbers leave the host."""

    def __init__(self, device: Any) -> None:
        """``device``: a torch.device. torch is imported here, and nowhere else in this package."""
        import torch

        self._torch, self._device = torch, device

    def free_bytes(self) -> int | None:
        if self._device.type == "cuda":
            return int(self._torch.cuda.mem_get_info(self._device)[0])
        return available_memory() if self._device.type == "cpu" else None

    def allocate(self, rows: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        like = self._torch.from_numpy(np.zeros(1, dtype))
        return self._torch.zeros((rows, *shape), dtype=like.dtype, device=self._device)

    def put(self, column: Any, indices: Array | slice, values: Array) -> None:
        where = indices if isinstance(indices, slice) else self._torch.from_numpy(indices).to(self._device)
        self._plain(column)[where] = self._plain(self._torch.from_numpy(np.array(values)).to(self._device))

    def gather(self, column: Any, indices: Array, out: Array | None = None) -> Any:
        taken = self._plain(column)[self._torch.from_numpy(indices).to(self._device)]
        return taken.view(column.dtype)

    def host(self, column: Any, rows: int) -> Array:
        copied: Array = column[:rows].cpu().numpy()
        return copied

    def join(self, one: Any, other: Any, batches: int) -> Any:
        parts = [self._plain(each).reshape(batches, -1, *each.shape[1:]) for each in (one, other)]
        return self._torch.cat(parts, dim=1).reshape(-1, *one.shape[1:]).view(one.dtype)

    def _plain(self, tensor: Any) -> Any:
        """Returns the same bytes in a dtype that torch can index: uint16 it cannot."""
        return tensor.view(self._torch.int16) if tensor.dtype == self._torch.uint16 else tensor


def make_storage(kind: Kind, folder: Path | None, device: Callable[[], Any]) -> Storage:
    """Returns the storage of this kind. ``folder`` is where a memmap's files lie (None: the system's folder for
    temporary files); ``device`` gives the torch device, called only where it is needed."""
    if kind == "memmap":
        return Memmap(folder or Path(tempfile.gettempdir()))
    return Device(device()) if kind == "device" else Ram()


def check_fit(kind: Kind, storage: Storage, needed_bytes: int) -> None:
    """Raises CannotFit where ``storage`` has less than ``needed_bytes``."""
    free = storage.free_bytes()
    if free is not None and needed_bytes > free:
        remedy = "lower replay.capacity_rows" + (", or choose --replay.storage memmap" if kind != "memmap" else "")
        raise CannotFit(
            f"the replay needs {needed_bytes / 1e9:.2f} GB of {kind} in the learner, {free / 1e9:.2f} GB are free: "
            f"{remedy}"
        )


def available_memory() -> int | None:
    """Returns the bytes that processes can still allocate here, also by the cgroup's bound; None where not known."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    bounds = [int(found[1]) * 1024] if found else []
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            bounds.append(int(limit) - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(bounds, default=None)
