"""A video of what an environment renders, written as it is played: an episode without an end fills no memory."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import imageio_ffmpeg  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from actors.errors import EnvError

EVEN = "pad=ceil(iw/2)*2:ceil(ih/2)*2"
"""Most players want sides of even length."""
SMALL, ENLARGED = 48, 240
"""Sides of pictures that are enlarged, such as MinAtar's of 10 x 10, and how far, by a whole factor."""
GIF = "fps=15,split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"
"""Few frames, each with a palette of its own: one for all would have ffmpeg keep all."""


class Video:
    """An MP4 or GIF that is written frame by frame. A context manager: where its block raises, there is no file."""

    def __init__(self, out: Path, name: str, fps: float) -> None:
        """Creates no file yet. ``name``: the environment's, for messages."""
        self._out, self._name, self._fps = out, name, fps
        self._size = (0, 0)
        self._writer: Generator[None, Any, None] | None = None

    def add(self, rendered: Any) -> None:
        """Writes what ``render`` returned.

        Raises:
            EnvError: it is no picture, or one of another size.
        """
        frame = picture(self._name, rendered)
        height, width, _ = frame.shape
        if max(height, width) < SMALL:
            factor = ENLARGED // max(height, width)
            frame = frame.repeat(factor, 0).repeat(factor, 1)
            height, width, _ = frame.shape
        if self._writer is None:
            self._size, self._writer = (width, height), self._open(width, height)
        if (width, height) != self._size:
            raise EnvError(
                f"{self._name}: render() returned a picture of {width} x {height} after others of "
                f"{self._size[0]} x {self._size[1]}; a video needs one size"
            )
        self._writer.send(frame)  # written before this returns: the environment may draw on the same array again

    def _open(self, width: int, height: int) -> Generator[None, Any, None]:
        if self._out.suffix == ".gif":
            options = {"codec": "gif", "pix_fmt_out": "pal8", "quality": None, "output_params": ["-vf", GIF]}
        else:
            options = {"codec": "libx264", "output_params": ["-vf", EVEN]}
        writer: Generator[None, Any, None] = imageio_ffmpeg.write_frames(
            str(self._out), (width, height), fps=self._fps, macro_block_size=1, ffmpeg_log_level="error", **options
        )
        writer.send(None)
        return writer

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if kind is not None:
                with contextlib.suppress(FileNotFoundError):
                    self._out.unlink()


def picture(name: str, rendered: Any) -> npt.NDArray[np.uint8]:
    """What ``render`` returned as <uint8>[height, width, 3], contiguous.

    =============================  ==========================================
    returned                       taken as
    =============================  ==========================================
    <uint8>[height, width, 3]      itself
    [height, width] or [..., 1]    shades of gray
    [height, width, 4]             colour; its transparency is left out
    floats of 0 to 1, or booleans  0 is dark, 1 is bright
    other whole numbers            themselves, where they are of 0 to 255
    =============================  ==========================================

    Raises EnvError for all others.
    """
    wanted = "a video needs an array <uint8>[height, width, 3]"
    if rendered is None:
        raise EnvError(f"{name}: render() returned None; {wanted}, as the render mode rgb_array promises")
    given = np.asarray(rendered)
    if given.ndim == 2:
        given = given[..., None]
    if given.ndim != 3 or given.shape[2] not in (1, 3, 4) or 0 in given.shape or given.dtype.kind not in "biuf":
        raise EnvError(f"{name}: render() returned an array <{given.dtype}>{list(np.shape(rendered))}; {wanted}")
    given = given[..., :3]
    if given.dtype.kind in "bf":
        low, high, scale = 0, 1, 255
    else:
        low, high, scale = 0, 255, 1
    if given.dtype != np.uint8:
        if not (given.min() >= low and given.max() <= high):
            raise EnvError(
                f"{name}: render() returned values of {given.min()} to {given.max()} in dtype {given.dtype}, where a "
                f"picture has {low} to {high}; {wanted}"
            )
        given = np.rint(given * np.float32(scale)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(given, (*given.shape[:2], 3)))
