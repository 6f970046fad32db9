"""``qherd secrets``: a cluster's passwords, users and token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel

from deploy.config.cli_types import as_written
from deploy.config.errors import ConfigError
from deploy.server.credentials import write_secrets


class Secrets(BaseModel):
    """Make the passwords, users and token of a cluster, once: a folder with a folder for each role. Where there is one
    already it is left as it is.

    server/users.acl is the server's aclfile and holds digests only.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    server: str = "valkey:6379"
    """The server's host:port, as the nodes know it."""
    run: str | None = None
    """The only run that its users may touch. The default is any run."""
    tls: bool = False
    """URLs for TLS: rediss://."""
    ca: Path | None = None
    """With --tls: where the nodes find the certificate of your own authority."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    call = tyro.cli(Secrets, args=arguments, prog="qherd secrets", registry=as_written())
    if call.ca and not call.tls:
        raise ConfigError(f"--ca {call.ca} is for TLS: give --tls with it")
    scheme, query = ("rediss" if call.tls else "redis"), f"ssl_ca_certs={call.ca}" if call.ca else ""
    try:
        made = write_secrets(call.folder, call.server, call.run, scheme, query)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    print(f"{call.folder}: {'made' if made else 'is there already, and stays as it is'}")
    return 0
