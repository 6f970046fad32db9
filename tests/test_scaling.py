"""``qherd scale``: the request and its answers, both sides; what is refused; and a real run with 1, 3 and 2 actors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_runs import Finished, qherd, running, summary
from waiting import until

from deploy.cli import main
from deploy.commands.resume import config_of
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.scale_requests import LOOK_EVERY_S, SETTLE_S, Request, ScaleFile, ScaleRequestInbox, ScaleRequests

START_S = 60.0
LANES = 4


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["scale", *map(str, arguments)])
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def made(tmp_path: Path, mode: str = "local") -> RunDirectory:
    return RunDirectory.create(RunConfig.model_validate({"mode": mode, "runs_dir": tmp_path, "run": "r"}))


# -- the file


def test_a_request_is_taken_up_once_and_answered(tmp_path: Path) -> None:
    """The driver looks once a second; what an earlier command has left is none of its business."""
    now, file = [0.0], ScaleFile(tmp_path)
    file.write(Request("old", 7))
    inbox = ScaleRequestInbox(tmp_path, clock=lambda: now[0])
    assert inbox.next_request() is None
    file.write(Request("a", 3))
    assert inbox.next_request() is None, "it has just looked"
    now[0] += 1
    request = inbox.next_request()
    assert request == Request("a", 3)
    inbox.answer(replace(request, state="done", epsilon={"0": (0.5,)}))
    now[0] += 1
    assert inbox.next_request() is None
    answered = file.read()
    assert answered is not None
    assert answered.state == "done"
    assert list(answered.epsilon["0"]) == [0.5]


def test_an_answer_does_not_hide_a_later_request(tmp_path: Path) -> None:
    inbox, file = ScaleRequestInbox(tmp_path), ScaleFile(tmp_path)
    file.write(Request("b", 4))
    inbox.answer(Request("a", 3, "done"))
    assert file.read() == Request("b", 4)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "a"}', '{"id": "a", "actors": 1, "more": 1}'])
def test_a_damaged_file_is_no_request(tmp_path: Path, text: str) -> None:
    (tmp_path / "scale.json").write_text(text)
    assert ScaleFile(tmp_path).read() is None


# -- what the driver does about it


class ScaledRun:
    """A run whose actors answer when the test says so."""

    def __init__(self, folder: Path) -> None:
        self.now_s, self.count, self.said, self.refusal = 0.0, 2, list[str](), ""
        self.ladder: dict[int, tuple[float, ...]] | None = None
        self.file = ScaleFile(folder)
        inbox = ScaleRequestInbox(folder, lambda: self.now_s)
        self.requests = ScaleRequests(
            inbox, self.rescale, lambda: self.ladder, lambda: "actor 2 starts", self.said.append, lambda: self.now_s
        )

    def rescale(self, count: int) -> int:
        if self.refusal:
            raise ConfigError(self.refusal)
        before, self.count = self.count, count
        return before

    def tick(self, after_s: float = LOOK_EVERY_S) -> Request:
        self.now_s += after_s
        self.requests.tick()
        request = self.file.read()
        assert request is not None
        return request


def test_a_request_is_done_when_all_actors_have_answered(tmp_path: Path) -> None:
    scaled = ScaledRun(tmp_path)
    scaled.file.write(Request("a", 3))
    begun = scaled.tick()
    assert (begun.state, begun.told, scaled.count) == ("begun", "3 actor(s) from now on, were 2", 3)
    assert scaled.said == [begun.told]
    assert scaled.tick().state == "begun"
    scaled.ladder = {0: (0.5,), 1: (0.25,), 2: (0.125,)}
    done = scaled.tick()
    assert (done.state, list(done.epsilon)) == ("done", ["0", "1", "2"])


def test_actors_that_do_not_answer_are_named_and_a_later_request_is_taken_up(tmp_path: Path) -> None:
    scaled = ScaledRun(tmp_path)
    scaled.file.write(Request("a", 3))
    begun = scaled.tick()
    assert scaled.tick(SETTLE_S).state == "begun"
    late = scaled.tick()
    assert late.state == "late"
    assert late.told == f"{begun.told}; after {SETTLE_S:.0f} s not all of them have answered: actor 2 starts"
    scaled.file.write(Request("b", 1))
    assert (scaled.tick().state, scaled.count) == ("begun", 1)


def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    scaled = ScaledRun(tmp_path)
    scaled.refusal = "no memory for so many"
    scaled.file.write(Request("a", 300))
    refused = scaled.tick()
    assert (refused.state, refused.told, scaled.count, scaled.said) == ("refused", scaled.refusal, 2, [])
    scaled.refusal = ""
    scaled.file.write(Request("b", 3))
    assert scaled.tick().state == "begun"


# -- the command against a driver of our own


class Driver:
    """A thread that holds the run and answers the first request with ``answers``."""

    def __init__(self, directory: RunDirectory, *answers: dict[str, Any]) -> None:
        self._file, self._answers = ScaleFile(directory.path), answers
        self._thread = threading.Thread(target=self._work)
        self.request: Request | None = None

    def _work(self) -> None:
        def asked() -> bool:
            self.request = self._file.read()
            return self.request is not None

        until(asked, "request", 10)
        assert self.request is not None
        for answer in self._answers:
            self._file.write(replace(self.request, **answer))

    def __enter__(self) -> Driver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[RunDirectory]:
    with closing(made(tmp_path)) as directory:
        yield directory


def test_the_command_waits_for_the_last_answer(at_work: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {"state": "begun", "told": "soon"}, {"state": "done", "told": "3 actor(s), were 1"}
    with Driver(at_work, *answers) as driver:
        assert run(capsys, at_work.path, "--actors", "3") == (0, "3 actor(s), were 1\n", "")
    assert driver.request is not None
    assert (driver.request.actors, driver.request.state) == (3, "asked")


def test_what_the_driver_refuses_is_the_users_mistake(
    at_work: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with Driver(at_work, {"state": "refused", "told": "a capacity of 5 rows is too small"}):
        code, _, err = run(capsys, at_work.path, "--actors", "3")
    assert (code, err) == (2, "qherd: a capacity of 5 rows is too small\n")


def test_a_cluster_without_room_is_told_and_is_no_success(
    at_work: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with Driver(at_work, {"state": "late", "told": "not all of them have answered"}):
        assert run(capsys, at_work.path, "--actors", "3") == (1, "not all of them have answered\n", "")


def test_two_at_a_time_are_one_too_many(at_work: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    ScaleFile(at_work.path).write(Request("a", 7, "begun"))
    code, _, err = run(capsys, at_work.path, "--actors", "3")
    assert code == 2
    assert "another qherd scale, to 7 actors, is not done yet" in err


def test_a_driver_that_does_not_look_is_noticed_and_the_request_taken_back(
    at_work: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.commands.scale.TAKEN_UP_S", 0.1)
    code, _, err = run(capsys, at_work.path, "--actors", "3")
    assert code == 1
    assert "its driver has not answered" in err
    assert not (at_work.path / "scale.json").exists()


def test_a_run_that_is_not_at_work_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = made(tmp_path)
    assert directory.lock.owner() is not None
    directory.close()
    assert directory.lock.owner() is None
    code, _, err = run(capsys, directory.path, "--actors", "3")
    assert code == 2
    assert f"is not at work: give the number of actors as you go on with it, qherd resume {directory.path}" in err
    assert not (directory.path / "scale.json").exists()
    assert run(capsys, tmp_path, "--actors", "3")[0] == 2


def test_inline_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(made(tmp_path, "inline")) as directory:
        code, _, err = run(capsys, directory.path, "--actors", "3")
    assert code == 2
    assert "mode inline" in err


@pytest.mark.parametrize("options", [[], ["--actors", "0"], ["--actors", "many"]])
def test_the_number_has_to_be_one(
    at_work: RunDirectory, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, at_work.path, *options)[0] == 2


# -- a real run


@dataclass
class Scaled:
    folder: Path
    done: Finished
    answers: dict[int, dict[str, Any]]
    refused: Finished
    doctor: dict[str, Any]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Scaled:
    """1 actor, then 3, then 2, while it trains; the doctor looks on; Ctrl-C ends it."""
    cwd = tmp_path_factory.mktemp("scaled")
    options = ["--run", "r", "--eval.threshold", "None", "--actors.count", "1", "--actors.lanes", str(LANES)]
    options += ["--replay.capacity-rows", "3000", "--replay.min-rows", "500"]
    answers = {}
    with running("train", "CartPole-v1", *options, cwd=cwd) as training:
        training.until(lambda: training.figure("r", "updates") > 0, START_S, "update")
        refused = qherd("scale", "runs/r", "--actors", "100", cwd=cwd)
        for actors in (3, 2):
            answer = qherd("scale", "runs/r", "--actors", str(actors), "--json", cwd=cwd)
            assert answer.code == 0, answer
            answers[actors] = json.loads(answer.out)
            training.until(lambda n=actors: training.figure("r", "actors_alive") == n, 20, f"{actors} actors")  # type: ignore[misc]
        before = training.figure("r", "env_steps")
        training.until(lambda: training.figure("r", "env_steps") > before + 4000, 60, "turn of the mirror")
        looked = qherd("doctor", "runs/r", "--json", cwd=cwd)
        stats = qherd("replay", "stats", "runs/r", "--json", cwd=cwd)
        training.process.send_signal(2)
        done = training.finish(40)
    return Scaled(cwd / "runs" / "r", done, answers, refused, json.loads(looked.out) | {"stats": json.loads(stats.out)})


@pytest.mark.timeout(240)
@pytest.mark.long
def test_each_lane_moves_to_its_place_on_the_ladder(scaled: Scaled) -> None:
    """epsilon_i = 0.4^(1 + 7 i / (N - 1)) over the lanes, as the actors themselves say, to the last bit."""
    for actors, answer in scaled.answers.items():
        lanes = actors * LANES
        assert set(answer["epsilon"]) == {str(slot) for slot in range(actors)}
        said = [epsilon for slot in range(actors) for epsilon in answer["epsilon"][str(slot)]]
        assert said == pytest.approx([0.4 ** (1 + 7 * lane / (lanes - 1)) for lane in range(lanes)], rel=1e-15)


@pytest.mark.long
def test_what_the_mirror_cannot_hold_is_refused_and_changes_nothing(scaled: Scaled) -> None:
    assert scaled.refused.code == 2
    assert f"a replay of 3,000 rows holds 7 time steps of each of 100 x {LANES} lanes" in scaled.refused.err
    assert "--actors.count" in scaled.refused.err
    assert scaled.answers[3]["told"] == "3 actor(s) from now on, were 1"


@pytest.mark.long
def test_nothing_is_lost_or_restarted(scaled: Scaled) -> None:
    """The reader holds every incarnation to the conservation law at each report; the actor that left has flushed."""
    assert scaled.done.code == 75, scaled.done
    assert scaled.done.err == ""
    written = summary(scaled.folder)
    assert (written["rows_lost"], written["chunks_refused"], written["actor_restarts"]) == ({}, {}, 0)
    assert written["chunks_sent"] == written["chunks_stored"] > 0
    assert "actor 2 has left\n" in scaled.done.out
    assert json.loads((scaled.folder / "fences.json").read_text())["incarnations"] == {"0": 1, "1": 1, "2": 1}


@pytest.mark.long
def test_the_stream_of_the_slot_that_left_is_empty_once_the_mirror_has_turned(scaled: Scaled) -> None:
    rows = {line["slot"]: line["rows"] for line in scaled.doctor["stats"]["slots"]}
    assert rows[2] == 0
    assert rows[0] + rows[1] > 0, "which of them gets how much credit is up to chance"


@pytest.mark.long
def test_the_number_is_there_when_the_run_is_resumed(scaled: Scaled) -> None:
    assert yaml.safe_load((scaled.folder / "config.yaml").read_text())["config"]["actors"]["count"] == 1
    assert config_of(scaled.folder).actors.count == 2


@pytest.mark.long
def test_the_doctor_names_a_bottleneck(scaled: Scaled) -> None:
    """Of the run at work, from shares that make sense; which one depends on what else this machine does."""
    seen = scaled.doctor
    assert seen["at_work"]
    assert seen["diagnosis"]["bottleneck"] in ("env", "actor CPU", "Redis", "network", "learner", "limiter", "none")
    assert seen["diagnosis"]["why"]
    assert seen["window"]["actors_alive"] == 2
    shares = seen["window"]["actors"]
    parts = ("waiting", "env", "log", "weights", "own")
    assert sum(shares[name] for name in parts) == pytest.approx(1.0, abs=0.02)
    assert 0 < seen["window"]["round_trip_s"] < 1
    assert 0 <= seen["window"]["server_busy"] < 1.5
    assert 0 <= seen["window"]["learner"]["wait"] <= 1


@pytest.mark.long
def test_the_doctor_knows_how_a_run_ended(scaled: Scaled) -> None:
    looked = qherd("doctor", str(scaled.folder), cwd=scaled.folder)
    assert looked.code == 0
    assert "r is not at work; it ended: interrupted" in looked.out
    assert "bottleneck: " in looked.out
