"""``qherd secrets``: passwords, users and a token for a cluster, made once, each role's in a folder of its own.

A launcher hands each process the folder of its role and no other (compose: a volume's sub-path, Kubernetes: a Secret,
Slurm: the shared file system). The server's folder has digests only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path

from deploy.config.errors import ConfigError
from deploy.server.acl import acl_rules

EXPORTER = (
    "resetkeys resetchannels -@all +ping +hello +auth +client|setname +info +config|get +slowlog|get +slowlog|len "
    "+latency|latest +latency|histogram"
)
"""What a Redis exporter asks for: the server's state, and no key."""
HEALTH = "resetkeys resetchannels -@all +ping"
"""A health check proves that the server answers, and needs nothing else."""


def write_secrets(folder: Path, server: str, run: str | None, scheme: str = "redis", options: str = "") -> bool:
    """Make ``folder``, readable by its owner alone; False where it is there already, which changes nothing.

    Args:
        folder: what to make. All of it appears at once, or nothing does.
        server: host:port of the Redis or Valkey server, as the nodes know it.
        run: the only run that the users may touch; None: any run.
        scheme: ``redis``, or ``rediss`` for TLS.
        options: the URLs' query, such as ``ssl_ca_certs=/run/secrets/ca.crt``.

    Raises:
        ConfigError: no host:port.
        ValueError: an unusable run name.
    """
    if not re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):\d+", server):
        raise ConfigError(
            f"server {server!r}: give host:port as the nodes know it, such as valkey:6379 or [fd00::7]:6379"
        )
    if folder.exists() and any(folder.iterdir()):
        return False
    rules = {**acl_rules(run), "exporter": EXPORTER, "health": HEALTH}
    passwords = {role: secrets.token_urlsafe(32) for role in rules}

    def url(role: str) -> str:
        return f"{scheme}://{role}:{passwords[role]}@{server}/0" + (f"?{options}" if options else "")

    users = ["user default reset off", *(_user(role, passwords[role], rule) for role, rule in rules.items())]
    files = {
        "server/users.acl": "\n".join(users) + "\n",
        "server/health_password": passwords["health"],
        "driver/redis_url": url("learner"),
        "driver/redis_actor_url": url("actor"),
        "reader/redis_url": url("reader"),
        # releases of redis_exporter differ in whether they look for the server with its user
        "exporter/passwords.json": json.dumps(
            {f"{scheme}://{user}{server}": passwords["exporter"] for user in ("", "exporter@")}
        ),
        "grafana/password": secrets.token_urlsafe(24),
    }
    token = secrets.token_hex(32)
    files |= {f"{role}/ray_token": token for role in ("driver", "ray")}
    _write_all(folder, files)
    return True


def _user(role: str, password: str, rules: str) -> str:
    return f"user {role} reset on #{hashlib.sha256(password.encode()).hexdigest()} {rules}"


def _write_all(folder: Path, files: dict[str, str]) -> None:
    """Writes all files at once: a launcher that was interrupted in between would else start with half of them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # an empty mount point stays the folder that it is
    inside = folder.exists()
    new = Path(tempfile.mkdtemp(prefix=".secrets-", dir=folder if inside else folder.parent))
    try:
        for name, text in files.items():
            path = new / name
            path.parent.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o400)
            with os.fdopen(fd, "w") as file:
                file.write(text)
        if inside:
            for role in sorted(new.iterdir()):
                role.rename(folder / role.name)
            new.rmdir()
        else:
            new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
