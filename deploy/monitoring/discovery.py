"""``qherd discovery``: tells Prometheus which runs there are (HTTP service discovery).

A run with ``metrics.port`` writes the address of its /metrics into its own directory when its learner listens, and
takes the file away when it ends in order. A run that failed or was killed leaves it: its target is then down, which is
what the alert QherdRunUnreachable is for. So nothing here has to guess whether a run lives, and no clocks are compared.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploy.config.errors import ConfigError
from deploy.process.host import host_and_port
from deploy.run_directory.registration import Registration
from learner.http_server import BoundedMixIn
from replay.foreign import Unreadable, read_file

PATH = "/targets"
MAX_BYTES = 4096
"""A file that is bigger is no registration."""


def target_groups(runs_dirs: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yields the registrations of all runs below these folders. What is no registration is passed over."""
    for folder in runs_dirs:
        for file in sorted(folder.glob("*/scrape.json")):
            try:
                text = read_file(file, MAX_BYTES)
                yield Registration.model_validate_json(text).model_dump(mode="json")
            except (FileNotFoundError, Unreadable, ValidationError):  # a run ended meanwhile, or it is somebody else's
                continue


class Discovery(BoundedMixIn, HTTPServer):
    """Answers GET /targets with the runs below ``runs_dirs``, looked up anew each time."""

    def __init__(self, address: tuple[str, int], runs_dirs: Sequence[Path]) -> None:
        """Raises OSError where the port is taken, or the host is none."""
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        super().__init__(address, _Handler)
        self.runs_dirs = tuple(runs_dirs)


class _Handler(BaseHTTPRequestHandler):
    server: Discovery

    def do_GET(self) -> None:
        found = re.sub(r"\?.*", "", self.path).rstrip("/") == PATH
        groups = list(target_groups(self.server.runs_dirs)) if found else {"error": f"there is only {PATH}"}
        body = json.dumps(groups).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Prometheus asks every few seconds: no line each."""


def serve(runs_dirs: Sequence[Path], host: str, port: int) -> int:
    """Serves until interrupted.

    Raises:
        ConfigError: the port cannot be used.
    """
    try:
        server = Discovery((host, port), runs_dirs)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"port {host_and_port(host, port)} cannot be used: {getattr(error, 'strerror', error)}; choose "
            "another --port or --host, and the same one in the http_sd_configs of prometheus.yml"
        ) from None
    with server:
        shown = ", ".join(map(str, runs_dirs))
        print(f"runs in {shown}: http://{host_and_port(host, server.server_port)}{PATH}", flush=True)
        server.serve_forever()
    return 0
