"""What the learner reports. Free of torch: the driver reads it, and would import torch for it (2 s, 175 MB)."""

from __future__ import annotations

from typing import NamedTuple


class Report(NamedTuple):
    """Totals so far, rates over the last slice, and counts by reason; names as in learner/catalogue.py."""

    figures: dict[str, float]
    refused: dict[str, int]
    rows_lost: dict[str, int]
