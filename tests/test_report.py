"""Reports of runs and studies, as page, Markdown and raw numbers: what is in them, and that nothing breaks them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hostile import HOSTILE, sparse

from benchmarks.synthetic_runs import write_run, write_study
from deploy import cli
from deploy.config.layers import put_option
from deploy.config.numbers import write_yaml
from deploy.reporting.charts import Chart, Line, Lines, Mark, Marks, svg
from deploy.reporting.document import Block, Code, Fold, Heading, Pictures, Table, Text
from deploy.reporting.markdown import write_markdown
from deploy.reporting.page import page
from deploy.reporting.records import read_run
from deploy.run_directory.history import MetricHistory

ENV = "CartPole-v1"
EVIL = "x<script>alert(1)</script> ]]> --> $\\frac{ & \"'` | \x00\x1b[1m"
VOID = {"meta", "br"}


class Tree(HTMLParser):
    """Reads a page strictly: every element is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def qherd(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants in one environment, 5 seeds of each, and a sixth that has failed or has no configuration; of a
    seventh there is nothing, and one run is not in the file."""
    folder = write_study(tmp_path_factory.mktemp("studies") / "mine", [ENV], 6, rows=12, env_steps=6000, others=0)
    failed = folder / "runs" / f"{ENV}--plain--s5" / "summary.json"
    failed.write_text(json.dumps({**json.loads(failed.read_text()), "exit_reason": f"failed: {EVIL}"}))
    (folder / "runs" / f"{ENV}--long--s5" / "config.yaml").unlink()
    shutil.copytree(folder / "runs" / f"{ENV}--long--s4", folder / "runs" / "another")
    (folder / "study.yaml").write_text((folder / "study.yaml").read_text().replace("seeds: 6", "seeds: 7"))
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one", ENV, rows=3)


@pytest.fixture
def a_run(template: Path, tmp_path: Path) -> Path:
    """A short run, to be damaged."""
    return Path(shutil.copytree(template, tmp_path / "one"))


@pytest.fixture(scope="module")
def study_json(study: Path) -> dict[str, Any]:
    return read_json(study)


def change_options(run: Path, options: Mapping[str, Any]) -> None:
    """Has a run's config.yaml say that it was trained with other options."""
    file = run / "config.yaml"
    values = yaml.safe_load(file.read_text())
    for path, value in options.items():
        put_option(values["config"], path, value)
    file.write_text(write_yaml(values))


def read_json(*given: Path) -> dict[str, Any]:
    from deploy.reporting.analysis import analyse
    from deploy.reporting.raw import as_json
    from deploy.reporting.sources import read_sources

    runs, missing = read_sources(given)
    found: dict[str, Any] = json.loads(json.dumps(as_json(analyse("t", "c", runs, missing)), allow_nan=False))
    return found


# -- the page


@pytest.fixture(scope="module")
def study_page(study: Path) -> str:
    assert qherd(study) == 0
    return (study / "report.html").read_text()


def test_the_page_of_a_study(study_page: str) -> None:
    """It names what is missing and what does not count, and asks nobody for anything."""
    text = study_page
    tree = Tree(text)
    shown = " ".join(tree.text)
    assert "11 runs in 1 environment, 10 completed" in shown
    assert "3 runs missing. 1 run left out." in shown
    assert f"{ENV}--long--s5" in shown
    assert "x<script>alert(1)</script> ]]>" in shown  # as text
    assert tree.all("script") == []
    assert not any({"src", "href", "onload", "onclick"} & attributes.keys() for _, attributes in tree.tags)
    assert all(str(each["xlink:href"]).startswith("#") for each in tree.all("use"))
    assert not re.search(r"url\((?!#)|@import", text)
    assert any(each.get("name") == "viewport" for each in tree.all("meta"))
    assert any("default-src 'none'" in str(each.get("content")) for each in tree.all("meta"))
    assert "prefers-color-scheme: dark" in text
    headings = [text[match.end() :].partition("<")[0] for match in re.finditer("<h2>", text)]
    assert headings == ["What differs", "Missing runs", ENV, "How these numbers were made"]


def test_pictures_are_named_and_told_for_who_cannot_see_them(study_page: str) -> None:
    text = study_page
    tree = Tree(text)
    pictures = tree.all("svg")
    assert len(pictures) == 5  # curves by env steps and seconds, scores, profile, improvement
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for picture in pictures:
        assert picture["role"] == "img"
        for name in str(picture["aria-labelledby"]).split():
            assert name in ids
            assert re.search(rf'id="{name}">[^<]{{10,}}<', text), name
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | {str(each["xlink:href"])[1:] for each in tree.all("use")}
    assert used <= set(ids)
    assert {"#0969da", "#bc4c00"} & set(re.findall(r"#[0-9a-f]{6}", text.partition("</style>")[2])) == set()


def test_the_page_of_one_run_tells_how_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "one", ENV, 3)
    assert qherd(run) == 0
    assert capsys.readouterr().out == f"{run}/report.html\n"
    shown = " ".join(Tree((run / "report.html").read_text()).text)
    for part in ("Where its time went", "compute", "Replay and staleness", "Faults survived", "actor restarted"):
        assert part in shown
    assert "rows lost: tail" in shown
    assert f"qherd train {ENV} --seed 3" in shown
    assert "2.13.0" in shown


def test_a_run_that_is_at_work_is_reported_as_far_as_it_is(tmp_path: Path) -> None:
    """Its last row is half written, and it has no summary."""
    run = write_run(tmp_path / "one", ENV, final=False)
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"wall_s": 99999.0, "env_steps": 9999')
    (environment,) = read_json(run)["environments"]
    (found,) = environment["variants"][0]["runs"]
    assert found["exit_reason"].startswith("at work, or killed")
    assert (found["counted"], found["score"]) == (0, None)
    assert (found["wall_s"], found["env_steps"]) == (22, 20_000)
    assert environment["variants"][0]["statistics"] is None


def test_runs_that_were_given_are_compared_by_their_options(tmp_path: Path) -> None:
    one, other = (
        write_run(tmp_path / f"n{n}", ENV, options={"learner": {"n_step": n}, "budget": {"seconds": n / 3}})
        for n in (1, 4)
    )
    assert qherd(one, other, "--out", tmp_path / "page.html") == 0
    text = (tmp_path / "page.html").read_text()
    assert text.index("What differs") < text.index(f"<h2>{ENV}")
    assert re.search(r'learner.n_step</th><td class="number">1</td><td class="number">4</td>', text)


def test_seeds_of_the_same_options_are_one_variant(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"s{seed}", ENV, seed) for seed in (2, 0, 1)]
    (environment,) = read_json(*runs)["environments"]
    (variant,) = environment["variants"]
    assert [run["seed"] for run in variant["runs"]] == [0, 1, 2]
    assert variant["statistics"]["count"] == 3
    assert variant["statistics"]["interval"] is None


def test_a_studys_run_counts_once_its_final_policy_was_played(tmp_path: Path) -> None:
    """So a study that is at work is reported by the final policies that there are."""
    folder = write_study(tmp_path / "mine", [ENV], 2, rows=3, env_steps=600, others=0)
    (folder / "runs" / f"{ENV}--plain--s1" / "evaluations" / "final.json").unlink()
    (environment,) = read_json(folder)["environments"]
    assert environment["score_is"].startswith("final policy")
    plain, long = environment["variants"]
    assert (plain["statistics"]["count"], long["statistics"]["count"]) == (1, 2)
    assert plain["runs"][1]["exit_reason"].endswith("its final policy was not played yet")


def test_what_a_policy_played_before_its_run_went_on_is_none_of_its_last_one(a_run: Path) -> None:
    changed("summary.json", updates=6000)(a_run)
    (environment,) = read_json(a_run)["environments"]
    (run,) = environment["variants"][0]["runs"]
    assert run["final"] is None
    assert environment["score_is"].startswith("newest evaluation during training")
    assert run["best"] is not None


def test_a_summary_from_before_its_run_went_on_is_none(a_run: Path) -> None:
    changed("summary.json", updates=4)(a_run)
    (environment,) = read_json(a_run)["environments"]
    (run,) = environment["variants"][0]["runs"]
    assert (run["counted"], run["final"], run["updates"]) == (0, None, 5000)


def test_a_run_in_the_place_of_another_does_not_count_as_it(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", [ENV], 2, rows=3, env_steps=600, others=0)
    runs = folder / "runs"
    shutil.rmtree(runs / f"{ENV}--plain--s1")
    shutil.copytree(runs / f"{ENV}--plain--s0", runs / f"{ENV}--plain--s1")
    found = read_json(folder)
    (missing,) = found["missing"]
    assert missing["run"] == f"{ENV}--plain--s1"
    assert f"is another run: its run is '{ENV}--plain--s0', and study.yaml has '{ENV}--plain--s1'" in missing["why"]
    plain, _ = found["environments"][0]["variants"]
    assert plain["statistics"]["count"] == 1


def test_a_studys_run_that_went_on_with_other_options_is_another_variant(tmp_path: Path) -> None:
    """Its score is none of its variant's, and the table and the commands say what it has done."""
    folder = write_study(tmp_path / "mine", [ENV], 3, rows=3, env_steps=600, others=0)
    change_options(folder / "runs" / f"{ENV}--plain--s1", {"learner.lr": 0.01})
    change_options(
        folder / "runs" / f"{ENV}--long--s0", {"learner.lr": 0.01, "env.kwargs": {"a": 1}, "actors.lanes": 7}
    )
    (environment,) = read_json(folder)["environments"]
    seeds = {each["variant"]: [run["seed"] for run in each["runs"]] for each in environment["variants"]}
    assert seeds == {
        "plain with learner.lr 0.001": [0, 2],
        "plain with learner.lr 0.01": [1],
        f"long: {ENV}--long--s0": [0],
        f"long: {ENV}--long--s1 and 1 more": [1, 2],
    }
    assert qherd(folder, "--markdown", tmp_path / "md") == 0
    text = (tmp_path / "md" / "report.md").read_text()
    assert "| learner.lr | 0.001 | 0.01 | 0.01 | 0.001 |" in text
    commands = [line for line in text.splitlines() if f"# {ENV}, plain" in line]
    assert [("--learner.lr 0.01" in line, line.partition(", seeds ")[2]) for line in commands] == [
        (False, "0 2"),
        (True, "1"),
    ]


def test_the_same_options_in_other_words_are_one_variant(tmp_path: Path) -> None:
    """As a file has them whose keys were sorted meanwhile, which qherd study takes for the same."""
    folder = write_study(tmp_path / "mine", [ENV], 2, rows=3, env_steps=600, others=0)
    for seed, kwargs in enumerate(({"a": 1, "b": 0}, {"b": False, "a": 1.0})):
        change_options(folder / "runs" / f"{ENV}--plain--s{seed}", {"env.kwargs": kwargs})
    (environment,) = read_json(folder)["environments"]
    assert {each["variant"]: len(each["runs"]) for each in environment["variants"]} == {"plain": 2, "long": 2}


def test_a_markdown_report_of_any_name_is_written_anew(template: Path, tmp_path: Path) -> None:
    run = shutil.copytree(template, tmp_path / "a\nb")
    assert [qherd(run, "--markdown", tmp_path / "md") for _ in range(2)] == [0, 0]


def test_studies_of_one_name_are_not_one_study(tmp_path: Path) -> None:
    """As those of two machines have it, or from before and after a change."""
    given = [write_study(tmp_path / place / "s", [ENV], 2, rows=3, env_steps=600, others=0) for place in ("a", "b")]
    (environment,) = read_json(*given)["environments"]
    counts = {each["variant"]: each["statistics"]["count"] for each in environment["variants"]}
    assert counts == {f"{study}: {variant}": 2 for study in given for variant in ("plain", "long")}


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"d{seed}" / "x", ENV, seed, rows=3) for seed in (0, 1)]
    ((variant,),) = [environment["variants"] for environment in read_json(*runs)["environments"]]
    assert [run["run"] for run in variant["runs"]] == [str(run) for run in runs]
    assert set(variant["curves"]["env_steps"]["runs"]) == {str(run) for run in runs}


def test_a_stray_file_is_no_run_and_what_is_left_out_is_not_missing(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", [ENV], 2, rows=3, env_steps=600, others=0)
    (folder / "runs" / ".DS_Store").touch()
    assert read_json(folder)["missing"] == []


def test_a_run_at_work_has_its_seconds_and_a_best_policy_as_chosen(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", ENV, final=False)
    (run / "summary.json").unlink()
    assert qherd(run) == 0
    shown = " ".join(Tree((run / "report.html").read_text()).text)
    assert "1 run in 1 environment, 0 completed, 22" in shown
    assert "best policy (selected), after the run" not in shown


@pytest.mark.parametrize("way", ["page", "markdown"])
def test_a_comment_behind_a_command_is_one_line_and_any_text_can_be_written(tmp_path: Path, way: str) -> None:
    """Whoever pastes a report's commands runs none that an environment's name holds."""
    evil = "CartPole-v1\ntouch pwned #"
    written = [write_run(tmp_path / f"r{seed}", ENV, seed, rows=3) for seed in (0, 1)]
    runs = [run.rename(tmp_path / f"{run.name}\udcff") for run in written]
    for run in runs:
        config = run / "config.yaml"
        config.write_text(config.read_text().replace(f"id: {ENV}", f"id: {json.dumps(evil)}"))
        for file in (run / FINAL, run / BEST):
            file.write_text(file.read_text().replace(json.dumps(ENV), json.dumps(evil)))
    where: list[str | Path] = (
        ["--markdown", tmp_path / "md"] if way == "markdown" else ["--out", tmp_path / "page.html"]
    )
    assert qherd(*runs, *where) == 0
    text = (tmp_path / "md" / "report.md" if way == "markdown" else tmp_path / "page.html").read_text()
    (comment,) = re.findall(r"    # (.*)", text)
    assert "touch pwned #, " in comment
    assert comment.endswith("seeds 0 1") or "seeds 0 1<" in comment


def test_a_copy_of_a_run_does_not_count_beside_it(
    a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(a_run, tmp_path / "backup")
    assert qherd(a_run, tmp_path / "backup") == 2
    assert f"{tmp_path / 'backup'} and {a_run} are one run, of which one is a copy" in capsys.readouterr().err


def test_policies_that_were_not_played_alike_are_said_not_to_compare(tmp_path: Path) -> None:
    runs, page_file = [write_run(tmp_path / f"s{seed}", ENV, seed, rows=3) for seed in (0, 1)], tmp_path / "page.html"
    assert qherd(*runs, "--out", page_file) == 0
    assert "their scores do not compare" not in page_file.read_text()
    changed(FINAL, epsilon=0.001)(runs[1])
    assert qherd(*runs, "--out", page_file) == 0
    assert "ε 0/0.001. Not all were played alike, so that their scores do not compare." in page_file.read_text()


def test_a_text_is_no_formula_in_a_spreadsheet(a_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = (a_run / "config.yaml").read_text()
    (a_run / "config.yaml").write_text(config.replace("git: 897de24", "git: =HYPERLINK(1)"))
    assert qherd(a_run, "--csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["git"], row["env_steps"]) == ("'=HYPERLINK(1)", "20000")


def test_a_study_of_which_one_run_has_begun_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_study(tmp_path / "mine", [ENV], 1, rows=3, env_steps=600, others=0)
    shutil.rmtree(folder / "runs" / f"{ENV}--long--s0")
    assert qherd(folder) == 0
    text = Path(capsys.readouterr().out.strip()).read_text()
    assert "samples per insert" in text
    assert "not begun" in text


# -- what is written


HTML = "<!DOCTYPE html>\n<title>pytest's own</title>"
NOTES = "# Notes\n\n```sh\nqherd report runs/a --markdown .\n```\n\nprecious\n"


@pytest.mark.parametrize(
    ("file", "text"),
    [("report.html", HTML), ("md/report.md", HTML), ("md/report.md", NOTES), ("md/report.md", f"{NOTES}```\n1\n```\n")],
)
def test_a_users_own_file_is_not_written_over_unasked(
    file: str, text: str, a_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report is, whenever there is a newer one."""
    monkeypatch.chdir(tmp_path)
    other = write_run(tmp_path / "two", ENV, 1, rows=3)
    where = ["--markdown", "md"] if file.endswith(".md") else []
    assert (qherd(a_run, other, *where), qherd(a_run, other, *where)) == (0, 0)
    Path(file).write_text(text)
    assert qherd(a_run, other, *where) == 2
    assert Path(file).read_text() == text
    if not where:
        assert qherd(a_run, other, "--out", file) == 0


@pytest.mark.timeout(30)
@pytest.mark.parametrize("place", ["report.html", "md/report.md"])
def test_of_a_users_own_file_only_an_end_is_read(
    place: str, a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be as big as a disk."""
    file = (a_run if place == "report.html" else tmp_path) / place
    file.parent.mkdir(exist_ok=True)
    file.touch()
    sparse(file)
    before = file.stat()
    where: list[str | Path] = [] if place == "report.html" else ["--markdown", tmp_path / "md"]
    assert qherd(a_run, *where) == 2
    assert f"{file} is there, and qherd report has not written it" in capsys.readouterr().err
    assert (file.stat().st_size, file.stat().st_mtime) == (before.st_size, before.st_mtime)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_page_is_not_written_into_a_link_or_a_pipe(
    kind: str, a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "precious.html"
    target.write_text("precious")
    place = a_run / "report.html"
    place.symlink_to(target) if kind == "link" else os.mkfifo(place)
    assert qherd(a_run) == 2
    assert f"{place} is a link or no plain file" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert qherd(a_run, "--csv") == 0


@pytest.mark.parametrize("name", ["report.md", "report-1.png"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_markdown_is_not_written_into_a_link_or_a_pipe(
    kind: str, name: str, a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    place = tmp_path / "out" / name
    place.parent.mkdir()
    place.symlink_to(target) if kind == "link" else os.mkfifo(place)
    assert qherd(a_run, "--markdown", place.parent) == 2
    assert f"{place} cannot be written: it is a link or no plain file" in capsys.readouterr().err
    assert target.read_text() == "precious"


def test_numbers_beyond_every_axis_are_left_out(a_run: Path) -> None:
    rows = (a_run / "metrics.jsonl").read_text().splitlines()
    first = {**json.loads(rows[0]), "greedy_return": 1e308, "wall_s": -1e308}
    (a_run / "metrics.jsonl").write_text("\n".join([json.dumps(first), *rows[1:]]) + "\n")
    assert qherd(a_run) == 0


# -- the raw numbers


def test_the_json_has_what_the_runs_have(study: Path, study_json: dict[str, Any]) -> None:
    """The mean of the final evaluations' returns, run by run, and their statistics."""
    (environment,) = study_json["environments"]
    by_name = {each["variant"]: each for each in environment["variants"]}
    assert {name: each["statistics"]["count"] for name, each in by_name.items()} == {"plain": 5, "long": 5}
    for name, each in by_name.items():
        files = [study / "runs" / f"{ENV}--{name}--s{seed}" / "evaluations" / "final.json" for seed in range(5)]
        scores = [float(np.mean(json.loads(file.read_text())["returns"])) for file in files]
        assert [run["score"] for run in each["runs"] if run["counted"]] == pytest.approx(scores)
        assert each["statistics"]["mean"] == pytest.approx(np.mean(scores))
        assert each["statistics"]["iqm"] == pytest.approx(np.mean(sorted(scores)[1:4]))
        low, high = each["statistics"]["interval"]
        assert min(scores) <= low < each["statistics"]["iqm"] < high <= max(scores)
        curve = each["curves"]["env_steps"]
        assert curve["x"][-1] == 6000
        assert curve["iqm"][-1] is not None
    assert {each["run"]: each["why"].rpartition(": ")[2] for each in study_json["missing"]} == {
        f"{ENV}--plain--s6": "not begun",
        f"{ENV}--long--s5": "it has no config.yaml; budget of env steps",
        f"{ENV}--long--s6": "not begun",
        "another": "study.yaml does not have it",
    }
    (improvement,) = environment["improvements"]
    assert (improvement["better"], improvement["than"]) == ("long", "plain")  # the file's first is the baseline
    better, worse = (
        [run["score"] for run in by_name[name]["runs"] if run["counted"]]
        for name in (improvement["better"], improvement["than"])
    )
    assert improvement["probability"] == np.mean([a > b for a in better for b in worse])


def test_the_csv_has_a_row_per_run(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qherd(study, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["variant"], row["seed"]) for row in rows[:6]] == [("plain", str(seed)) for seed in range(6)]
    first = rows[0]
    assert (first["counted"], rows[5]["counted"]) == ("1", "0")
    assert first["git"] == "897de24"
    assert first["arithmetic.cpu"] == "A Processor"
    assert first["command"] == f"qherd train {ENV}"
    assert float(first["wall_s"]) == 15.5


def test_where_a_run_has_no_final_evaluation_the_newest_screen_counts_for_all(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"s{seed}", ENV, seed, final=seed > 0) for seed in range(2)]
    (environment,) = read_json(*runs)["environments"]
    assert "newest evaluation during training" in environment["score_is"]
    (variant,) = environment["variants"]
    assert [run["score"] for run in variant["runs"]] == [run["newest_evaluation"] for run in variant["runs"]]


def test_the_training_return_is_that_of_the_last_tenth(tmp_path: Path) -> None:
    """20 rows to 20,000 env steps; the last tenth are the episodes after 18,000: 40 of them."""
    run = read_run(write_run(tmp_path / "one", ENV))
    total = run.columns["actor_returns_sum"]
    assert run.training_return == pytest.approx((total[-1] - total[17]) / 40)


def test_columns_are_those_of_the_parsed_rows(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", ENV)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": NaN, "wall_s": null}\n{"env_steps": 1e999}\nno row\n{"wall_s": 7}\n')
    history = MetricHistory(folder)
    names = ("wall_s", "env_steps", "greedy_return", "write_failures")
    found = history.columns(names)
    expected = [[row.get(name, np.nan) for row in history.rows()] for name in names]
    for name, values in zip(names, expected, strict=True):
        assert found[name][:20].tolist() == pytest.approx(values[:20], nan_ok=True)
    assert found["wall_s"][20:] == pytest.approx([np.nan, np.nan, 7], nan_ok=True)
    assert found["env_steps"][20:] == pytest.approx([np.nan] * 3, nan_ok=True)


# -- Markdown


def test_the_markdown_has_pictures_beside_it(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qherd(study, "--markdown", tmp_path / "out") == 0
    assert capsys.readouterr().out == f"{tmp_path}/out/report.md\n"
    text = (tmp_path / "out" / "report.md").read_text()
    named = re.findall(r"\]\((report-\d+\.png)\)", text)
    assert sorted(named) == sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in named)
    assert "<script>" not in text.replace("\\<", "")


def test_nothing_in_a_text_is_markup() -> None:
    """Neither in HTML nor in Markdown, wherever a name may stand."""
    drawing = Lines(EVIL, EVIL, tuple(Line(np.arange(3.0), np.arange(3.0), i, f"_{EVIL}{i}") for i in range(2)))
    charts = (
        Chart(EVIL, EVIL, drawing),
        Chart(EVIL, EVIL, Marks(EVIL, (Mark(EVIL, (1.0,), 1.0, (0.5, 1.5), 0),))),
    )
    blocks: list[Block] = [
        Heading(EVIL, 1),
        Text(EVIL),
        Code(EVIL),
        Table(EVIL, (EVIL, EVIL), ((EVIL, "1"),)),
        Pictures(charts),
        Fold(EVIL, (Text(EVIL),)),
    ]
    text = page(EVIL, blocks)
    tree = Tree(text)
    assert tree.all("script") == []
    assert "\x00" not in text
    assert sum("alert(1)</script> ]]>" in each for each in tree.text) >= 10


def test_a_code_block_ends_where_it_ends(tmp_path: Path) -> None:
    path = write_markdown(tmp_path / "new" / "folder", [Code("a\n````\nb"), Table("c|d", ("x|y",), (("a\n| b",),))])
    text = path.read_text()
    assert text.startswith("`````text\na\n````\nb\n`````\n")
    assert "| x\\|y |" in text
    assert "| a \\| b |" in text


def test_pictures_of_many_variants_and_of_numbers_that_are_none() -> None:
    x = np.array([0.0, 1.0, 2.0])
    lines = tuple(Line(x, np.array([np.nan, i, np.nan]), i, f"v{i}", band=(x, x)) for i in range(10))
    drawn = svg(Chart("t", "d", Lines("x", "y", lines)), "k")
    assert [drawn.count(f">v{i}<") for i in range(10)] == [1] * 10


# -- what cannot be reported


def changed(name: str, **values: Any) -> Callable[[Path], object]:
    """What changes a JSON file of a run."""

    def change(run: Path) -> None:
        (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | values))

    return change


FINAL, BEST = "evaluations/final.json", "evaluations/best.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), r"one is no run: it has no config.yaml"),
        (lambda run: (run / "config.yaml").write_text("qherd: 1\nconfig: {learner: {lr"), r"config.yaml is damaged"),
        (lambda run: (run / "config.yaml").write_text("a: 1"), r"config.yaml is damaged: it has no options"),
        (
            lambda run: (run / "config.yaml").write_text("config: {seed: -1, replay: {alpha: 0.5}}"),
            r"config.yaml, as this qherd has it\):\n  seed: .*\n  replay.alpha: the option is called",
        ),
        (lambda run: (run / "metrics.jsonl").unlink(), r"one has nothing to report yet"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b'{"env_steps": 1'), r"one has nothing to report yet"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\x00" * 999), r"one has nothing to report yet"),
        (
            lambda run: (run / "summary.json").write_text('{"exit_reason": "sol'),
            r"summary.json is damaged: it is no JSON",
        ),
        (lambda run: (run / "summary.json").write_text('{"exit_reason": 3}'), r"summary.json is damaged: exit_reason"),
        (
            changed("summary.json", holdout_mean=5.0, holdout_episodes=0),
            r"summary.json is damaged: holdout_mean is there",
        ),
        (changed("summary.json", final_mean=5.0, final_updates=None), r"summary.json is damaged: final_mean is there"),
        (changed("summary.json", env_steps=10**400), r"summary.json is damaged: env_steps"),
        (changed("summary.json", chunks_refused={"x": 2**63}), r"summary.json is damaged: chunks_refused.x"),
        (changed("summary.json", holdout_episodes=-4), r"summary.json is damaged: holdout_episodes"),
        (changed("summary.json", wall_s=-1.0), r"summary.json is damaged: wall_s"),
        (changed("summary.json", eval_mean=1e200), r"summary.json is damaged: eval_mean"),
        (changed(FINAL, returns=[], episodes=0), r"final.json is damaged: returns"),
        (changed(FINAL, returns=[math.nan]), r"final.json is damaged: returns.0"),
        (changed(FINAL, returns=[1e308, 1e308]), r"final.json is damaged: returns.0"),
        (changed(FINAL, selected=True), r"final.json is damaged: its policy is the final one, and was selected"),
        (changed(BEST, selected=False), r"best.json is damaged: its policy is the best one, and was not selected"),
        (changed(FINAL, episodes=7), r"final.json is damaged: episodes is 7, and it has 100 returns"),
        (changed(FINAL, mean=500.0), r"final.json is damaged: mean is 500, and that of its returns 1"),
        (changed(FINAL, epsilon=5.0), r"final.json is damaged: epsilon"),
        (changed(FINAL, run="two"), r"final.json is of another run: run is 'two' in it, and 'one' here"),
        (changed(FINAL, env="Acrobot-v1"), r"final.json is of another run: env is 'Acrobot-v1' in it"),
        (lambda run: shutil.copy(run / BEST, run / FINAL), r"final.json is of another run: policy is 'best' in it"),
    ],
)
def test_a_damaged_run_is_one_message(
    damage: Callable[[Path], object], message: str, a_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(a_run)
    assert qherd(a_run) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(rf"qherd: .*{message}.*\n", shown.err, re.S)
    assert not (a_run / "report.html").exists()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_somebody_put_in_the_place_of_a_file_is_one_message(
    hostile: Callable[[Path], None], a_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile(a_run / "evaluations" / "final.json")
    assert qherd(a_run) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere is no run"),
        (("one", "one"), "is given twice"),
        (("one", "--json", "--csv"), "give one of them"),
        (("one", "--out", "nowhere/page.html"), "nowhere is no folder: make it, or choose another --out"),
        (("one", "--out", "one/config.yaml"), "--out one/config.yaml: the report is a page, whose name ends in .html"),
        ((), "no run can be reported: none is given: name runs or studies"),
        (("empty",), "no run can be reported: CartPole-v1--default--s0: not begun"),
        (("damaged",), "study damaged/study.yaml: environments: give a list"),
    ],
)
def test_a_wrong_call_is_one_message(
    arguments: tuple[str, ...],
    message: str,
    a_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(a_run.parent)
    Path("empty").mkdir()
    Path("empty/study.yaml").write_text("environments: [CartPole-v1]\nbudget: {env_steps: 9}\n")
    Path("damaged").mkdir()
    Path("damaged/study.yaml").write_text("environments: 3\n")
    assert qherd(*arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
