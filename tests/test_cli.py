"""The command line: its help, its dry run, and that bad input is one clear message, exit code 2, and nothing else."""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import redis
import yaml
from cli_runs import QHERD, Finished, qherd
from disks import small_disk
from pydantic import BaseModel

from deploy import __version__
from deploy.cli import USAGE, main
from deploy.commands.dataset import Dataset
from deploy.commands.evaluate import Eval
from deploy.commands.export import Export
from deploy.commands.record import Record
from deploy.commands.report import Reported
from deploy.commands.train import Train
from deploy.config.layers import compose, preset_names
from deploy.config.models import option_paths, sections
from deploy.server.binary import find_server

CARTPOLE = ("train", "CartPole-v1")
PASSWORD = "s3cr3t"


# -- help and dry run


def class_body(part: type) -> list[ast.stmt]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
    assert isinstance(tree.body[0], ast.ClassDef)
    return tree.body[0].body


def docs(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Options as they are typed, and the docstring below each field in the source."""
    below = {
        field.target.id: text.value.value
        for part in reversed(model.__mro__[: model.__mro__.index(BaseModel)])  # fields may be inherited
        for field, text in pairwise(class_body(part))
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from docs(kind, prefix if name == "options" else f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}".replace("_", "-"), str(below[name])


def words(text: str) -> str:
    """The text's words, without boxes and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def train_help(folder: Path) -> str:
    done = qherd("train", "--help", cwd=folder)
    assert (done.code, done.err) == (0, "")
    return words(done.out)


@pytest.mark.parametrize(("option", "doc"), list(docs(Train)), ids=lambda value: value[:30])
def test_the_help_of_train_has_each_option_with_its_text(train_help: str, option: str, doc: str) -> None:
    assert re.search(rf"--{option}[ ,]", train_help)
    assert words(doc) in train_help


@pytest.mark.parametrize(
    ("command", "model"),
    [("eval", Eval), ("record", Record), ("report", Reported), ("export", Export), ("dataset", Dataset)],
)
def test_the_help_has_each_option_with_its_text(
    command: str, model: type[BaseModel], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = words(capsys.readouterr().out)
    for option, doc in docs(model):
        named = {"run": "RUN", "given": "RUN|STUDY...", "as-json": "--json", "as-csv": "--csv", "from-": "--from"}
        typed = named.get(option, f"--{option}")
        assert typed in shown
        assert words(doc) in shown


def test_the_help_shows_the_presets_own_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "CartPole-v1", "--help"])
    assert "(default: 0.001)" in words(capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_qherd_alone_explains_its_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"qherd {command} " in shown for command in ("train", "eval", "record", "export", "dataset"))


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"qherd {__version__}\n")


def test_the_dry_run_prints_yaml_that_loads_back_to_the_same_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QHERD_LEARNER_BATCH", "32")
    options = ["--learner.lr", "2e-3", "--learner.network.hidden", "32", "16", "--env.path", "envs", "--seed", "7"]
    with pytest.raises(SystemExit) as ended:
        main(["train", "CartPole-v1", *options, "--dry-run"])
    assert ended.value.code == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    monkeypatch.delenv("QHERD_LEARNER_BATCH")
    config = compose(None, None, tmp_path / "c.yaml", {})
    assert (config.learner.lr, config.learner.batch, config.seed) == (2e-3, 32, 7)
    assert config.learner.network.hidden == (32, 16)
    with pytest.raises(SystemExit):
        main(["train", "--config", "c.yaml", "--dry-run"])
    assert capsys.readouterr().out == (tmp_path / "c.yaml").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"c.yaml"}


def test_the_command_line_wins_over_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QHERD_LEARNER_LR", "3e-3")
    monkeypatch.setenv("QHERD_REDIS_URL", f"redis://u:{PASSWORD}@variable:1")
    shown = {}
    for options in ([], ["--learner.lr", "4e-3", "--redis.url", f"redis://:{PASSWORD}@typed"]):
        with pytest.raises(SystemExit):
            main(["train", "CartPole-v1", *options, "--dry-run"])
        out = capsys.readouterr().out
        assert PASSWORD not in out
        values = yaml.safe_load(out)
        shown[len(options)] = values["learner"]["lr"], values["redis"]["url"]
    assert shown == {0: (3e-3, "redis://u:***@variable:1"), 4: (4e-3, "redis://:***@typed")}


def test_several_servers_come_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    urls = [f"redis://:{PASSWORD}@a", f"redis://:{PASSWORD}@b:7000"]
    with pytest.raises(SystemExit):
        main(["train", "CartPole-v1", "--redis.urls", *urls, "--seed", "3", "--dry-run"])
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["redis"]["urls"] == ["redis://:***@a", "redis://:***@b:7000"]
    assert values["seed"] == 3


@pytest.mark.parametrize("more", [["--redis.url", f"redis://:{PASSWORD}@c"], []], ids=["one and several", "twice"])
def test_servers_that_contradict_each_other_are_refused(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "CartPole-v1", "--redis.urls", *[f"redis://:{PASSWORD}@a"] * 2, *more])
    assert ended.value.code == 2
    shown = "".join(capsys.readouterr())
    assert "redis.urls" in shown
    assert PASSWORD not in shown


def test_the_help_has_each_section_with_its_text(train_help: str) -> None:
    shown = words(train_help)
    for model, name in sections():
        assert not name or words(inspect.getdoc(model) or "") in shown, name


def test_the_help_names_every_preset(train_help: str) -> None:
    *others, last = preset_names()
    assert f"Start from these values: {', '.join(others)} or {last}." in words(train_help)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--learner.munchausen.enabled --learner.algorithm c51", "learner: learner.munchausen is for dqn, qr_dqn and"),
        (
            "--learner.algorithm c51 --learner.c51.v-max -20",
            "learner.c51: v_min has to be below v_max, got -10 and -20",
        ),
        ("--learner.reward-scale inf", "learner.reward_scale: Input should be a finite number, got inf"),
        ("--learner.network.hidden 8 0", "learner.network.hidden.1: Input should be greater than or equal to 1, got 0"),
        ("--learner.algorithm sarsa", "learner.algorithm: algorithm 'sarsa' is unknown: use dqn"),
        ("--redis.url redis://a --redis.urls redis://b", "redis: redis.url and redis.urls are both given"),
    ],
)
def test_what_does_not_fit_together_is_told_in_qherds_words(
    options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "CartPole-v1", *options.split()])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"qherd: configuration (command line):\n  {told}")
    assert "input_value" not in shown
    assert "Value error" not in shown
    assert "{" not in shown


@pytest.mark.parametrize(
    ("variable", "value"),
    [("QHERD_REDIS_URL", f"redis://:{PASSWORD}@a"), ("QHERD_REDIS_URLS", f"[redis://:{PASSWORD}@a, redis://b]")],
)
def test_the_help_does_not_show_the_urls_of_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        main(["train", "CartPole-v1", "--help"])
    assert ended.value.code == 0
    shown = "".join("".join(capsys.readouterr()).replace("│", "").split())  # lines are wrapped
    assert "(set;notshown)" in shown
    assert PASSWORD not in shown


def test_env_kwargs_come_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "FrozenLake-v1", "--env.kwargs", "{is_slippery: false}", "--dry-run"])
    assert ended.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["env"]["kwargs"] == {"is_slippery": False}


@pytest.mark.parametrize("text", ["1e6", "1_000_000", "1.0e6"])
def test_whole_numbers_on_the_command_line_are_written_as_people_write_them(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    options = ("--budget.env-steps", text, "--learner.network.hidden", "1e2", "64", "--eval.threshold", "-1e2")
    with pytest.raises(SystemExit) as ended:
        main(["train", "CartPole-v1", *options, "--run", "12e4", "--env.kwargs", "{gravity: -1e1}", "--dry-run"])
    assert ended.value.code == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert (values["budget"]["env_steps"], values["learner"]["network"]["hidden"]) == (10**6, [100, 64])
    assert (values["eval"]["threshold"], values["env"]["kwargs"], values["run"]) == (-100, {"gravity": -10}, "12e4")


# -- bad input


def assert_refused(done: Finished, folder: Path, *texts: str) -> None:
    """Exit code 2, one clear message on stderr, nothing made, nothing left."""
    message = words(done.err.replace(USAGE.rstrip(), "USAGE"))
    assert done.code == 2, done
    assert message, done
    assert "Traceback" not in done.err + done.out
    assert "pydantic.dev" not in message
    assert message.count("qherd: ") <= 1
    assert PASSWORD not in done.err + done.out
    for text in texts:
        assert re.search(text, message), (text, message)
    assert done.leftovers == []
    assert not (folder / "runs").exists()


ENVS = """
import gymnasium as gym

class Walk(gym.Env):
    observation_space, action_space = gym.spaces.Discrete(5), gym.spaces.Discrete(2)

class Texts(Walk):
    observation_space = gym.spaces.Text(5)

class Unmade(Walk):
    def __init__(self):
        raise RuntimeError("the licence has expired")

gym.register("Walk-v0", Walk)
gym.register("Texts-v0", Texts)
gym.register("Unmade-v0", Unmade)
"""


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        pytest.param(["trian"], ["no command 'trian'", "USAGE"], id="unknown command"),
        pytest.param(["train", "CartPol-v1"], ["CartPol-v1", r"did you mean .*CartPole-v1\?"], id="unknown env"),
        pytest.param(["train", "NoSuch-v0"], ["NoSuch-v0"], id="unknown env, nothing near"),
        pytest.param(["train", "Pendulum-v1"], ["Pendulum-v1", "Box", "Discrete"], id="continuous actions"),
        pytest.param(["train", "ALE/Pung-v5"], [r"ALE/Pung-v5.*did you mean ALE/Pong-v5"], id="unknown game"),
        pytest.param(["train", "nowhere:Env-v0"], ["nowhere", "--env.path"], id="unknown module"),
        pytest.param(["train", "userenvs:Missing-v0", "--env.path", "."], ["Missing"], id="unknown id of a module"),
        pytest.param(["train", "userenvs:Texts-v0", "--env.path", "."], ["Text", "TransformObs"], id="text space"),
        pytest.param(["train", "userenvs:Unmade-v0", "--env.path", "."], ["licence has expired"], id="env refuses"),
        pytest.param(["train", "broken:Any-v0", "--env.path", "."], ["broken"], id="module with a syntax error"),
        pytest.param(
            [*CARTPOLE, "--mode", "inline", "--budget.env-steps", "99", "--env.path", "nowhere"],
            ["nowhere"],
            id="folder that is not there",
        ),
        pytest.param([*CARTPOLE, "--learner.lr", "fast"], [r"learner\.lr", "fast"], id="wrong type"),
        pytest.param([*CARTPOLE, "--learner.lr", "-1"], [r"learner\.lr", "greater than 0", "-1"], id="out of bounds"),
        pytest.param([*CARTPOLE, "--learner.lrr", "1"], [r"learner\.lrr", r"learner\.lr "], id="unknown option"),
        pytest.param([*CARTPOLE, "--lr", "1"], ["--lr", r"learner\.lr "], id="option without its part"),
        pytest.param([*CARTPOLE, "--run", "../x"], ["run"], id="a run name that is a path"),
        pytest.param([*CARTPOLE, "--preset", "pendulum"], ["pendulum", "acrobot, atari, cartpole, lunar"], id="preset"),
        pytest.param([*CARTPOLE, "--config", "none.yaml"], ["none.yaml", "No such file"], id="no config file"),
        pytest.param([*CARTPOLE, "--config", "bad.yaml"], ["learner.lrr", r"learner\.lr\?"], id="config with a typo"),
        pytest.param([*CARTPOLE, "--replay.capacity-rows", "100"], ["capacity", "100"], id="capacity below min_rows"),
        pytest.param([*CARTPOLE, "--runs-dir", "bad.yaml"], ["bad.yaml"], id="runs_dir is a file"),
        pytest.param([*CARTPOLE, "--runs-dir", "bad.yaml/x"], ["bad.yaml"], id="runs_dir below a file"),
        pytest.param([*CARTPOLE, "--runs-dir", "/sys/qherd-runs"], ["/sys/qherd-runs"], id="read-only runs_dir"),
        pytest.param([*CARTPOLE, "--mode", "cluster"], ["redis.url"], id="cluster without a server"),
        pytest.param(
            [*CARTPOLE, "--mode", "cluster", "--redis.url", f"redis://:{PASSWORD}@127.0.0.1:1"],
            ["ray.address"],
            id="cluster without Ray",
        ),
        pytest.param(["eval", "nowhere"], ["nowhere", "no run"], id="eval of no run"),
        pytest.param(["eval", "."], ["no run"], id="eval of a folder that is no run"),
        pytest.param(["eval", "nowhere", "--episodes", "0"], ["episodes"], id="eval of no episodes"),
        pytest.param(["record", "nowhere"], ["nowhere", "no run"], id="record of no run"),
        pytest.param(["export", "nowhere", "--to", "x"], ["nowhere", "no run"], id="export of no run"),
        pytest.param(["dataset", "nowhere", "--out", "x-v0"], ["nowhere", "no run"], id="dataset of no run"),
        pytest.param(["eval"], ["RUN"], id="eval without a run"),
        pytest.param([*CARTPOLE, "--budget.env-steps", "1.5"], [r"budget\.env-steps", "1.5 is not whole"], id="1.5"),
        pytest.param([*CARTPOLE, "--actors.count", "1e-1"], [r"actors\.count", "1e-1 is not whole"], id="1e-1"),
        pytest.param([*CARTPOLE, "--actors.count", "-1e1"], [r"actors\.count", "greater than", "-10"], id="-1e1"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, arguments: list[str], texts: list[str]) -> None:
    (tmp_path / "userenvs.py").write_text(ENVS)
    (tmp_path / "broken.py").write_text("def:\n")
    (tmp_path / "bad.yaml").write_text("learner: {lrr: 1}\n")
    assert_refused(qherd(*arguments, cwd=tmp_path), tmp_path, *texts)


def test_a_run_name_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "summary.json").write_text("precious")
    done = qherd(*CARTPOLE, "--run", "mine", cwd=tmp_path)
    assert [path.name for path in (tmp_path / "runs").rglob("*")] == ["mine", "summary.json"]
    assert (tmp_path / "runs" / "mine" / "summary.json").read_text() == "precious"
    shutil.rmtree(tmp_path / "runs")
    assert_refused(done, tmp_path, "runs/mine", "exists", "--run")


@pytest.mark.parametrize("mode", ["inline", "local"])
def test_a_busy_metrics_port_is_refused(tmp_path: Path, mode: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = qherd(*CARTPOLE, "--mode", mode, "--metrics.port", port, cwd=tmp_path)
    assert_refused(done, tmp_path, f"127.0.0.1:{port}", "in use", "--metrics.port")


@pytest.mark.root
@pytest.mark.parametrize("room", ["none", "for the folder only"])
def test_a_full_disk_is_refused(tmp_path: Path, room: str) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            filler.write(bytes(40 << 10 if room == "for the folder only" else 64 << 10))
        done = qherd(*CARTPOLE, "--mode", "inline", "--runs-dir", disk / "runs", "--run", "r", cwd=tmp_path)
        left = [path for path in (disk / "runs").rglob("*") if room == "none"]
    assert_refused(done, tmp_path, "No space left", "disk/runs")
    assert left == []


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """``qherd train --help | head -1``."""
    command = f"{QHERD} train --help | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("usage: qherd train")
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["--version"], ["train", "--help"], ["completion", "bash"]], ids=" ".join)
def test_a_disk_that_is_too_full_for_the_output_is_told(tmp_path: Path, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [str(QHERD), *arguments]
        done = subprocess.run(command, check=False, cwd=tmp_path, stdout=full, stderr=-1, text=True, timeout=30)
    assert done.stderr == "qherd: the output or a file: No space left on device\n"
    assert done.returncode == 2


@pytest.mark.parametrize("arguments", [["study", "s.yaml"], [*CARTPOLE, "--mode", "inline"], ["runs"], ["eval", "r"]])
def test_a_working_directory_that_was_removed_is_told(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "gone").mkdir()
    command = ["sh", "-c", 'rmdir "$PWD" && exec "$0" "$@"', str(QHERD), *arguments]
    done = subprocess.run(command, check=False, cwd=tmp_path / "gone", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "qherd: the working directory was removed: cd into one that is there\n"


# -- servers that cannot be used


@contextlib.contextmanager
def impostor(answer: bytes | None) -> Iterator[int]:
    """A port that answers HTTP/2's preface with ``answer`` and hangs up on all else; None: it never says a word."""
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if answer is None:
                stop.wait(30)
            elif connection.recv(1 << 10).startswith(b"PRI * HTTP/2.0"):
                connection.sendall(answer)
                connection.recv(1 << 10)

    def accept(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept, args=(listening,), daemon=True)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            stop.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def cluster(tmp_path: Path, url: str, *more: str) -> Finished:
    """The cluster mode with this Redis, and with a port in Ray's place that at least accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        arguments = ("--mode", "cluster", "--ray.address", address, "--redis.url", url, *more)
        return qherd(*CARTPOLE, *arguments, cwd=tmp_path, deadline_s=30)


SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def test_a_port_that_speaks_grpc_is_told_to_be_rays(tmp_path: Path) -> None:
    with impostor(SETTINGS) as port:
        done = cluster(tmp_path, f"redis://:{PASSWORD}@127.0.0.1:{port}")
    assert_refused(done, tmp_path, f"redis://:\\*\\*\\*@127.0.0.1:{port}", "Ray's GCS", "6380")


def test_a_port_that_speaks_something_else_is_not_told_to_be_rays(tmp_path: Path) -> None:
    with impostor(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        done = cluster(tmp_path, f"redis://:{PASSWORD}@127.0.0.1:{port}")
    assert_refused(done, tmp_path, f"127.0.0.1:{port}")
    assert "GCS" not in done.err


def test_a_silent_server_is_given_up_within_the_deadline_that_is_named(tmp_path: Path) -> None:
    started = time.monotonic()
    with impostor(None) as port:
        done = cluster(tmp_path, f"redis://u:{PASSWORD}@127.0.0.1:{port}/0")
    assert time.monotonic() - started < 15
    assert_refused(done, tmp_path, f"redis://u:\\*\\*\\*@127.0.0.1:{port}/0", "within 5 s")


def test_an_unreachable_server_is_named_without_its_password(tmp_path: Path) -> None:
    done = cluster(tmp_path, f"redis://:{PASSWORD}@127.0.0.1:1/0")
    assert_refused(done, tmp_path, r"redis://:\*\*\*@127\.0\.0\.1:1/0", "5 s", "refused")


@pytest.mark.parametrize(
    "url", [f"redis://:{PASSWORD}@host:port", f"redis://:pa/{PASSWORD}@host:1", f"http://:{PASSWORD}@host", "host:6379"]
)
def test_a_url_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    assert_refused(cluster(tmp_path, url), tmp_path, "redis://")


def test_an_option_of_a_url_that_its_scheme_has_not_is_refused(tmp_path: Path) -> None:
    assert_refused(cluster(tmp_path, "redis://127.0.0.1:1?ssl_ca_certs=/ca.crt"), tmp_path, "'ssl_ca_certs'.*rediss://")


def test_an_authority_without_tls_is_refused(tmp_path: Path) -> None:
    done = qherd("secrets", "s", "--server", "valkey:6379", "--ca", "/run/secrets/ca.crt", cwd=tmp_path)
    assert (done.code, "--tls" in done.err, list(tmp_path.iterdir())) == (2, True, []), done


@pytest.fixture(scope="module")
def protected_server() -> Iterator[tuple[redis.Redis, int]]:
    """A server on a port, with a password: a client and the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", "", "--dir", "/tmp"]
    process = subprocess.Popen([find_server(), *options], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port, password=PASSWORD, socket_timeout=5) as client:
            end = time.monotonic() + 10
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < end, "the server does not answer"
                    time.sleep(0.02)
            yield client, port
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("login", ["", ":wr0ng@", "nobody:wr0ng@"])
def test_a_wrong_password_is_refused(tmp_path: Path, protected_server: tuple[redis.Redis, int], login: str) -> None:
    done = cluster(tmp_path, f"redis://{login}127.0.0.1:{protected_server[1]}")
    assert_refused(done, tmp_path, f"127.0.0.1:{protected_server[1]}", "(?i)auth|password")
    assert "wr0ng" not in done.err


def test_a_server_that_evicts_is_refused_with_the_remedy(
    tmp_path: Path, protected_server: tuple[redis.Redis, int]
) -> None:
    client, port = protected_server
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        done = cluster(tmp_path, f"redis://:{PASSWORD}@127.0.0.1:{port}")
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    assert_refused(done, tmp_path, "allkeys-lru", "CONFIG SET maxmemory-policy noeviction")
    assert client.dbsize() == 0


def test_a_ray_cluster_that_is_not_there_is_refused(tmp_path: Path, protected_server: tuple[redis.Redis, int]) -> None:
    client, port = protected_server
    options = (
        "--mode",
        "cluster",
        "--ray.address",
        "127.0.0.1:1",
        "--redis.url",
        f"redis://:{PASSWORD}@127.0.0.1:{port}",
    )
    done = qherd(*CARTPOLE, *options, cwd=tmp_path, deadline_s=30)
    assert client.dbsize() == 0
    assert_refused(done, tmp_path, "127.0.0.1:1", "(?i)ray")


def test_the_installed_command_is_the_one_tested() -> None:
    assert QHERD.parent == Path(sys.executable).parent
    assert QHERD.exists(), "not installed: make setup"
    assert "learner.lr" in list(option_paths())
