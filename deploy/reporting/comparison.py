"""Which runs belong together, and what sets them apart: environments, variants of a configuration, and its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.config.changes import WHERE
from deploy.config.models import option_paths
from deploy.config.repeat import flat_options
from deploy.reporting.records import RunRecord
from deploy.reporting.statistics import Scores

LABEL_OPTIONS = 2
"""As many options at the most make a variant's name; where more differ it is called by a run's."""
FINAL = "final policy, episodes on seeds that the run has not played"
SCREEN = "newest evaluation during training (not all of these runs have a final evaluation)"


@dataclass(frozen=True)
class Variant:
    """The runs of one configuration in one environment, by seed. ``completed``: those that count."""

    label: str
    runs: tuple[RunRecord, ...]

    @property
    def completed(self) -> tuple[RunRecord, ...]:
        """The runs that ended as they were meant to."""
        return tuple(run for run in self.runs if run.completed)


@dataclass(frozen=True)
class Environment:
    """All runs in one environment, and what their score is."""

    env: str
    variants: tuple[Variant, ...]

    @property
    def final(self) -> bool:
        """Whether the score is the final policy's: each run that counts was evaluated at its end."""
        counted = [run for variant in self.variants for run in variant.completed]
        return bool(counted) and all(run.final is not None for run in counted)

    @property
    def best_after(self) -> bool:
        """Whether all best policies were played after the runs' ends: what they were chosen by is no fair score."""
        counted = [run for variant in self.variants for run in variant.completed]
        return bool(counted) and all(run.best is not None for run in counted)

    @property
    def score_is(self) -> str:
        """What a score is, in words."""
        return FINAL if self.final else SCREEN

    def score(self, run: RunRecord) -> float | None:
        """Returns a run's score; None where it has none, or does not count."""
        if not run.completed:
            return None
        if self.final:
            return run.final.mean if run.final is not None else None
        return run.newest_screen

    def best_score(self, run: RunRecord) -> float | None:
        """Returns the mean of a run's best policy, which is selected: after the run, else that it was chosen by."""
        if self.best_after:
            return run.best.mean if run.best is not None else None
        return run.summary.eval_mean if run.summary is not None else None

    def scores(self, variant: Variant) -> Scores:
        """Returns the scores of a variant's runs, <float64>[N]."""
        return np.array([score for run in variant.runs if (score := self.score(run)) is not None], np.float64)


def environments_of(runs: Iterable[RunRecord]) -> list[Environment]:
    """Returns the runs by environment and variant, both in the order in which they were given, and by seed."""
    by_env: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_env.setdefault(run.env, []).append(run)
    return [Environment(env, tuple(_variants(members))) for env, members in by_env.items()]


def _variants(runs: Sequence[RunRecord]) -> list[Variant]:
    """Returns the runs of one environment by variant: by the options, and in a study by its name, too. Runs of a study
    may differ from its file, as one that was resumed with other options."""
    groups = list[tuple[Mapping[str, Any], list[RunRecord]]]()
    for run in runs:
        options = _options(run)
        alike = (group for of, group in groups if of == options and group[0].variant == run.variant)
        if (group := next(alike, None)) is not None:
            group.append(run)
        else:
            groups.append((options, [run]))
    members = [sorted(group, key=lambda run: run.config.seed) for _, group in groups]
    labels = [_label(group, members) for group in members]
    return [
        Variant(label if labels.count(label) == 1 else f"{label} ({group[0].path})", tuple(group))
        for label, group in zip(labels, members, strict=True)
    ]


def _label(group: Sequence[RunRecord], groups: Sequence[Sequence[RunRecord]]) -> str:
    """Returns a variant's name: its own, and what sets it apart from the others, or of a study's from those of its
    name."""
    first = group[0]
    firsts = [each[0] for each in groups if not first.variant or each[0].variant == first.variant]
    if first.variant and len(firsts) == 1:
        return first.variant
    if len(group) == 1 and not first.variant:
        return first.name
    differing, options = differences(firsts), flat_options(first.config)
    if 0 < len(differing) <= LABEL_OPTIONS:
        told = ", ".join(f"{path} {options[path]}" for path in differing)
        return f"{first.variant} with {told}" if first.variant else told
    told = f"{first.name} and {len(group) - 1} more" if len(group) > 1 else first.name
    return f"{first.variant}: {told}" if first.variant else told


def differences(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the dotted names of the options that are not the same in all these runs."""
    options = [_options(run) for run in runs]
    return [path for path in option_paths() if any(each.get(path) != options[0].get(path) for each in options[1:])]


def _options(run: RunRecord) -> Mapping[str, Any]:
    """Returns the options that make a variant."""
    options = flat_options(run.config)
    return {path: value for path, value in options.items() if path != "seed" and not path.startswith(WHERE)}


def provenance_of(run: RunRecord) -> dict[str, str]:
    """Returns with which versions and on which kind of processor a run has computed, by name."""
    found: dict[str, str] = {}
    for part, value in run.written.items():
        if part == "config":
            continue
        if isinstance(value, Mapping):
            found |= {f"{part}.{name}": str(each) for name, each in value.items()}
        else:
            found[part] = "unknown" if value is None else str(value)  # no checkout has no commit
    return found


def differing_provenance(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the names of what in ``provenance_of`` is not the same in all these runs."""
    found = [provenance_of(run) for run in runs]
    names = dict.fromkeys(name for each in found for name in each)
    return [name for name in names if any(each.get(name) != found[0].get(name) for each in found[1:])]
