"""deploy/slurm/qherd.sbatch on one machine of its own, with Slurm's three commands played: srun runs its command here,
scontrol tells names and notes who is queued again. All else is real: server, ray symmetric-run, driver, actors."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import ROOT
from nodes import BIN, Network, Node, Program, network, secrets_shown

pytestmark = [pytest.mark.root, pytest.mark.long, pytest.mark.timeout(600)]

SBATCH = ROOT / "deploy" / "slurm" / "qherd.sbatch"
SRUN = """#!/bin/sh
echo "srun $*" >>"$SHARED/asked"
while [ "${1#--}" != "$1" ]; do shift; done
SLURM_NODEID=0 "$@" || true
exit 137 # as where another node had to be killed
"""
SCONTROL = """#!/bin/sh
case "$1 $2" in
"show hostnames") hostname ;;
requeue*) echo "$2" >>"$SHARED/requeued" ;;
esac
"""


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Network]:
    assert os.geteuid() == 0, "needs root, for network namespaces"
    with network(tmp_path) as made:
        yield made


def submit(node: Node, folder: Path, restarts: int, *more: str) -> Program:
    """What sbatch does with the file, on the first node."""
    env = {
        "PATH": f"{folder}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SLURM_JOB_ID": "17",
        "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "4",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_SUBMIT_DIR": str(folder),
        "SHARED": str(folder),
        "ACTIVATE": str(BIN / "activate"),
        "RUN": "s",
        "CI": "1",
    }
    options = ["CartPole-v1", "--eval.threshold", "None", "--checkpoint.every-s", "5", *more]
    return node.start(SBATCH, *options, env=env, name="sbatch")


def test_a_job_whose_time_is_up_is_queued_again_and_goes_on(net: Network, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    node, curves = net.add("n1"), tmp_path / "runs" / "s" / "metrics.jsonl"

    def env_steps() -> int:
        lines = curves.read_text().splitlines(keepends=True) if curves.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return int(json.loads(whole[-1])["env_steps"]) if whole else 0

    job = submit(node, tmp_path, 0)
    job.until(lambda: env_steps() > 1500, "env steps", 180)
    shown = node.run("ps", "-eo", "args").stdout.splitlines()
    assert sum(line.startswith("ray::ActorWorker") for line in shown) == 2, "4 CPUs, two of them for learner and server"
    assert any(re.search("valkey-server|redis-server", line) for line in shown), "as the server is called here"
    private = tmp_path / ".qherd-job-17.0"
    assert secrets_shown(private, tmp_path, [node]) == []
    job.signal(signal.SIGTERM)
    assert job.finish(60) == 75, job.out
    assert "--cpus-per-task=4" in (tmp_path / "asked").read_text()
    assert "queued again" in job.out
    assert (tmp_path / "requeued").read_text() == "17\n"
    assert not private.exists(), "the job's secrets end with it"
    left = node.run("ps", "-eo", "args").stdout
    assert not re.search("valkey-server|redis-server", left), left
    before = json.loads((tmp_path / "runs" / "s" / "summary.json").read_text())["env_steps"]

    again = submit(node, tmp_path, 1, "--budget.env-steps", str(before + 1000))
    assert again.finish(240) == 0, again.out
    assert "resumed from checkpoint 000001-" in again.out
    summary = json.loads((tmp_path / "runs" / "s" / "summary.json").read_text())
    assert (summary["exit_reason"], summary["env_steps"] >= before + 1000) == ("budget of env steps", True), summary
    assert (tmp_path / "requeued").read_text() == "17\n", "a run that is over is not queued again"
