"""Numbers as a report writes them."""

from __future__ import annotations

import math

from deploy.process.output import printable

NONE = "–"


PAGE_OPENING = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy"'
)
"""How each page begins that qherd report has written."""


def harmless(text: str) -> str:
    """Returns any text without control characters, which neither a page nor a picture may hold."""
    return printable(text, but="\n\t")


def one_line(text: str) -> str:
    """Returns any text in one line, without control characters."""
    return " ".join(harmless(text).split())


def number(value: float) -> str:
    """Returns a number with four digits, or all of those before the point."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    shown = f"{value:.4g}"
    return (f"{value:.4f}".rstrip("0").rstrip(".") if "e" in shown else shown).replace("-", "−") or "0"


def optional(value: float | None) -> str:
    """Returns a number; a dash for none."""
    return NONE if value is None or not math.isfinite(value) else number(value)


def of_interval(interval: tuple[float, float] | None) -> str:
    """Returns an interval; a dash for none."""
    if interval is None:
        return NONE
    return f"{number(interval[0])} to {number(interval[1])}"


def plural(count: int, noun: str) -> str:
    """Returns how many there are of it."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def seconds(value: float) -> str:
    """Returns a duration: 12.3 s, 4 min 5 s, 3 h 2 min."""
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def share(value: float) -> str:
    """Returns a share of 1 in percent."""
    return f"{value:.1%}"


def size(count: float) -> str:
    """Returns a number of bytes: 12.3 MB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"
