"""TensorBoard's events of a run: a file of records, written by us."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def open_events(folder: Path) -> Any:
    """Opens a writer of TensorBoard's records on a file of our own: its EventFileWriter writes from a thread, where
    a full disk ends as a traceback that nobody can catch."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(exist_ok=True)
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
    writer = RecordWriter((folder / name).open("ab"))
    writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    writer.flush()
    return writer


def write_restart(writer: Any, env_steps: int) -> None:
    """Has TensorBoard pass over earlier files' events at this step and after it."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    start = SessionLog(status=SessionLog.START)
    writer.write(Event(wall_time=time.time(), step=env_steps + 1, session_log=start).SerializeToString())
    writer.flush()


def write_scalars(writer: Any, row: Mapping[str, float]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=f"qherd/{name}", simple_value=value) for name, value in row.items()]
    event = Event(wall_time=time.time(), step=int(row.get("env_steps", 0)), summary=Summary(value=values))
    writer.write(event.SerializeToString())
    writer.flush()
