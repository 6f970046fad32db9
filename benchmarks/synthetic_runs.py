"""Run directories as qherd leaves them, without the runs: what `qherd report` reads, with made-up learning curves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from actors.seeds import PLAYBACK
from deploy.config.layers import compose
from deploy.config.models import dump
from deploy.config.numbers import write_yaml
from deploy.run_directory.fences import Fences
from deploy.run_directory.run_name import new_nonce
from learner.phases import PHASE_KEY, PHASES

OTHERS = 60
"""Further metrics in each row, so that rows are as long as a real run's, 2.5 kB."""


def write_run(
    folder: Path,
    env: str,
    seed: int = 0,
    *,
    rows: int = 20,
    env_steps: int = 20_000,
    level: float = 100.0,
    options: Mapping[str, Any] | None = None,
    exit_reason: str = "budget of env steps",
    final: bool = True,
    others: int = 0,
) -> Path:
    """Writes a run of ``rows`` seconds whose greedy return rises to about ``level``; returns its folder. ``options``:
    sections that differ from the environment's preset; ``final``: with evaluations of the final and the best policy."""
    rng = np.random.default_rng(seed)
    base = dump(compose(env, None, None, {}))
    for section, values in (options or {}).items():
        base[section] = {**base[section], **values} if isinstance(values, Mapping) else values
    base |= {"run": folder.name, "runs_dir": str(folder.parent), "seed": seed}
    versions = {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6", "gymnasium": "1.4.0", "ray": "2.60.0"}
    header = {"qherd": "0.1.0", "git": "897de24", "versions": versions, "arithmetic": {"cpu": "A Processor"}}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(write_yaml({**header, "config": base}))
    Fences(folder / "fences.json").create(folder.name, new_nonce())
    share = np.arange(1, rows + 1) / rows
    screens = level * (1 - np.exp(-4 * share)) * rng.uniform(0.9, 1.1) + rng.normal(0, 0.03 * level, rows)
    lines = [json.dumps(_row(i, rows, env_steps, float(screens[i]), others)) for i in range(rows)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    last = float(screens[-1])
    (folder / "summary.json").write_text(json.dumps(_summary(folder.name, exit_reason, rows, env_steps, last)))
    if final:
        (folder / "evaluations").mkdir()
        for policy, shift in (("final", 0.0), ("best", 0.05 * level)):
            returns = rng.normal(last + shift, 0.1 * level, 100)
            played = _evaluation(folder.name, env, policy, env_steps // 4, returns)
            (folder / "evaluations" / f"{policy}.json").write_text(json.dumps(played))
    return folder


def _row(index: int, rows: int, env_steps: int, screen: float, others: int) -> dict[str, float]:
    """Returns a row of metrics.jsonl: of a run that evaluates from its third row on."""
    share, wall_s = (index + 1) / rows, index + 3.0
    done = int(share * env_steps)
    row: dict[str, float] = {"wall_s": wall_s, "start_s": 2.5, "actors_alive": 2, "actor_seconds": 2.0 * wall_s}
    row |= {f"actor_{name}_seconds": 0.4 * wall_s for name in ("env", "own", "log", "fetch", "wait")}
    row |= {"actor_cpu_seconds": 0.5 * wall_s, "actor_starved_seconds": 0.1}
    if index >= 2:
        row |= {"greedy_return": round(screen, 3), "confirmations": 0, "first_greedy_return": 0.5}
    row |= {"evaluator_restarts": 0, "actor_restarts": int(share > 0.5), "learner_restarts": 0, "server_restarts": 0}
    row |= {"chunks": done // 512, "rows": done + index, "env_steps": done, "replay_rows": done}
    row |= {"replay_capacity_rows": env_steps, "replay_sampleable_rows": done, "replay_bytes": 425 * env_steps}
    row |= {"samples_per_insert_target": 8.0, "samples_per_insert": 8.0 * share, "samples": 8 * done}
    row |= {"actor_episodes": done // 50, "actor_returns_sum": (done // 50) * screen * share, "updates": done // 4}
    row |= {"weight_staleness_versions": 3, "weight_staleness_mean_versions": 1.5 + index % 3}
    row |= {PHASE_KEY.format(phase): wall_s / len(PHASES) for phase in PHASES}
    return row | {f"another_metric_of_a_row_{number}": 123456.0 + number for number in range(others)}


def _summary(run: str, exit_reason: str, rows: int, env_steps: int, last: float) -> dict[str, Any]:
    return {
        "run": run,
        "exit_reason": exit_reason,
        "wall_s": rows + 3.5,
        "start_s": 2.5,
        "solved_s": None,
        "env_steps": env_steps,
        "updates": env_steps // 4,
        "episodes": env_steps // 50,
        "best_updates": env_steps // 4,
        "eval_mean": last * 1.1,
        "eval_std": 3.0,
        "eval_episodes": 20,
        "holdout_mean": last,
        "holdout_std": 3.0,
        "holdout_episodes": 50,
        "final_updates": env_steps // 4,
        "final_mean": last,
        "chunks_refused": {"crc": 1},
        "rows_lost": {"tail": 12},
        "deaths": {"actor: ActorDiedError": 1},
        "actor_restarts": 1,
    }


def _evaluation(run: str, env: str, policy: str, updates: int, returns: Iterable[float]) -> dict[str, Any]:
    played = [round(float(each), 3) for each in returns]
    return {
        "run": run,
        "env": env,
        "policy": policy,
        "selected": policy == "best",
        "updates": updates,
        "episodes": len(played),
        "seed": PLAYBACK,
        "epsilon": 0.0,
        "sticky": None,
        "max_episode_steps": 27000,
        "mean": float(np.mean(played)),
        "returns": played,
    }


STUDY_OPTIONS: Mapping[str, Mapping[str, Any]] = {"plain": {}, "long": {"learner": {"n_step": 5}}}


def write_study(folder: Path, envs: Iterable[str], seeds: int, *, rows: int, env_steps: int, others: int) -> Path:
    """Writes a study of two variants in each environment; returns its folder."""
    names = tuple(envs)
    for env in names:
        for index, (variant, options) in enumerate(STUDY_OPTIONS.items()):
            for seed in range(seeds):
                run = folder / "runs" / f"{env.replace('/', '_')}--{variant}--s{seed}"
                level = 20.0 + 5 * index
                write_run(run, env, seed, rows=rows, env_steps=env_steps, level=level, options=options, others=others)
    study = {
        "study": folder.name,
        "environments": list(names),
        "variants": {"plain": {}, "long": {"learner.n_step": 5}},
        "seeds": seeds,
        "budget": {"env_steps": env_steps},
    }
    (folder / "study.yaml").write_text(write_yaml(study))
    return folder
