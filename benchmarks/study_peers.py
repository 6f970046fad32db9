"""Stable-Baselines3's DQN and sb3-contrib's QR-DQN in a study's environments, at its env steps, with its evaluation.

A peer's policy is also evaluated in the midst of its training, after as many seconds as qherd's runs of that
environment have taken on this CPU, by the rows beside the study's file: ``after_*`` in its row. What that takes counts
in no time.

``python -m benchmarks.study_peers results/classic/classic.yaml --csv results/classic/peers.csv`` appends a row for each
run that the file has not yet, with the columns of ``qherd report --csv``. A peer that fails ends the command: it has no
row.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from benchmarks import machine
from benchmarks.peers import outcome_of, peer_command, peer_python
from benchmarks.published_settings import published
from benchmarks.solve import timed
from deploy.process.arithmetic import cpu
from deploy.studies.study_file import Study, StudyRun, read_study
from docs.results import rows_file, values_of

VENV, SCRIPT = "sb3_contrib", "trained_peer"
NAMES = {"dqn": "SB3 DQN", "qrdqn": "SB3 QR-DQN"}
TIMEOUT_S = 7200.0
EXTRA_STEPS = 256
"""A training ends with the rollout in which it has had its env steps, the longest of which are so long."""
COLUMNS = (
    *("env", "variant", "seed", "run", "exit_reason", "counted", "score", "score_is"),
    *("final_mean", "final_stderr", "final_episodes", "training_return", "env_steps", "updates", "wall_s", "cpu_s"),
    *(
        "git",
        "versions.python",
        "versions.torch",
        "versions.numpy",
        "versions.gymnasium",
        "arithmetic.cpu",
        "machine.cores",
    ),
    *("after_s", "after_env_steps", "after_mean"),
    *("versions.stable_baselines3", "versions.sb3_contrib", "settings", "command"),
)


@dataclass(frozen=True)
class PeerRun:
    """One training of a peer, in place of a study's run."""

    file: Path
    algorithm: str
    run: StudyRun
    episodes: int
    after_s: float | None
    """When it is evaluated besides, in seconds; None: never."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells its row from others."""
        return self.run.env, NAMES[self.algorithm], str(self.run.seed)

    @property
    def env_steps(self) -> int:
        """The study's env steps.

        Raises:
            ValueError: its budget is another one.
        """
        budget = self.run.config.budget
        if budget.env_steps is None or budget.seconds is not None:
            raise ValueError(f"{self.file}: peers compare at equal env steps; the budget of {self.run.env} is {budget}")
        return budget.env_steps

    def command(self) -> list[str]:
        """Returns the peer's command, as of now."""
        config = self.run.config
        options = {
            "--algorithm": self.algorithm,
            "--env": config.env.model_dump_json(),
            "--env-steps": self.env_steps,
            "--seed": self.run.seed,
            "--episodes": self.episodes,
            "--max-episode-steps": config.eval.max_episode_steps,
            "--began": time.time(),
            **({} if self.after_s is None else {"--after": self.after_s}),
        }
        return peer_command(VENV, *(str(word) for option in options.items() for word in option), script=SCRIPT)

    def train(self) -> dict[str, Any]:
        """Trains and evaluates the peer; returns its row.

        Raises:
            RuntimeError: it has failed, or has not done all of it.
        """
        _, output = timed(self.command(), TIMEOUT_S)
        outcome, env_steps, name = outcome_of(NAMES[self.algorithm], output), self.env_steps, NAMES[self.algorithm]
        if not env_steps <= outcome["env_steps"] < env_steps + EXTRA_STEPS or len(outcome["returns"]) != self.episodes:
            done = f"{outcome['env_steps']} of {env_steps} env steps and {len(outcome['returns'])} episodes"
            raise RuntimeError(f"{name} has ended after {done} of {self.episodes}")
        return self._row(outcome)

    def _row(self, outcome: dict[str, Any]) -> dict[str, Any]:
        env, name, seed = self.key
        returns, after, found = outcome["returns"], outcome["after"], machine.describe()
        mean, versions = fmean(returns), {f"versions.{key}": value for key, value in outcome["versions"].items()}
        return {
            "env": env,
            "variant": name,
            "seed": seed,
            "run": f"{env}--{name}--s{seed}",
            "exit_reason": "budget of env steps",
            "counted": 1,
            "score": mean,
            "score_is": "final policy",
            "final_mean": mean,
            "final_stderr": stdev(returns) / len(returns) ** 0.5 if len(returns) > 1 else None,
            "final_episodes": len(returns),
            **{key: outcome[key] for key in ("training_return", "env_steps", "updates", "wall_s", "cpu_s")},
            "after_s": after and self.after_s,
            "after_env_steps": after and after["env_steps"],
            "after_mean": after and fmean(after["returns"]),
            "git": found["qherd"],
            "versions.python": found["python"],
            **versions,
            "arithmetic.cpu": found["cpu"],
            "machine.cores": found["cores"],
            "settings": published(self.algorithm, env).source,
            "command": f"python -m benchmarks.study_peers {self.file} --peers {self.algorithm} --envs {env} "
            f"--seeds {seed} --csv FILE",
        }


def runs_of(file: Path, study: Study, seeds: Iterable[int], peers: Iterable[str]) -> list[PeerRun]:
    """Returns the peers' runs in the study's environments, seed by seed."""
    first = {run.env: run for run in reversed(study.runs)}
    seconds = {env: seconds_here(file, env) for env in dict.fromkeys(run.env for run in study.runs)}
    return [
        PeerRun(file, peer, first[env]._replace(seed=seed), study.episodes, after_s)
        for seed in seeds
        for env, after_s in seconds.items()
        for peer in peers
    ]


def seconds_here(file: Path, env: str) -> float | None:
    """Returns the median seconds of qherd's own runs of an environment on this CPU; None where there are none."""
    rows, here = rows_file(file.with_suffix(".csv")), cpu()
    found = [
        float(row["wall_s"])
        for row in ([] if rows is None else values_of(rows))
        if row["env"] == env and row["variant"] == "default" and row["arithmetic.cpu"] == here
    ]
    return median(found) if found else None


def done_in(file: Path) -> set[tuple[str, str, str]]:
    """Returns the keys of a file's rows; none where there is no file.

    Raises:
        ValueError: the file's columns are others.
    """
    rows = values_of(file) if file.exists() else []
    if rows and tuple(rows[0]) != COLUMNS:
        raise ValueError(f"{file} has the columns of another version; name another file")
    return {(row["env"], row["variant"], row["seed"]) for row in rows}


def append(file: Path, row: dict[str, Any]) -> None:
    """Adds a row, and before the first one the names of the columns."""
    new = not file.exists()
    with file.open("a", newline="") as opened:
        table = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
        if new:
            table.writeheader()
        table.writerow(row)


def main(arguments: list[str] | None = None) -> None:
    """The command of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="FILE", help="a study's file")
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="where the rows go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peers", choices=NAMES, nargs="+", default=list(NAMES))
    parser.add_argument("--envs", nargs="+", metavar="ENV", help="these only; the default is all of the study's")
    options = parser.parse_args(arguments)
    study = read_study(options.study, Path("studies"), environ={})
    wanted = runs_of(options.study, study, options.seeds, options.peers)
    peer_python(VENV)  # its installation is no part of the first training
    for each in wanted:
        if each.key in done_in(options.csv) or (options.envs and each.run.env not in options.envs):
            continue
        row = each.train()
        append(options.csv, row)
        print(
            f"{row['run']}: {row['final_mean']:.2f}, standard error {row['final_stderr'] or 0:.2g}, {row['wall_s']} s, "
            f"{row['cpu_s']} s of CPU",
            flush=True,
        )


if __name__ == "__main__":
    main()
