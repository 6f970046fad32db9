"""The published results: docs/results.md is what the rows in results/ come to, and a study of them can be repeated."""

from __future__ import annotations

import csv
import gzip
import html
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from benchmarks import machine, study_peers
from benchmarks.published_settings import PUBLISHED, published
from deploy.reporting.analysis import ScoreStatistics
from deploy.reporting.statistics import Interval
from deploy.studies.study_file import Study, read_study
from docs import pictures, results

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED_FIGURES = yaml.safe_load((results.RESULTS / results.PUBLISHED).read_text())["figures"]
PICTURE = ROOT / "docs" / "peers.svg"
STUDIES = sorted((ROOT / "results").glob("*/*.yaml"))
HEADER = (
    *("env", "variant", "seed", "run", "exit_reason", "counted", "score", "score_is", "env_steps", "wall_s", "cpu_s"),
    *("git", "arithmetic.cpu", "machine.cores", "learner_device"),
)


def study_of(file: Path) -> Study:
    return read_study(file, Path("studies"), environ={})


# -- the page that is there


def test_the_page_is_what_makes_it() -> None:
    assert results.PAGE.read_text() == results.page(), "make it anew: make results-page"


def test_each_picture_shows_the_rows_that_are_there() -> None:
    """By its description, which has all of it in words: each Matplotlib draws letters a little otherwise."""
    drawn = results.pictures()
    assert {file.name for file in results.PICTURES.iterdir()} == set(drawn)
    for name, chart in drawn.items():
        found = re.search("<desc[^>]*>(.*?)</desc>", (results.PICTURES / name).read_text())
        assert found is not None
        assert html.unescape(found[1]) == chart.description, "make it anew: make results-page"
        assert f"]({results.PICTURES.name}/{name})" in results.PAGE.read_text()


def test_the_figure_that_is_compared_is_the_best_that_is_published() -> None:
    for env, figures in PUBLISHED_FIGURES.items():
        bar = results.compared(PUBLISHED_FIGURES, env)
        assert bar is not None
        assert bar["score"] == max(figure["score"] for figure in figures), env


def test_the_readmes_picture_shows_the_rows_that_are_there() -> None:
    drawn, there = (re.search("<dc:description>(.*?)</", svg) for svg in (pictures.peers(), PICTURE.read_text()))
    assert drawn is not None
    assert there is not None
    assert drawn[1] == there[1], "make it anew: make results-page"
    for env in pictures.PANELS:
        assert {"qherd", "SB3 DQN", "SB3 DQN after qherd's seconds"} <= json.loads(html.unescape(drawn[1]))[env].keys()


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_rows_are_of_the_study_beside_them(file: Path) -> None:
    """Each row is one of the file's runs, as long as it says, and no seed is one that options were chosen on."""
    study = study_of(file)
    assert all(run.seed < 100 for run in study.runs)
    rows = results.rows_file(file.with_suffix(".csv"))
    if rows is None:
        assert f"Not run yet of [{file.name}]" in results.PAGE.read_text()
        return
    runs = {
        (run.env, f"qherd{'' if run.variant == 'default' else f', {run.variant}'}", run.seed): run for run in study.runs
    }
    assert [row["command"] for row in results.values_of(rows) if " /" in row["command"]] == [], (
        "it is this clone's alone"
    )
    for row in results.read_rows(rows, ours=True):
        budget = runs[row.env, row.agent, row.seed].config.budget
        assert budget.env_steps is not None
        if row.state == "budget of seconds":
            assert budget.seconds is not None
            assert row.seconds is not None
            assert budget.seconds <= row.seconds < 1.1 * budget.seconds
            assert row.env_steps < budget.env_steps
        else:
            # A run looks at its budget between two slices of work; sequences have few updates for their env steps.
            assert row.score is None or budget.env_steps <= row.env_steps < 1.03 * budget.env_steps


def test_every_published_figure_has_its_conditions_and_its_source() -> None:
    known = yaml.safe_load((ROOT / "results" / "published.yaml").read_text())
    for env, figures in known["figures"].items():
        assert sum(figure.get("compared", False) for figure in figures) == 1, env
        for figure in figures:
            assert {"who", "score", "seeds", "env_steps", "what", "source"} <= set(figure), figure
            assert known["sources"][figure["source"]]["name"]


def test_every_remark_is_on_the_page() -> None:
    remarks = yaml.safe_load((ROOT / "results" / "published.yaml").read_text())["remarks"]
    page = results.page()
    for env, remark in remarks.items():
        assert remark in page, env


# -- what the page makes of rows


def write_rows(file: Path, *rows: Mapping[str, object]) -> None:
    ordinary = {"variant": "default", "exit_reason": "budget of env steps", "counted": 1, "score_is": "final policy"}
    with file.open("w", newline="") as opened:
        table = csv.DictWriter(opened, HEADER, lineterminator="\n")
        table.writeheader()
        for row in rows:
            common = {"env": "CartPole-v1", "env_steps": 50_016, "git": "abc1234", "arithmetic.cpu": "a CPU"}
            table.writerow({**common, **ordinary, "machine.cores": 2.0, "wall_s": 30, "cpu_s": 29, **row})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "published.yaml").write_text((ROOT / "results" / "published.yaml").read_text())
    made = tmp_path / "mine"
    made.mkdir()
    (made / "one.yaml").write_text("environments: [CartPole-v1]\nbudget: {env_steps: 400}\noptions: {mode: inline}\n")
    return made


def test_a_run_that_does_not_count_is_shown_with_its_reason(folder: Path) -> None:
    write_rows(
        folder / "one.csv",
        {"seed": 1, "score": 400},
        {"seed": 0, "score": 500},
        {"seed": 2, "score": "", "counted": 0, "exit_reason": "out of memory"},
    )
    text = results.page(folder.parent)
    assert "| **qherd** | 2 of 3 | 50,000 | 450 | 70.71 | 450 | – | 30 | 29 |" in text
    assert "qherd, seeds 0, 1: 500, 400.\n\nqherd, seed 2 does not count: out of memory.\n" in text
    assert "At commit `abc1234`, on a CPU, 2 cores." in text


def test_peers_stand_beside_the_study_and_its_other_variants(folder: Path) -> None:
    write_rows(folder / "one.csv", {"seed": 0, "score": 500}, {"seed": 0, "score": 300, "variant": "slow"})
    write_rows(folder / "peers.csv", {"seed": 0, "score": 350, "variant": "SB3 DQN"})
    shown = re.findall(r"\| \*\*(.+?)\*\* \| 1 \|", results.page(folder.parent))
    assert shown == ["qherd", "qherd, slow", "SB3 DQN"]
    (chart,) = results.pictures(folder.parent).values()
    assert "SB3 DQN: IQM 350, 1 run. Dotted: 500, published, RL-Zoo DQN." in chart.description


def test_variants_alone_stand_beside_each_other_and_beside_no_published_figure(folder: Path) -> None:
    write_rows(folder / "one.csv", *({"seed": n, "score": 9, "variant": v} for n in (0, 1) for v in ("fast", "slow")))
    text = results.page(folder.parent)
    assert "| CartPole-v1 |" not in text
    assert re.findall(r"\| \*\*(.+?)\*\* \| 2 \|", text) == ["qherd, fast", "qherd, slow"]


def test_runs_that_a_study_has_and_that_have_no_row_are_named(folder: Path) -> None:
    (folder / "one.yaml").write_text(
        "environments: [CartPole-v1]\nvariants: {default: , slow: {learner.lr: 1e-4}}\nseeds: 0-2\n"
        "budget: {env_steps: 400}\n"
    )
    lacks = "Not run yet of [one.yaml](../results/mine/one.yaml): "
    assert f"{lacks}CartPole-v1, seeds 0, 1, 2; CartPole-v1, slow, seeds 0, 1, 2.\n" in results.page(folder.parent)
    write_rows(folder / "one.csv", *({"seed": seed, "score": 500} for seed in range(3)))
    assert f"{lacks}CartPole-v1, slow, seeds 0, 1, 2.\n" in results.page(folder.parent)
    write_rows(
        folder / "one.csv", *({"seed": n, "score": 9, "variant": v} for n in range(3) for v in ("default", "slow"))
    )
    assert "Not run yet" not in results.page(folder.parent)


def test_an_environment_in_which_no_run_counts_has_no_figure(folder: Path) -> None:
    write_rows(folder / "one.csv", {"seed": 0, "score": "", "counted": 0, "exit_reason": "failed"})
    text = results.page(folder.parent)
    assert "| CartPole-v1 | – | – | 0 of 1 count | – | |" in text
    assert "qherd, seed 0 does not count: failed." in text


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        ((101.0, 120.0), "**better**"),
        ((80.0, 99.0), "**worse**"),
        ((90.0, 110.0), "not told apart"),
        ((100.0, 110.0), "not told apart"),
        ((100.0, 100.0), "the same"),
        (None, "too few runs"),
    ],
)
def test_a_verdict_goes_by_the_interval(interval: tuple[float, float] | None, told: str) -> None:
    found = ScoreStatistics(5, 100.0, 1.0, 100.0, None if interval is None else Interval(*interval))
    assert results.verdict(found, 100.0) == told


def test_large_rows_are_compressed_and_read_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    results.write_rows(file, b"few")
    assert (results.rows_file(file), file.read_bytes()) == (file, b"few")
    results.write_rows(file, many := b"many" * 100_000)
    packed = tmp_path / "rows.csv.gz"
    assert (results.rows_file(file), gzip.decompress(packed.read_bytes())) == (packed, many)
    first = packed.read_bytes()
    results.write_rows(file, many)
    assert packed.read_bytes() == first
    results.write_rows(file, b"few")
    assert results.rows_file(file) == file


# -- again


def test_a_folder_without_a_study_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.repeat(folder.parent / "none", folder.parent, []) == 2
    assert "has no study; there are mine" in capsys.readouterr().err


def test_make_repeats_a_study_and_makes_the_page() -> None:
    def told(*words: str) -> str:
        command = ["make", "--no-print-directory", "-n", "-o", ".venv/.stamp-dev", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "-m docs.results repeat classic --parallel 2\n" in told("results-classic", "ARGS=--parallel 2")
    assert told("results-page").endswith("-m docs.results\n.venv/bin/python -m docs.pictures peers\n")


@pytest.fixture
def repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """Repeats the folder's study by a qherd that trains nothing, and reports ``rows`` as they are given; returns the
    exit code and the commands that were called."""
    write_rows(folder / "one.csv", {"seed": 0, "score": 500}, {"seed": 1, "score": 400})

    def repeat(rows: str, *options: str, code: int = 0) -> tuple[int, list[str]]:
        called, stand_in = folder.parent / "called", folder.parent / "qherd"
        called.unlink(missing_ok=True)
        (folder.parent / "rows").write_text(rows)
        reports = f"cat {folder.parent}/rows; exit {code}"
        stand_in.write_text(f"#!/bin/sh\necho $1 >> {called}\nif [ $1 = report ]; then {reports}; fi\n")
        stand_in.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(stand_in.with_name("python")))
        return results.repeat(folder, folder.parent / "studies", options), called.read_text().split()

    return repeat


def test_a_dry_run_writes_no_rows(folder: Path, repeated: Callable[..., tuple[int, list[str]]]) -> None:
    before = (folder / "one.csv").read_bytes()
    for option in ("--dry-run", "--dry_run"):  # tyro takes either
        assert repeated("counted\n1\n1\n1\n", option) == (0, ["study"])
    assert (folder / "one.csv").read_bytes() == before


def test_fewer_runs_that_count_do_not_replace_what_is_published(
    folder: Path, repeated: Callable[..., tuple[int, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "one.csv").read_bytes()
    assert repeated("env,counted\na,1\na,0\na,0\n") == (1, ["study", "report"])
    assert "one.csv has 2 runs that count, and the study 1: it is left as it was" in capsys.readouterr().err
    assert repeated("", code=2) == (1, ["study", "report"])
    assert (folder / "one.csv").read_bytes() == before
    more = "counted,command\n" + f"1,qherd train x --env.path {ROOT}/examples\n" * 50
    assert repeated(more) == (0, ["study", "report"])
    assert (folder / "one.csv").read_text() == more.replace(f"{ROOT}/", "")


@pytest.mark.long
def test_a_study_is_trained_and_its_rows_are_written(folder: Path) -> None:
    assert results.repeat(folder, folder.parent / "studies", []) == 0
    (row,) = results.read_rows(folder / "one.csv", ours=True)
    assert (row.env, row.agent, row.seed) == ("CartPole-v1", "qherd", 0)
    assert row.score is not None
    assert row.seconds is not None
    assert row.cpu_seconds is not None
    assert "| **qherd** | 1 |" in results.page(folder.parent)


# -- peers


def test_published_settings_keep_their_exploration_in_env_steps() -> None:
    settings = published("dqn", "LunarLander-v3")
    assert settings.of(300_000)["exploration_fraction"] * 300_000 == pytest.approx(12_000)
    assert settings.of(1000)["exploration_fraction"] == 1.0
    assert published("qrdqn", "MinAtar/Freeway-v1") == PUBLISHED["qrdqn", "MinAtar"]
    with pytest.raises(KeyError):
        published("dqn", "Pendulum-v1")


def a_peer(folder: Path, monkeypatch: pytest.MonkeyPatch, printed: str, code: int = 0) -> study_peers.PeerRun:
    """A peer's run in whose place a script prints something."""
    script = folder / "peer"
    script.write_text(f"#!/bin/sh\necho '{printed}'\nexit {code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(study_peers, "peer_command", lambda *_, **__: [str(script)])
    file = folder / "one.yaml"
    study = study_of(file)
    return study_peers.runs_of(file, study._replace(episodes=2), [3], ["dqn"])[0]


OUTCOME = (
    '{"env_steps": 500, "updates": 9, "wall_s": 2, "cpu_s": 1, "training_return": 9, "returns": [4, 8], '
    '"after": null, "versions": {}}'
)


def test_a_peers_row_has_its_score_its_seconds_and_its_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "peers.csv"
    study_peers.append(file, a_peer(folder, monkeypatch, OUTCOME).train())
    assert study_peers.done_in(file) == {("CartPole-v1", "SB3 DQN", "3")}
    (row,) = results.read_rows(file, ours=False)
    assert (row.agent, row.seed, row.score, row.env_steps) == ("SB3 DQN", 3, 6.0, 500)
    assert (row.seconds, row.cpu_seconds) == (2.0, 1.0)
    assert "--peers dqn --envs CartPole-v1 --seeds 3" in file.read_text()


def test_a_peer_is_evaluated_after_the_seconds_of_qherds_runs_on_this_cpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(cpu: str, wall_s: str, variant: str = "default", env: str = "CartPole-v1") -> str:
        return f"{env},{variant},{wall_s},{cpu}\n"

    here = machine.describe()["cpu"]
    own = [row(here, "1.0"), row(here, "1.5"), row(here, "9")]
    others = [row("another CPU", "70"), row(here, "71", "double"), row(here, "72", env="Acrobot-v1")]
    (folder / "one.csv").write_text("".join(["env,variant,wall_s,arithmetic.cpu\n", *own, *others]))
    after = OUTCOME.replace('"after": null', '"after": {"env_steps": 300, "returns": [1, 4]}')
    peer = a_peer(folder, monkeypatch, after)
    monkeypatch.setattr(study_peers, "peer_command", lambda *words, **_: [str(folder / "peer"), *words])
    assert peer.command()[-2:] == ["--after", "1.5"]
    study_peers.append(folder / "peers.csv", peer.train())
    final, then = results.read_rows(folder / "peers.csv", ours=False)
    assert (final.agent, final.score, final.env_steps, final.seconds) == ("SB3 DQN", 6.0, 500, 2.0)
    assert (then.agent, then.score, then.env_steps) == ("SB3 DQN after qherd's seconds", 2.5, 300)
    assert (then.seconds, then.cpu_seconds) == (1.5, None)


def test_rows_of_another_version_are_refused_before_a_training(folder: Path) -> None:
    (folder / "peers.csv").write_text("env,variant,seed,score\nCartPole-v1,SB3 DQN,3,9\n")
    with pytest.raises(ValueError, match=r"peers.csv has the columns of another version; name another file"):
        study_peers.done_in(folder / "peers.csv")


@pytest.mark.parametrize(
    ("printed", "code", "why"),
    [
        (OUTCOME, 1, "ended with 1"),
        ("", 0, "without an outcome"),
        (OUTCOME.replace('"updates": 9', '"updates": 0'), 0, "no update"),
        (OUTCOME.replace("500", "399"), 0, "ended after 399 of 400 env steps and 2 episodes of 2"),
        (OUTCOME.replace("500", "9000"), 0, "ended after 9000 of 400"),
        (OUTCOME.replace("[4, 8]", "[4]"), 0, "500 of 400 env steps and 1 episodes of 2"),
    ],
)
def test_a_peer_that_has_not_done_all_of_it_has_no_row(
    printed: str, code: int, why: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match=why):
        a_peer(folder, monkeypatch, printed, code).train()


def test_a_study_that_ends_by_seconds_has_no_peers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "one.yaml").write_text("environments: [CartPole-v1]\nbudget: {env_steps: 400, seconds: 9}\n")
    with pytest.raises(ValueError, match="equal env steps"):
        a_peer(folder, monkeypatch, OUTCOME).train()


@pytest.mark.bench
@pytest.mark.timeout(600)  # the first call installs the peers
def test_both_peers_train_and_are_evaluated(tmp_path: Path) -> None:
    study, rows = tmp_path / "one.yaml", tmp_path / "peers.csv"
    study.write_text("environments: [CartPole-v1]\nbudget: {env_steps: 1500}\nepisodes: 3\noptions: {mode: inline}\n")
    command = [sys.executable, "-m", "benchmarks.study_peers", str(study), "--csv", str(rows), "--seeds", "0"]
    cpu = machine.describe()["cpu"]  # by qherd's row here it is evaluated at once, too
    study.with_suffix(".csv").write_text(f"env,variant,wall_s,arithmetic.cpu\nCartPole-v1,default,0.1,{cpu}\n")
    for _ in range(2):  # the second call has nothing to do
        subprocess.run(command, cwd=ROOT, check=True)
        found = results.read_rows(rows, ours=False)
        agents = [agent + when for agent in ("SB3 DQN", "SB3 QR-DQN") for when in ("", " after qherd's seconds")]
        assert [(row.agent, row.seed) for row in found] == [(agent, 0) for agent in agents]
    assert all(row.score is not None and row.score > 0 for row in found)
    assert [row.env_steps for row in found if row.cpu_seconds is None] == [1, 1]
