"""Trackers: what a run passes on to them, that no tracker slows or ends a run, and what becomes of it in W&B."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_runs import ROOT, qherd, summary
from cli_runs import running as at_work
from numpy.testing import assert_array_equal
from waiting import until

from deploy.cli import main
from deploy.config.models import RunConfig
from deploy.run_directory.directory import RunDirectory
from deploy.tracking import mlflow_tracker
from deploy.tracking import relay as relay_module
from deploy.tracking.child import MAX_TEXT, shown_error
from deploy.tracking.mlflow_tracker import _flat
from deploy.tracking.relay import Relay
from deploy.tracking.tracker import Ending, Record, Refused, without_secrets
from deploy.tracking.tracking import Tracking, ended_by
from learner import load_policy

FAKE = [sys.executable, str(ROOT / "tests" / "fake_tracker.py")]
RECORD = Record("c0ffee", "NAME", "CartPole-v1", None, {"seed": 0}, "config.yaml", "runs/NAME")
ENDING = Ending("finished", 100, {"exit_reason": "solved"}, {})
ROW = {f"metric_{number}": number / 7 for number in range(120)}
Start = Callable[..., Relay]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a relay before a fake tracker; they end with the test."""
    started = list[Relay]()

    def relay(manner: str, **options: Any) -> Relay:
        started.append(Relay("fake", [*FAKE, manner], **options))
        return started[-1]

    yield relay
    for each in started:
        each.close()


def begun(relay: Relay) -> Relay:
    assert relay.wait_ready(time.monotonic() + 30)
    relay.begin(RECORD)
    return relay


def pid_of(relay: Relay) -> int:
    return relay._process.pid


# -- the queue


def test_all_rows_are_passed_on_and_the_record_is_closed(start: Start) -> None:
    relay = begun(start("keep"))
    for env_steps in range(500):
        relay.offer({**ROW, "env_steps": env_steps})
    relay.end(ENDING, 30)
    assert (relay.lost, list(relay.news)) == (0, ["fake records the run: NAME as c0ffee"])
    assert relay._process.returncode is not None


@pytest.mark.parametrize("manner", ["hang", "late"])
def test_a_run_does_not_wait_for_a_tracker_that_hangs(
    manner: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether in a call, or stopped by the kernel with a pipe that nobody reads."""
    relay = start(manner, queue_rows=100)
    assert relay.wait_ready(time.monotonic() + 30)
    if manner == "late":
        os.kill(pid_of(relay), signal.SIGSTOP)
    relay.begin(RECORD)
    started_s = time.monotonic()
    for env_steps in range(2000):  # more than the pipe and the queue hold
        relay.offer({**ROW, "env_steps": env_steps})
    assert time.monotonic() - started_s < 10
    assert relay.lost >= 1000
    monkeypatch.setattr(relay_module, "SILENT_S", 0.0)
    assert relay.failing
    relay.end(ENDING, 0.2)
    assert relay.lost == 2001  # the rows and the end
    assert relay._process.returncode == -signal.SIGKILL


def test_what_a_tracker_refuses_is_counted_and_told_once(start: Start) -> None:
    relay = begun(start("raise"))
    for env_steps in range(20):
        relay.offer({**ROW, "env_steps": env_steps})
    until(lambda: relay.lost == 20, "all rows refused")
    assert relay.failing
    relay.end(ENDING, 30)
    assert relay.lost == 20  # its end was taken
    assert list(relay.news)[1:] == ["fake refuses what it is given: the disk is full; the run continues"]


def test_a_slow_tracker_gets_the_newest_rows(start: Start) -> None:
    relay = begun(start("slow", queue_rows=10))
    for env_steps in range(400):
        relay.offer({**ROW, "env_steps": env_steps, "much": "x" * 2000})  # type: ignore[dict-item]
    lost = relay.lost
    assert 0 < lost < 400
    relay.end(ENDING, 60)
    assert relay.lost in (lost, lost + 1)  # the end took a row's place


def test_a_tracker_that_dies_is_told_and_the_run_continues(start: Start) -> None:
    relay = begun(start("die"))
    for env_steps in range(10):
        relay.offer({**ROW, "env_steps": env_steps})
    until(lambda: len(relay.news) == 2, "news of the end")
    relay.offer(ROW)
    assert relay.lost == 9  # two of eleven were recorded
    assert relay.news[1] == "fake: its process has ended; the run continues without it"
    started_s = time.monotonic()
    relay.end(ENDING, 30)
    assert time.monotonic() - started_s < 10


def test_a_record_begins_as_soon_as_the_tracker_is_there(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no key is in what is told."""
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t")
    relay = begun(start("late"))
    relay.offer({**ROW, "env_steps": 1})
    relay.end(ENDING, 30)
    assert relay.lost == 0
    assert list(relay.news) == [
        "fake refuses what it is given: no server, with the key ***; the run continues",
        "fake records the run: NAME as c0ffee",
    ]


def test_what_a_library_prints_is_no_reply(start: Start) -> None:
    relay = begun(start("noise"))
    relay.offer({**ROW, "env_steps": 1})
    relay.end(ENDING, 30)
    assert (relay._kept, relay.lost) == (2, 0)


def test_a_tracker_that_cannot_be_used_has_said_why(start: Start) -> None:
    relay = start("refuse")
    assert not relay.wait_ready(time.monotonic() + 30)
    assert relay.refused == "no key: bring one"


def test_the_process_ends_with_a_run_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom deploy.tracking.relay import Relay\nfrom deploy.tracking.tracker import Record\n"
        "relay = Relay('fake', sys.argv[1:])\nassert relay.wait_ready(time.monotonic() + 30)\n"
        "print(relay._process.pid, flush=True)\ntime.sleep(3600)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, *FAKE, "hang"], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    with run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        run.kill()
    until(lambda: not running(pid), "end of the tracker's process")


def running(pid: int) -> bool:
    """Whether there is such a process, and not its remains alone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_told_has_no_password_and_is_one_line() -> None:
    environ = {"MLFLOW_TRACKING_URI": "https://me:pa55@host/x", "MLFLOW_TRACKING_PASSWORD": "w0rd", "WANDB_API_KEY": ""}
    assert (
        without_secrets("no https://me:pa55@host/x\nnor w0rd \x1b[2J", environ)
        == "no https://me:***@host/x nor ***  [2J"
    )


@pytest.mark.parametrize("password", ["p]ss", "p/ss", "p#ss", "[x", "a@b"])
@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "WANDB_BASE_URL"])
def test_a_password_that_splits_a_url_is_not_told_either(name: str, password: str) -> None:
    url = f"postgresql://me:{password}@host/db"
    assert without_secrets(f"no {url}", {name: url}) == "no postgresql://me:***@host/db"


def test_a_url_that_is_none_hides_no_reply() -> None:
    """What a reply is told of goes on, whatever the variables have."""
    assert without_secrets("kept", {"WANDB_BASE_URL": "http://[x", "MLFLOW_TRACKING_URI": "p]ss"}) == "kept"


def test_what_a_library_says_is_masked_before_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key on the border would be there but for its end."""
    key = "0123456789abcdef" * 3
    monkeypatch.setenv("WANDB_API_KEY", key)
    for start in range(MAX_TEXT - len(key), MAX_TEXT + 1):
        text = shown_error(ValueError("x" * start + key + " and more" * 9))
        assert "0123" not in text, start
        assert len(text) <= MAX_TEXT + 3


def test_what_a_user_has_named_is_no_parameter_s_name() -> None:
    options = {"env": {"id": "x", "kwargs": {"a b!": 1}}, "seed": 0}
    assert dict(_flat(options)) == {"env.id": "x", "env.kwargs": "{'a b!': 1}", "seed": "0"}


# -- what is passed on


class Recorder:
    """In the place of relays: keeps what it is given."""

    name, failing, lost = "recorder", False, 0

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.news: list[str] = []

    def begin(self, record: Record) -> None:
        self.calls.append(("begin", record.run))

    def offer(self, row: Mapping[str, float]) -> None:
        self.calls.append(("row", row["env_steps"]))

    def end(self, ending: Ending, patience_s: float) -> None:
        self.calls.append(("end", (ending.ended, patience_s)))

    def close(self) -> None:
        self.calls.append(("close", None))


@pytest.mark.parametrize(
    ("reason", "ended", "patience_s"),
    [("solved", "finished", 20), ("interrupted", "interrupted", 4), ("failed: no server", "failed", 20)],
)
def test_curves_have_a_point_every_five_seconds_each_evaluation_and_the_last_row(
    reason: str, ended: str, patience_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, recorder = [100.0], Recorder()
    monkeypatch.setattr("deploy.tracking.tracking.time.monotonic", lambda: now[0])
    directory = RunDirectory.create(RunConfig(run="NAME", runs_dir=tmp_path))
    with Tracking([recorder]) as tracking:  # type: ignore[list-item]
        tracking.describe(directory.config, directory)
        for env_steps, (at_s, evaluated) in enumerate(
            [(100.0, False), (104.9, False), (105.1, False), (105.2, True), (106.0, False)]
        ):
            now[0] = at_s
            tracking.offer({"env_steps": env_steps}, evaluated=evaluated)
        tracking.end(directory, ended_by(reason), {"env_steps": 4})
    directory.close()
    rows = [("row", number) for number in (0, 2, 3, 4)]
    assert recorder.calls == [("begin", "NAME"), *rows, ("end", (ended, patience_s)), ("close", None)]


# -- W&B for real, offline


SHORT = (
    *("train", "CartPole-v1", "--mode", "inline", "--run", "NAME", "--learner.lr", "1e-3", "--actors.lanes", "4"),
    *("--env.max-episode-steps", "20", "--eval.every-updates", "100", "--eval.screen-episodes", "2"),
    *("--eval.threshold", "None"),
)


def records_of(folder: Path) -> list[Any]:
    """The records in the file of an offline run: leveldb's log of protocol buffers."""
    message = import_module("wandb.proto.wandb_internal_pb2").Record
    (path,) = folder.glob("*.wandb")
    data, found, parts = path.read_bytes(), [], b""
    at, block = 7, 32768  # after the header
    while at + 7 <= len(data):
        if block - at % block < 7:  # the rest of a block, too short for a record's head
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(message.FromString(parts))
            parts = b""
    return found


def values_of(records: list[Any], kind: str) -> list[dict[str, str]]:
    """The items of all history, config or summary records, as JSON texts by name."""
    name = {"history": "item", "config": "update", "summary": "update"}[kind]
    return [
        {each.key or ".".join(each.nested_key): each.value_json for each in getattr(getattr(record, kind), name)}
        for record in records
        if record.WhichOneof("record_type") == kind
    ]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was recorded in W&B, offline, and went on after its budget was raised."""
    folder = tmp_path_factory.mktemp("tracked")
    env = {"WANDB_MODE": "offline", "HOME": str(folder)}
    first = qherd(*SHORT, "--budget.env-steps", "1500", "--track.wandb", "--track.project", "mine", cwd=folder, env=env)
    assert (first.code, first.leftovers) == (0, []), first.err
    second = qherd("resume", "runs/NAME", "--budget.env-steps", "2000", cwd=folder, env=env)
    assert (second.code, second.leftovers) == (0, []), second.err
    assert "wandb records the run: offline, in " in second.out
    return folder / "runs" / "NAME"


def test_a_resumed_run_continues_its_record(tracked: Path) -> None:
    folders = sorted((tracked / "wandb").glob("offline-run-*"))
    runs = [next(each.run for each in records_of(folder) if each.HasField("run")) for folder in folders]
    assert len(runs) == 2
    assert {(run.run_id, run.project, run.display_name, run.resumed) for run in runs} == {
        (RunDirectory.open(tracked).fences.nonce, "mine", "NAME", False)
    }


def test_the_record_has_options_curves_and_evaluations_over_env_steps(tracked: Path) -> None:
    (folder, _) = sorted((tracked / "wandb").glob("offline-run-*"))
    records = records_of(folder)
    options = {name: value for update in values_of(records, "config") for name, value in update.items()}
    assert '"lr":0.001' in options["learner"].replace(" ", "")
    axes = {each.metric.name or each.metric.glob_name: each.metric.step_metric for each in records}
    assert axes["*"] == "env_steps"
    rows = values_of(records, "history")
    written = RunDirectory.open(tracked).history.rows()
    assert {int(row["env_steps"]) for row in rows} <= {row["env_steps"] for row in written}
    assert any("greedy_return" in row and "loss" in row for row in rows)


def test_the_record_has_the_summary_and_a_policy_that_can_be_loaded(tracked: Path, tmp_path: Path) -> None:
    folder = sorted((tracked / "wandb").glob("offline-run-*"))[-1]
    records = records_of(folder)
    ended = {name: value for update in values_of(records, "summary") for name, value in update.items()}
    assert any("budget of env steps" in value for value in ended.values())
    (artifact,) = [each.request.log_artifact.artifact for each in records if each.request.HasField("log_artifact")] or [
        each.artifact for each in records if each.HasField("artifact")
    ]
    assert (artifact.type, artifact.name) == ("model", "NAME-policy")
    for entry in artifact.manifest.contents:
        (target := tmp_path / entry.path).parent.mkdir(exist_ok=True)
        target.write_bytes(Path(entry.local_path).read_bytes())
    obs = np.array([0.1, -0.2, 0.03, 0.4], np.float32)
    assert_array_equal(load_policy(tmp_path).act(obs).q, load_policy(tracked).act(obs).q)


def test_what_is_not_recorded_is_counted_where_the_run_has_its_numbers(tracked: Path) -> None:
    assert summary(tracked)["track_lost"] == 0
    assert {row["track_lost"] for row in RunDirectory.open(tracked).history.rows()} == {0}


# -- trackers that cannot be used, and one that hangs: packages of that name in place of the library


def package(folder: Path, name: str, code: str) -> dict[str, str]:
    """Variables with which such a package is imported in place of the library."""
    (folder / "lib" / name).mkdir(parents=True)
    (folder / "lib" / name / "__init__.py").write_text(code)
    return {"PYTHONPATH": str(folder / "lib"), "HOME": str(folder), "WANDB_MODE": "online"}


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed by a run that cannot begin."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    return printed.err


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_extra_is_one_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value in package(tmp_path, name, f"raise ImportError('No module named {name}')").items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    told = refusal([*SHORT, f"--track.{name}"], capsys)
    assert told.startswith(f"qherd: --track.{name}: ")
    assert f"pip install 'qherd[{name}]'" in told
    assert f"--track.no-{name}" in told
    assert not (tmp_path / "runs").exists()


def test_missing_credentials_are_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "wandb.py").write_text("raise ImportError('from the working directory')")
    monkeypatch.chdir(tmp_path)
    told = refusal([*SHORT, "--track.wandb"], capsys)
    assert "wandb login" in told
    assert "WANDB_API_KEY" in told
    assert "--track.no-wandb" in told
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    told = refusal([*SHORT, "--track.wandb"], capsys)
    assert "API key here has 3 characters, and its keys have 40 or more" in told
    assert not (tmp_path / "runs").exists()


class _Refused(Exception):
    error_code = "UNAUTHENTICATED"


@pytest.mark.parametrize("asked", ["slow", "refuses", "answers"])
def test_a_run_waits_for_an_mlflow_server_for_some_seconds_only(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says of credentials by then is heeded; a server that is slow is one that is down."""
    said = threading.Event()

    def search(**_: object) -> None:
        if asked == "refuses":
            raise _Refused
        if asked == "slow":
            said.wait(60)

    client = SimpleNamespace(search_experiments=search)
    library = SimpleNamespace(
        MlflowException=_Refused, MlflowClient=lambda: client, get_tracking_uri=lambda: "http://127.0.0.1:9"
    )
    monkeypatch.setitem(sys.modules, "mlflow", library)
    monkeypatch.setattr(mlflow_tracker, "LOOK_S", 0.2 if asked == "slow" else 60.0)
    for name, value in mlflow_tracker.DEFAULTS.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(Refused, match="wants credentials") if asked == "refuses" else contextlib.nullcontext():
        mlflow_tracker.MlflowTracker().check()
    said.set()
    assert time.monotonic() - began < 30


HANGS = """
import time
class Settings:
    def __init__(self, **options): self.mode = "offline"
def setup():
    return type("Setup", (), {"settings": Settings()})
def init(**options):
    time.sleep(3600)
"""


@pytest.mark.long
def test_a_run_ends_as_ever_beside_a_tracker_that_hangs(tmp_path: Path) -> None:
    """In its first call, on SIGTERM: the end waits for a few seconds, and the losses are told; /metrics has them."""
    scrape = tmp_path / "runs" / "NAME" / "scrape.json"
    with at_work(
        *SHORT, "--track.wandb", "--metrics.port", "0", cwd=tmp_path, env=package(tmp_path, "wandb", HANGS)
    ) as run:
        run.until(lambda: run.figure("NAME", "updates") > 100, 60, "updates")
        address = json.loads(scrape.read_text())["targets"][0]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as shown:
            assert 'qherd_track_lost_total{run="NAME"} 0.0' in shown.read().decode()
        run.process.send_signal(signal.SIGTERM)
        ended = run.finish(25)
    assert (ended.code, ended.leftovers) == (75, [])
    lost = summary(tmp_path / "runs" / "NAME")["track_lost"]
    assert lost >= 2  # a row and the end
    assert f"wandb: {lost} rows, or the end, of this run are not recorded" in ended.out
