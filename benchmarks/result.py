"""What a benchmark found: two sides that alternated in one run, medians, the ratio, and whether the target is met."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Result:
    """Repetitions of one figure, qherd's own and, where there is another side, those that alternated with it.

    ``target`` is for the ratio where there is another side, for the median otherwise; ``at_most`` turns the target and
    the ratio round: small figures (seconds) are then the good ones.
    """

    name: str
    unit: str
    ours: tuple[float, ...]
    other_name: str = ""
    other: tuple[float, ...] = ()
    target: float | None = None
    at_most: bool = False
    notes: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The median of our repetitions."""
        return median(self.ours)

    @property
    def other_value(self) -> float | None:
        """The median of the other side's."""
        return median(self.other) if self.other else None

    @property
    def ratio(self) -> float | None:
        """How many times better we are: the ratio of the medians."""
        return self._times_better(self.value, median(self.other)) if self.other else None

    @property
    def ratios(self) -> tuple[float, ...]:
        """The ratio of each repetition with the one that alternated with it."""
        return tuple(self._times_better(a, b) for a, b in zip(self.ours, self.other, strict=False))

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        if self.ratio is not None:
            return self.ratio >= self.target
        return self.value <= self.target if self.at_most else self.value >= self.target

    def _times_better(self, ours: float, other: float) -> float:
        return other / ours if self.at_most else ours / other

    def lines(self) -> Iterator[str]:
        """As text."""
        yield f"{self.name}: {_figure(self.value)} {self.unit} ({_span(self.ours)}, {len(self.ours)} repetitions)"
        if self.other_value is not None and self.ratio is not None:
            yield f"    {self.other_name}: {_figure(self.other_value)} {self.unit} ({_span(self.other)})"
            yield f"    ratio: {self.ratio:.3g} ({_span(self.ratios)})"
        if self.target is not None:
            bound = "at most" if self.at_most and not self.other else "at least"
            what, unit = ("ratio", "") if self.other else ("median", f" {self.unit}")
            yield f"    target: {what} {bound} {_figure(self.target)}{unit}: {'met' if self.met else 'NOT MET'}"
        yield from (f"    {note}" for note in self.notes)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.value,
            "repetitions": self.ours,
            "other": {"name": self.other_name, "median": self.other_value, "repetitions": self.other},
            "ratio": {"of_medians": self.ratio, "repetitions": self.ratios},
            "target": self.target,
            "met": self.met,
            "notes": self.notes,
        }


def alternate(
    ours: Callable[[], float], other: Callable[[], float], repetitions: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Figures of both sides, in turn; every second pair starts with the other side, so that a drift favours neither."""
    pairs = []
    for repetition in range(repetitions):
        if repetition % 2:
            second = other()
            pairs.append((ours(), second))
        else:
            pairs.append((ours(), other()))
    return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)


def not_a_measurement(result: Result) -> Result:
    """The same of a --quick run, marked: its sizes are tiny, so no target is judged by it."""
    return replace(result, name=f"NOT A MEASUREMENT (--quick): {result.name}", target=None)


def show(results: Iterable[Result]) -> None:
    """Print results, with the machine's load beside them."""
    for result in results:
        print("\n".join(result.lines()))
    print(f"    (load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)\n", flush=True)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _span(values: Iterable[float]) -> str:
    values = tuple(values)
    return f"{_figure(min(values))} to {_figure(max(values))}"
