"""The statistics of a report: computed once, for the page, for Markdown and for the raw numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from deploy.reporting.comparison import Environment, Variant, environments_of
from deploy.reporting.curves import Points, Together, together
from deploy.reporting.records import RunRecord
from deploy.reporting.statistics import (
    Interval,
    Scores,
    improvement_interval,
    iqm,
    iqm_interval,
    mean,
    probability_of_improvement,
    profile,
    profile_band,
    sd,
)

AXES = ("env_steps", "wall_s")
THRESHOLDS = 101
"""Points of a performance profile."""
MAX_PAIRED = 6
"""So many variants are compared each with each; more of them with the first alone."""


@dataclass(frozen=True)
class ScoreStatistics:
    """What the scores of several runs say together."""

    count: int
    mean: float
    sd: float | None
    iqm: float
    interval: Interval | None

    @classmethod
    def of(cls, scores: Scores) -> ScoreStatistics:
        """Computes them for at least one score."""
        return cls(len(scores), mean(scores), sd(scores), float(iqm(scores)), iqm_interval([scores]))


@dataclass(frozen=True)
class VariantAnalysis:
    """One variant in one environment. ``scores`` <float64>[N]; ``curves``: by axis; ``profile`` and its band
    <float64>[T] at the environment's thresholds."""

    variant: Variant
    scores: Scores
    statistics: ScoreStatistics | None
    curves: Mapping[str, Together]
    drawn: Mapping[str, Sequence[RunRecord]]
    profile: Points | None
    profile_band: tuple[Points, Points] | None


@dataclass(frozen=True)
class Improvement:
    """The probability that a run of one variant scores better than one of another."""

    better: str
    than: str
    probability: float
    interval: Interval | None
    environments: int = 1


@dataclass(frozen=True)
class EnvironmentAnalysis:
    """All of one environment. ``thresholds`` <float64>[T] of the profiles."""

    environment: Environment
    variants: tuple[VariantAnalysis, ...]
    thresholds: Points
    improvements: tuple[Improvement, ...]


@dataclass(frozen=True)
class Missing:
    """A run that is not reported, and why. ``expected``: whether its study has it."""

    name: str
    why: str
    expected: bool = True


@dataclass(frozen=True)
class Report:
    """All that a report shows. ``call``: the command that makes it again."""

    title: str
    call: str
    environments: tuple[EnvironmentAnalysis, ...]
    overall: tuple[Improvement, ...]
    missing: tuple[Missing, ...]

    @property
    def runs(self) -> Iterator[RunRecord]:
        """All runs."""
        return (run for env in self.environments for variant in env.environment.variants for run in variant.runs)


def analyse(title: str, call: str, runs: Iterable[RunRecord], missing: Sequence[Missing]) -> Report:
    """Computes a report."""
    environments = tuple(map(_environment, environments_of(runs)))
    overall = tuple(_overall(environments)) if len(environments) > 1 else ()
    return Report(title, call, environments, overall, tuple(missing))


def _environment(environment: Environment) -> EnvironmentAnalysis:
    scores = [environment.scores(variant) for variant in environment.variants]
    known = np.concatenate(scores)
    thresholds = np.linspace(known.min(), known.max(), THRESHOLDS) if len(known) else np.zeros(0)
    variants = [_variant(each, own, thresholds) for each, own in zip(environment.variants, scores, strict=True)]
    pairs = [
        _improvement(variants[a].variant.label, variants[b].variant.label, [(scores[a], scores[b])])
        for a, b in _pairs(len(variants))
        if len(scores[a]) and len(scores[b])
    ]
    return EnvironmentAnalysis(environment, tuple(variants), thresholds, tuple(pairs))


def _variant(variant: Variant, scores: Scores, thresholds: Points) -> VariantAnalysis:
    curves, drawn = {}, {}
    for axis in AXES:
        found = [(run, curve) for run in variant.runs if (curve := run.curve(axis)) is not None]
        if found:
            drawn[axis] = [run for run, _ in found]
            curves[axis] = together([curve for _, curve in found], [run.completed for run, _ in found])
    return VariantAnalysis(
        variant,
        scores,
        ScoreStatistics.of(scores) if len(scores) else None,
        curves,
        drawn,
        profile([scores], thresholds) if len(scores) else None,
        profile_band([scores], thresholds),
    )


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    """Yields the pairs that are compared, the later variant first."""
    for earlier, later in combinations(range(count), 2):
        if count <= MAX_PAIRED or earlier == 0:
            yield later, earlier


def _improvement(better: str, than: str, pairs: Sequence[tuple[Scores, Scores]]) -> Improvement:
    return Improvement(better, than, probability_of_improvement(pairs), improvement_interval(pairs), len(pairs))


def _overall(environments: Sequence[EnvironmentAnalysis]) -> Iterator[Improvement]:
    """Yields the probabilities of improvement over all environments that have both variants of a pair."""
    by_label = [{each.variant.label: each.scores for each in env.variants if len(each.scores)} for env in environments]
    labels = list(dict.fromkeys(label for scores in by_label for label in scores))
    for later, earlier in _pairs(len(labels)):
        better, than = labels[later], labels[earlier]
        shared = [(scores[better], scores[than]) for scores in by_label if better in scores and than in scores]
        if len(shared) > 1:
            yield _improvement(better, than, shared)
