"""Curves of several runs on a common axis: at each point the last value known, and none after a run's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.reporting.statistics import iqm, iqm_band

Points = npt.NDArray[np.float64]
POINTS = 200
"""Of a curve."""


class Curve(NamedTuple):
    """One run's values <float64>[N] where they were measured, ``x`` <float64>[N] ascending; the run ends at ``end``."""

    x: Points
    y: Points
    end: float


class Together(NamedTuple):
    """Several runs' curves on one axis.

    ``x`` <float64>[P]; ``runs`` <float64>[R, P], NaN before a run's first value and after its end; ``iqm`` <float64>[P]
    and its ``band`` over the runs that count, NaN where not all of these have a value. No band for few runs.
    """

    x: Points
    runs: Points
    iqm: Points
    band: tuple[Points, Points] | None


def on_axis(curve: Curve, axis: Points) -> Points:
    """Returns the last value known at each point of ``axis`` <float64>[P]; NaN before the first and after the end.

    =====================  ===================================
    at a point             the value is
    =====================  ===================================
    before the first x     NaN
    at an x                the y there; of several, the last
    between two            the y of the one before
    up to the end          the last y
    after the end          NaN
    =====================  ===================================
    """
    found = np.searchsorted(curve.x, axis, side="right") - 1
    known = (found >= 0) & (axis <= curve.end)
    values = np.full(len(axis), np.nan)
    values[known] = curve.y[found[known]]
    return values


def together(curves: Sequence[Curve], counted: Sequence[bool]) -> Together:
    """Returns the curves on POINTS points from 0 to the last one's end. ``counted``: those that the IQM is over."""
    ends = [curve.end for curve in curves]
    axis = np.unique(np.concatenate([np.linspace(0.0, max(ends), POINTS), ends]))  # each run is drawn to its very end
    runs = np.stack([on_axis(curve, axis) for curve in curves])
    counting = runs[np.array(counted, bool)]
    middle, band = np.full(len(axis), np.nan), None
    shared = np.isfinite(counting).all(axis=0) if len(counting) else np.zeros(len(axis), bool)
    if shared.any():
        middle[shared] = iqm(counting[:, shared])
        if (bounds := iqm_band([counting[:, shared]])) is not None:
            band = np.full(len(axis), np.nan), np.full(len(axis), np.nan)
            for whole, bound in zip(band, bounds, strict=True):
                whole[shared] = bound
    return Together(axis, runs, middle, band)
