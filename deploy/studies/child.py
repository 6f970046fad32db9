"""A command of qherd as a process of its own, which stops in order when the study asks it to, or is killed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploy.config.errors import RunFailedError
from deploy.process.children import STOPPED, handing_over, kill_group, qherd_command
from deploy.run_directory.files import naming, open_plain


class Child:
    """A command that runs. Its messages go to ``log``, and what it prints, too, unless it ``prints`` to a file of its
    own."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        config: str | None = None,
        keeps: int,
        prints: Path | None = None,
    ) -> None:
        """Starts ``qherd`` with these arguments, and with ``--config`` where there is one. ``keeps``: a file descriptor
        that it holds open while it lives.

        Raises:
            RunDirError: the disk refuses one of the files.
        """
        self._log, self._command = log, f"qherd {arguments[0]}"
        with (
            naming(log),
            open_plain(log, "ab") as messages,
            open_plain(prints or log, "ab" if prints is None else "wb") as printed,
            contextlib.ExitStack() as files,
        ):
            self._log_start, kept = messages.tell(), [keeps]
            if config is not None:
                options, descriptor = files.enter_context(handing_over(config))
                arguments, kept = [*arguments, *options], [*kept, descriptor]
            self._process = subprocess.Popen(
                qherd_command(arguments),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=messages,
                pass_fds=kept,
                start_new_session=True,  # Ctrl-C is the study's, which asks each command once
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def over(self) -> bool:
        """Returns whether it has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Asks it to stop; once more has it end at once."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends it, whatever it is at, and what its environment has forked."""
        kill_group(self._process)

    def check(self) -> None:
        """Raises RunFailedError where it has not ended as it should."""
        code = self._process.returncode
        if code == 0:
            return
        if code in STOPPED:
            raise RunFailedError("it was asked to stop by somebody else")
        if code < 0:
            raise RunFailedError(f"{self._command} was killed by {signal.Signals(-code).name}")
        raise RunFailedError(self._last_message() or f"{self._command} ended with exit code {code}")

    def _last_message(self) -> str:
        """Returns the last line that it has written into the log, up to what a terminal's line may hold."""
        lines = list[str]()
        with contextlib.suppress(OSError), self._log.open("rb") as file:  # it may have been removed, or closed to us
            file.seek(self._log_start)
            lines = file.read()[-65_536:].decode(errors="replace").split("\n")
        return next((line.strip().removeprefix("qherd: ")[:500] for line in reversed(lines) if line.strip()), "")
