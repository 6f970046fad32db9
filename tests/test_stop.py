"""Being asked to stop, and an output that is gone: the parts by themselves. tests/test_ends.py has the whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from waiting import until

from deploy.cluster.ray_running import stderr_to
from deploy.process.output import Output
from deploy.process.signals import SIGNALS, Interrupted, Stop, quiet_interrupt, result
from deploy.sessions.clock import Rates


def test_a_second_signal_does_not_wait_unless_it_is_a_hangup(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that closes sends two SIGHUPs, and a service manager one after its SIGTERM."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    stop = Stop()
    with stop.listening():
        for number in (signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert (stop.signal, stop.asked, codes) == (signal.SIGHUP, True, [])
        os.kill(os.getpid(), signal.SIGINT)
    assert codes == [130]


def test_a_third_signal_does_not_begin_the_end_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who keeps Ctrl-C pressed would put the end off for ever."""
    codes, ends = list[int](), list[int]()
    monkeypatch.setattr(os, "_exit", codes.append)
    stop = Stop()

    def at_once() -> None:
        ends.append(len(ends))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if len(ends) < 9 else ():
            os.kill(os.getpid(), number)

    stop.at_once = at_once
    with stop.listening():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert (ends, codes) == ([0], [130])


def test_what_nohup_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop().listening():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_no_handler_is_set() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    stop = Stop()

    def listen() -> list[object]:
        with stop.listening(), quiet_interrupt():
            stop.check()
            return [signal.getsignal(number) for number in SIGNALS]

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(listen).result(10) == before
    stop.ask()
    with pytest.raises(Interrupted):
        stop.check()


HANDLERS_OF_A_LIBRARY = """
import ctypes, os, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from deploy.process.signals import Stop, result

again = threading.Event()

def library():
    ctypes.CDLL(None).signal(signal.SIGTERM, 0)  # the kernel's default, unseen by Python
    while not caught():
        again.wait(0.001)
    os.kill(os.getpid(), signal.SIGTERM)
    return "done"

def caught():
    text = open("/proc/self/status").read()
    return int(text.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1

stop = Stop()
with stop.listening(), ThreadPoolExecutor(1) as thread:
    print(result(thread.submit(library)), stop.signal == signal.SIGTERM, caught())
    ctypes.CDLL(None).signal(signal.SIGTERM, 0)
    print(caught())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_handlers_that_a_library_takes_away_in_c_are_armed_again() -> None:
    command = [sys.executable, "-c", HANDLERS_OF_A_LIBRARY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["done", "True", "1", "0"], "")


def test_what_the_thread_raises_is_raised() -> None:
    failed: Future[None] = Future()
    failed.set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        result(failed)


# -- an output that is gone


class Broken:
    def __init__(self, number: int) -> None:
        self.number, self.silenced = number, False

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "none")

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("number", "gone"), [(errno.EPIPE, 2), (errno.EIO, 2), (errno.ENOSPC, 0)])
def test_an_output_that_refuses_stops_nothing_by_itself(
    monkeypatch: pytest.MonkeyPatch, number: int, gone: int
) -> None:
    """Nobody reads it: the run is asked to end. A full disk: the text is dropped."""
    told: list[str] = []
    monkeypatch.setattr(sys, "stdout", Broken(number))
    output = Output(lambda: told.append("gone"))
    output.write("text")
    output.flush()
    assert (len(told), output.isatty()) == (gone, True)


def test_without_an_output_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    output = Output(lambda: pytest.fail("nobody was there"))
    output.write("text")
    output.flush()


def test_what_c_code_writes_on_stderr_goes_to_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.write(2, b"before\n")
    with stderr_to(tmp_path / "ray.log"):
        os.write(2, b"*** SIGABRT received ***\n")
        subprocess.run(["sh", "-c", "echo of a child >&2"], check=True)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nafter\n"
    assert (tmp_path / "ray.log").read_text() == "*** SIGABRT received ***\nof a child\n"


# -- rates


def test_rates_are_a_mean_over_seconds() -> None:
    """Rows come in bursts: 250 in one quarter second of four."""
    rates, shown = Rates(), dict[str, float]()
    for quarter in range(100):
        shown = rates.update(quarter / 4, 250 * (quarter // 4), 25 * quarter)
        if quarter > 24:
            assert shown["env_steps_per_second"] == pytest.approx(250, rel=0.2)
    assert shown["updates_per_second"] == pytest.approx(100)
    back = rates.update(25.0, 10, 1)
    assert back == {}, "a learner that went back to its checkpoint"
    assert rates.update(26.0, 110, 3)["env_steps_per_second"] == 100
    assert Rates().update(1.0, 0, 0) == {}


def test_threads_are_no_obstacle_to_an_interrupt_without_words() -> None:
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    with quiet_interrupt():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


THREADS = 40
A_PROGRAM = """
import subprocess, sys, threading
from deploy.process.children import qherd_command
command = qherd_command([])[:-3]  # without -P -m deploy.cli
subprocess.Popen([*command, "-c", sys.argv[1]], start_new_session=True)
for _ in range(int(sys.argv[2])):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
threading.Event().wait()
"""
ITS_COMMAND = """
import os, pathlib, time
from deploy.process.signals import Stop
program, stop = os.getppid(), Stop()
with stop.listening():
    pathlib.Path("listening").touch()
    while not stop.asked or os.getppid() == program:  # the program's while any thread of it is there
        time.sleep(0.001)
    pathlib.Path("ended").touch()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent ends")
@pytest.mark.parametrize("ignored", [False, True], ids=["", "nohup"])
def test_a_command_ends_in_order_when_a_program_of_many_threads_is_killed(tmp_path: Path, ignored: bool) -> None:
    """The kernel sends the signal as often as a thread of the program ends that it made the command's parent."""
    command: list[str] = [sys.executable, "-c", A_PROGRAM, ITS_COMMAND, str(THREADS)]
    with subprocess.Popen(
        ["nohup", *command] if ignored else command, cwd=tmp_path, stdin=subprocess.DEVNULL
    ) as program:
        until((tmp_path / "listening").exists, "the command")
        program.kill()
    until((tmp_path / "ended").exists, "its end in order")
