"""The first look at an environment: what its actors would die of is told at once, in words, and it is closed."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from cli_runs import qherd, running
from numpy.testing import assert_array_equal

from actors import closing, first_look
from actors.config import EnvConfig
from actors.envs import make_env
from actors.errors import EnvError
from actors.first_look import Look
from replay.chunk import Schema

STRANGE = "strange_env:Strange-v0"
FOUR = r"step\(\) returned 4 values, 5 are needed: \(observation, reward, terminated, truncated, info\)"
FAULTS = {
    "four values": FOUR,
    "reset returns no info": r"reset\(\) returned 1 values, 2 are needed: \(observation, info\)",
    "row": r"returned an observation of shape \(1, 4\); its space Box\(0, 255, \(4,\), uint8\) says",
    "ragged": "returned an observation of list that is no array",
    "words": "returned an observation of dtype <U1; its space .* dtype uint8",
    "none": r"returned an observation of shape \(\)",
    "fractions": "dtype float64, with values that uint8 cannot hold; its space .* dtype uint8",
    "negative": "dtype int64, with values that uint8 cannot hold",
    "bool": r"of dtype bool; its space Box\(0, 255, .* dtype uint8; say Box\(0, 1, dtype=bool\), or return 0 and 255",
    "state": r"returned the observation 4; its space Discrete\(4\) has 0 to 3",
    "float nan": r"step\(\) returned an observation that is not finite as float32: \[nan nan",
    "reward nan": "returned the reward nan, which float32",
    "no reward": "returned the reward None; a number is needed",
    "reward array": r"returned the reward array\(\[1\.\]\); a number is needed",
    "flag": "returned terminated = 'yes'; True or False is needed",
    "infos": "returned None as its info; a dict is needed",
    "exits": r"Strange-v0: step\(\) called sys.exit\('the window was closed'\)",
    "exits as it is made": r"its constructor called sys.exit\(None\)",
    "interrupts": r"Strange-v0: step\(\) raised KeyboardInterrupt",
    "ends its process": r"ended its process with exit code 3 as it was stepped",
    "raises": r"raised in each of 3 tries: RuntimeError: the bridge is down, in step\([01]\), env step 8 of the try",
}
"""What is wrong, and in which words it is told."""


def look(kind: str, after: int = 0, *, timeout_s: float = 60.0, **kwargs: Any) -> Look:
    config = EnvConfig(id=STRANGE, kwargs={"kind": kind, "after": after, **kwargs})
    return first_look.first_look(config, 5, timeout_s, lambda _: None)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_told_with_environment_value_and_expectation(kind: str) -> None:
    began = time.monotonic()
    with pytest.raises(EnvError, match=f"Strange-v0.*{FAULTS[kind]}"):
        look(kind, after=7)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["well", "int64", "float64", "list"])
def test_what_keeps_its_values_is_taken(kind: str) -> None:
    found = look(kind)
    assert found.schema == Schema((4,), "uint8", 2, obs_divisor=255)
    assert found.warnings == ()
    assert (found.played.reproduces, found.played.steps > 5) == (True, True)


def test_seeds_are_those_of_every_generator() -> None:
    assert look("seeds numpy's old generator").warnings == ()


def test_one_that_raises_once_is_made_anew(tmp_path: Path) -> None:
    """As in training."""
    flag = tmp_path / "raised"

    def once(what: str, _: object) -> None:
        if what == "step" and not flag.exists():
            flag.touch()
            raise RuntimeError("the bridge is down")

    config = EnvConfig(id="scripted_env:Raising-v0", kwargs={"fault": once})
    assert first_look.first_look(config, 5, 60, lambda _: None).schema.obs_shape == (3,)
    assert flag.exists()


def test_an_action_mask_that_is_not_always_there_is_not_used() -> None:
    """In its steps, and not after a reset: that is told, and refused where it is asked for."""
    found = look("masks")
    assert not found.schema.extras
    assert found.warnings == (
        "Strange-v0: its infos have an action_mask, and those of its first reset had none: it is ignored",
    )
    config = EnvConfig(id="strange_env:Strange-v0", kwargs={"kind": "masks"}, action_mask="obey")
    with pytest.raises(EnvError, match=r"reset\(\) returned info\['action_mask'\] = None; .*--env\.action-mask ignore"):
        first_look.first_look(config, 5, 60, lambda _: None)


def test_one_that_hangs_is_given_up() -> None:
    with pytest.raises(EnvError, match=r"Strange-v0 hangs as it is stepped: not done within 0\.3 s .*step_timeout_s"):
        look("hangs", after=3, timeout_s=0.3)


def test_one_that_is_slowly_made_is_waited_for_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_look, "REPORT_AFTER_S", 0.1)
    monkeypatch.setattr(first_look, "REPORT_EVERY_S", 0.1)
    told: list[str] = []

    def slow(what: str, _: object) -> None:
        time.sleep(0.5 if what == "make" else 0)

    config = EnvConfig(id="scripted_env:Raising-v0", kwargs={"fault": slow})
    found = first_look.first_look(config, 5, 0.3, told.append)
    assert found.make_s >= 0.5
    assert re.fullmatch(r"the environment scripted_env:Raising-v0 is being made, for \d+ s now", told[0])


def test_what_takes_long_is_told_once_in_a_while_and_what_comes_next_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made, and then reset for too long: the second is not held back since the first was told just before."""
    monkeypatch.setattr(first_look, "REPORT_AFTER_S", 0.1)
    told: list[str] = []

    def slow(what: str, _: object) -> None:
        time.sleep(0.3 if what == "make" else 100)

    config = EnvConfig(id="scripted_env:Raising-v0", kwargs={"fault": slow})
    with pytest.raises(EnvError, match=r"Raising-v0 hangs as it is reset: not done within 0\.8 s"):
        first_look.first_look(config, 5, 0.8, told.append)
    assert [re.sub(r"\d+ s now", "N s now", line) for line in told] == [
        "the environment scripted_env:Raising-v0 is being made, for N s now",
        "the environment scripted_env:Raising-v0 is being reset, for N s now; it is given up after 0.8 s "
        "(actors.step_timeout_s)",
    ]


def test_a_reset_that_hangs_after_an_episode_is_told_to_be_one() -> None:
    resets: list[int] = []

    def third(what: str, _: object) -> None:
        resets.extend([1] if what == "reset" else [])
        time.sleep(100 if len(resets) == 3 else 0)

    config = EnvConfig(id="scripted_env:Raising-v0", kwargs={"fault": third})
    with pytest.raises(EnvError, match="hangs as it is reset"):
        first_look.first_look(config, 5, 0.3, lambda _: None)


@pytest.mark.parametrize(
    ("command", "kind", "doing"),
    [
        (("train",), "reset hangs", "reset"),
        (("train", "--mode", "inline"), "hangs", "stepped"),
        (("plan",), "hangs", "stepped"),
        (("doctor", "--mode", "inline"), "reset hangs", "reset"),
    ],
)
def test_each_command_tells_what_it_waits_for_within_five_seconds(
    tmp_path: Path, command: tuple[str, ...], kind: str, doing: str
) -> None:
    """And gives it up."""
    book = tmp_path / "book"
    book.touch()
    options = ("--env.id", STRANGE, "--env.path", Path(__file__).parent, "--actors.step_timeout_s", "3")
    kwargs = json.dumps({"kind": kind, "book": str(book)})
    with running(*command, *options, "--env.kwargs", kwargs, cwd=tmp_path) as run:
        run.until(lambda: "hangs" in book.read_text(), 60, "hang")
        run.until(lambda: f"qherd: the environment {STRANGE} is being {doing}, for " in run.err, 5, "message")
        assert "; it is given up after 3 s (actors.step_timeout_s)" in run.err
        done = run.finish(60)
    assert done.code == (1 if command[0] == "doctor" else 2)
    told = done.out if command[0] == "doctor" else done.err
    assert f"{STRANGE} hangs as it is {doing}: not done within 3 s" in " ".join(told.split())
    assert done.leftovers == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["well", "raises", "row", "exits"])
def test_it_is_closed_as_often_as_it_is_made(tmp_path: Path, kind: str) -> None:
    book = tmp_path / "book"
    try:
        look(kind, after=7, book=str(book))
    except EnvError:
        assert kind != "well"
    words = book.read_text().split()
    assert words.count("made") == words.count("closed") == (3 if kind in ("raises", "exits") else 1)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("close raises", "RuntimeError: no such window"),
        ("close exits", r"called sys\.exit"),
        ("close hangs", "not return within"),
    ],
)
def test_what_is_wrong_with_close_stops_nothing(kind: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_look, "close_all", lambda envs: closing.close_all(envs, 0.3))
    (warning,) = look(kind).warnings
    assert re.search(rf"Strange-v0: close\(\).*{told}", warning)


def test_closing_goes_on_past_one_that_hangs(tmp_path: Path) -> None:
    """All within the bound, and the handler of the alarm is put back."""
    book, before, began = tmp_path / "book", signal.getsignal(signal.SIGALRM), time.monotonic()
    kinds = ("close hangs", "close hangs", "close raises", "well")
    envs = [make_env(EnvConfig(id=STRANGE, kwargs={"kind": k, "book": str(book)}), training=True) for k in kinds]
    told = closing.close_all(envs, 0.2)
    assert len(told) == 3
    assert book.read_text().split().count("closed") == 4
    assert time.monotonic() - began < 5
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_picture_is_the_same_however_it_is_given() -> None:
    """Scaled or not goes by the space: every dtype that holds its values becomes the space's."""
    seen = []
    for kind in ("well", "int64", "float64", "list"):
        env = make_env(EnvConfig(id=STRANGE, kwargs={"kind": kind}), training=False)
        env.reset(seed=1)
        obs = env.step(0)[0]
        assert obs.dtype == "uint8"
        seen.append(obs)
    for obs in seen[1:]:
        assert_array_equal(obs, seen[0])


@pytest.mark.parametrize(
    "command", [("train", STRANGE), ("train", STRANGE, "--mode", "inline"), ("plan", STRANGE)], ids=" ".join
)
@pytest.mark.parametrize("kind", ["four values", "exits as it is made", "ends its process"])
def test_each_command_tells_it_before_it_starts_anything(tmp_path: Path, command: tuple[str, ...], kind: str) -> None:
    options = ("--env.path", Path(__file__).parent, "--env.kwargs", f"{{kind: {kind}}}")
    done = qherd(*command, *options, cwd=tmp_path)
    assert (done.code, done.out, done.leftovers) == (2, "", [])
    assert re.search(FAULTS[kind], done.err)
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_doctor_tells_it_too(tmp_path: Path) -> None:
    options = ("--env.id", STRANGE, "--env.path", Path(__file__).parent, "--env.kwargs", "{kind: exits}")
    done = qherd("doctor", "--mode", "inline", *options, cwd=tmp_path)
    assert done.code == 1
    assert re.search(FAULTS["exits"], done.out)
    assert "1 problem(s)" in done.out
