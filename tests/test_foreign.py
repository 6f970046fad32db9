"""Files of a run that somebody else has written or damaged, and documents that users give: one clear line, or what was
before; nothing is waited for, nothing fills the memory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_runs import qherd
from hostile import HOSTILE, deep, device, directory, link, pipe, sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.commands.resume import config_of
from deploy.config.cli_types import _yaml_mapping
from deploy.config.errors import ConfigError, RunDirError
from deploy.config.layers import compose, options_in
from deploy.config.models import RunConfig
from deploy.config.numbers import MAX_DEPTH, read_yaml
from deploy.monitoring.discovery import target_groups
from deploy.run_directory.directory import RunDirectory
from deploy.run_directory.files import is_plain
from deploy.run_directory.target import find_run
from deploy.sessions.scale_requests import ScaleFile
from deploy.studies.study_file import read_study
from learner.report import Resumed
from replay.description import DescriptionError, RunDescription
from replay.foreign import Unreadable, parse_json, read_end, read_file, read_object

pytestmark = pytest.mark.timeout(30)
NO_NAMES = ["a\0b", "a\ud800b"]
"""Texts that JSON and YAML can hold, and no path."""
BEST = {
    "version": 1,
    "updates": 1,
    "episodes": 1,
    "mean": 1.0,
    "std": 0.0,
    "lower": 1.0,
    "rank_bound": 1.0,
    "solved": False,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's directory with all that one has."""
    directory = RunDirectory.create(RunConfig(runs_dir=tmp_path, run="r"))
    directory.history.append({"env_steps": 1, "updates": 1})
    directory.history.append({"env_steps": 2, "updates": 2})
    directory.register_metrics("127.0.0.1", 1)
    directory.best.save(b"not weights", BEST)
    directory.close()
    for name in ("scale.json", "replay.url", "summary.json"):
        (directory.path / name).write_text("{}")
    return directory.path


# -- the reader


@pytest.mark.parametrize("hostile", [sparse, pipe, device, link, directory])
def test_only_plain_files_of_a_bounded_size_are_read(tmp_path: Path, hostile: Callable[[Path], None]) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "file"
    file.write_bytes(b"1234")
    assert read_file(file, 4) == b"1234"
    with pytest.raises(Unreadable, match="has 4 bytes, and at most 3 are read"):
        read_file(file, 3)
    hostile(file)
    with pytest.raises(Unreadable, match=str(file)):
        read_file(file, 4)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none", 4)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_path_that_the_system_does_not_take_is_refused_like_any_other(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unreadable, match=r"cannot be read: no file has such a name"):
        read_file(tmp_path / name, 4)
    assert not is_plain(tmp_path / name)
    with pytest.raises(RunDirError, match="no run"):
        RunDirectory.open(tmp_path / name)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000]
)
def test_what_is_no_object_is_refused_with_its_file(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(Unreadable, match=f"{tmp_path}/file is damaged"):
        read_object(tmp_path / "file", 1 << 20)


def test_a_description_of_a_run_that_nests_too_deeply_is_damaged() -> None:
    with pytest.raises(DescriptionError, match="nests too deeply"):
        RunDescription.unpack(b"[" * 100_000)


# -- a run's files

READS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "config": ("config.yaml", lambda run: RunDirectory.open(run).config),
    "resume": ("config.yaml", config_of),
    "counts": ("fences.json", lambda run: RunDirectory.open(run).fences.next_fence()),
    "figures": ("metrics.jsonl", lambda run: RunDirectory.open(run).history.newest()),
    "best": ("checkpoints/best.json", lambda run: RunDirectory.open(run).best.manifest()),
    "eval": ("checkpoints/best.json", lambda run: RunDirectory.open(run).best.load()),
    "weights": ("checkpoints/best-*.weights", lambda run: RunDirectory.open(run).best.load()),
}


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("what", READS)
def test_a_file_that_is_none_is_one_line(run: Path, what: str, hostile: Callable[[Path], None]) -> None:
    name, read = READS[what]
    hostile(next(run.glob(name)))
    if (what, hostile) == ("figures", deep):
        assert read(run) == {}, "a row that is none is passed over"
        return
    with pytest.raises((RunDirError, ConfigError)) as refused:
        read(run)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("hostile", HOSTILE)
def test_those_who_look_on_pass_over_it(run: Path, hostile: Callable[[Path], None]) -> None:
    assert len(list(target_groups([run.parent]))) == 1
    hostile(run / "scrape.json")
    assert list(target_groups([run.parent])) == []
    hostile(run / "scale.json")
    assert ScaleFile(run).read() is None
    hostile(run / "replay.url")
    with pytest.raises(ConfigError, match="has no replay server"):
        find_run(str(run), RunConfig().redis)
    (run / "lock").unlink()
    os.mkfifo(run / "lock")
    assert RunDirectory.open(run).lock.owner() is None


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "metrics.superseded.jsonl", "lock", "summary.json", "checkpoints/best.json"]
)
def test_nothing_is_written_through_a_link(run: Path, name: str) -> None:
    away = run.parent / "away"
    away.write_text("mine\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(away)
    with pytest.raises(RunDirError, match=f"{run / name} is a link or no plain file"):
        RunDirectory.reopen(run)
    assert away.read_text() == "mine\n"


def test_nor_by_the_name_of_a_temporary_file(run: Path) -> None:
    away = run.parent / "away"
    away.write_text("mine\n")
    (run / "summary.json.tmp").symlink_to(away)
    RunDirectory.open(run).write_summary({"a": 1})
    assert (away.read_text(), (run / "summary.json").read_text()) == ("mine\n", '{\n  "a": 1\n}\n')


@pytest.mark.parametrize(
    "row", ["[1]", "{", '{"updates": "x"}', '{"updates": [1]}', '{"updates": 1e999}', "9" * 5000, "[" * 9999]
)
def test_a_row_that_is_none_is_passed_over_and_kept_apart(run: Path, row: str) -> None:
    good = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(f"{good}{row}\n")
    directory = RunDirectory.open(run)
    assert (directory.history.newest()["updates"], len(directory.history.rows())) == (2, 2)
    directory.history.rewind(Resumed(5, 5, {}))
    directory.close()
    assert (run / "metrics.jsonl").read_text() == good
    assert (run / "metrics.superseded.jsonl").read_text() == f"{row}\n"


ANYTHING: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({"a": 1})
)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = RunDirectory.create(RunConfig(runs_dir=tmp_path_factory.mktemp("runs"), run="r"))
    directory.best.save(b"not weights", BEST)
    directory.fences.next_incarnation(0)
    directory.close()
    return directory.path


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_value_in_any_field_is_taken_or_refused_in_words(damaged: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["fences.json", "checkpoints/best.json"]))
    before = (damaged / name).read_text()
    values = json.loads(before)
    values[data.draw(st.sampled_from(sorted(values)))] = data.draw(ANYTHING)
    (damaged / name).write_text(json.dumps(values))
    directory = RunDirectory.open(damaged)
    try:
        if name == "fences.json":
            fence, evaluator, incarnation = (
                directory.fences.next_fence(),
                directory.fences.next_evaluator(),
                directory.fences.next_incarnation(0),
            )
            assert min(fence, evaluator + 1, incarnation) > 0
            assert directory.fences.slots_ever >= 1
            assert directory.fences.nonce
        else:
            best = directory.best.manifest()
            assert best is not None
            assert len(f"{best['mean']:.1f} {best['std']:.1f} {best['lower']:.1f} {best['episodes']}") > 6
            assert (best["rank_bound"] > 0.5) in (True, False)
            directory.best.load()
    except RunDirError:
        return
    finally:
        (damaged / name).write_text(before)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_manifest_that_names_what_can_be_no_file_is_damaged(run: Path, name: str) -> None:
    file = run / "checkpoints" / "best.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"file": name}))
    with pytest.raises(RunDirError, match="cannot be read: no file has such a name"):
        RunDirectory.open(run).best.load()


def test_a_run_that_was_elsewhere_may_have_been_at_what_is_no_path(run: Path) -> None:
    file = run / "fences.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"path": "a\0b"}))
    directory = RunDirectory.reopen(run)
    try:
        assert directory.run == "r"
    finally:
        directory.close()


def test_eval_of_a_hostile_run_is_one_line_and_exit_code_2(run: Path) -> None:
    deep(run / "checkpoints" / "best.json")
    done = qherd("eval", run, cwd=run)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [f"qherd: {run}/checkpoints/best.json is damaged: its JSON nests too deeply"]


# -- documents that users give

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
WRONG = {
    "a bomb": BOMB,
    "deep": "[" * 5000,
    "deep blocks": "".join(" " * n + "a:\n" for n in range(200)),
    "deep by aliases": "a: &a [1]\n" + f"b: {'[' * (MAX_DEPTH + 1)}*a{']' * (MAX_DEPTH + 1)}",
    "in itself": "&a [*a]",
    "a month": "2001-13-45",
    "no number": "!!int x",
    "no digits": "!!int ''",
    "no truth": "!!bool maybe",
    "no time": "!!timestamp soon",
    "a digit too many": "9" * 5000,
    "a key twice": "a: 1\nb: 2\n'a': 3",
    "a key twice within": "a: {b: [{c: 1, c: 1}]}",
    "a key twice by an alias": "? &x a\n: 1\n? *x\n: 2",
    "two merges": "a: &x {b: 1}\nc: {<<: *x, <<: *x}",
    "code": "!!python/object/apply:os.system [true]",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_yaml_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        read_yaml(text)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"config file {tmp_path}/c.yaml.* is no YAML") as refused:
        compose(None, None, tmp_path / "c.yaml", {})
    assert len(str(refused.value)) < 400


def test_a_key_that_a_file_has_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    """Of two values PyYAML takes the last one: in files of options and studies, variables, and on the command line."""
    (file := tmp_path / "c.yaml").write_text("learner:\n  batch: 8\n  lr: 1\n  batch: 9\n")
    why = "it has the key 'batch' in line 2 already"
    with pytest.raises(ConfigError, match=f"^config file {file}, line 4 is no YAML: {why}$"):
        compose(None, None, file, {})
    with pytest.raises(ConfigError, match=f"^study {file}, line 4 is no YAML: {why}$"):
        read_study(file, tmp_path, {})
    twice = "{a: 1, a: 2}"
    with pytest.raises(
        ConfigError, match=r"QHERD_ENV_KWARGS is no YAML value, it has the key 'a' in line 1 already: '"
    ):
        options_in({"QHERD_ENV_KWARGS": twice})
    with pytest.raises(ValueError, match=r"is no YAML mapping like '{gravity: -9}': it has the key 'a' in line 1 al"):
        _yaml_mapping(twice)
    directory = RunDirectory.create(RunConfig(runs_dir=tmp_path, run="r"))
    with directory.config_file.open("a") as config:
        config.write("config: {}\n")
    with pytest.raises(RunDirError, match=r"(?s)config.yaml is damaged: it has the key 'config' in line \d+ already"):
        _ = directory.config
    directory.close()


def test_anchors_of_a_users_file_are_fine() -> None:
    assert read_yaml("a: &x {b: 1}\nc: {<<: *x, b: 2}\n1: 3\n'1': 4") == {"a": {"b": 1}, "c": {"b": 2}, 1: 3, "1": 4}
    assert read_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


@given(st.text(alphabet="&*![]{}:,- \n'\"ab1.<|>%@`#?~", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_yaml_or_refused(text: str) -> None:
    try:
        read_yaml(text)
    except yaml.YAMLError:
        return


def test_a_users_file_may_be_a_link_or_a_pipe_but_has_an_end(tmp_path: Path) -> None:
    """Kubernetes mounts files as links, and a shell's <(...) is a pipe."""
    (tmp_path / "real").write_text("{seed: 3}")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert compose(None, None, tmp_path / "link", {}).seed == 3
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("{seed: 4}"))
    writer.start()
    assert compose(None, None, tmp_path / "pipe", {}).seed == 4
    writer.join()
    for file, environ in ((Path("/dev/zero"), {}), (None, {"QHERD_REDIS_URL_FILE": "/dev/zero"})):
        with pytest.raises(ConfigError, match="/dev/zero has more than 1,048,576 bytes"):
            compose(None, None, file, environ)


def test_json_nested_as_deeply_as_a_document_needs_is_read() -> None:
    assert parse_json(b"[" * 50 + b"]" * 50)


@pytest.mark.parametrize(
    "given", ["redis://127.0.0.1:1/0?run=x", "redis:/u:s3cret@h:1", "u:s3cret@h:1", "redis://u:12/s3cret@h:1"]
)
def test_a_malformed_url_is_one_line_without_what_may_be_a_password(tmp_path: Path, given: str) -> None:
    done = qherd("replay", "stats", given, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert "s3cret" not in done.err
    assert "u:12" not in done.err


def test_a_file_takes_the_memory_of_its_size_whatever_its_bound(tmp_path: Path) -> None:
    """Python's read(n) makes a buffer of n bytes: a bound of the free memory would take all of it."""
    (tmp_path / "file").write_bytes(b"few")
    assert read_file(tmp_path / "file", 1 << 62) == b"few"
    assert read_end(tmp_path / "file", 1 << 62) == (b"few", True)
