"""What each role may do on a server: the rules of its access control list."""

from __future__ import annotations

import re

from deploy.config.models import RUN_NAME


def acl_rules(run: str | None) -> dict[str, str]:
    """Redis ACL rules (without passwords) by role, for the keys ``qherd:{run}:*``; None: of any run.

    ``actor`` may append to its streams and read weights and credit: with wider rights it could overwrite weights,
    expire leases or exhaust a stream's ids. ``learner`` may do all that touches the run's own keys, and read the
    server's state; nothing in the category ``@dangerous`` beside that. ``reader`` may read the run's own keys, for
    ``replay.attach`` and ``qherd replay stats``: no command that writes, waits or lists other keys.

    Raises:
        ValueError: the run's name could be read as a pattern or as further rules.
    """
    if run is not None and not re.fullmatch(RUN_NAME, run):
        raise ValueError(f"run name {run!r}: use 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first")
    prefix = f"qherd:{run or '*'}:"
    return {
        "learner": (
            f"~{prefix}* resetchannels -@all +@connection +@transaction +@stream +@string +@hash +@keyspace "
            "-@dangerous +info +config|get +memory|usage +client|no-evict"
        ),
        "actor": (
            f"~{prefix}chunks:* %R~{prefix}weights %R~{prefix}credit resetchannels "
            "-@all +ping +hello +auth +client|setname +get +getrange +xadd +xinfo|stream"
        ),
        "reader": (
            f"%R~{prefix}* resetchannels -@all +ping +hello +auth +client|setname "
            "+get +getrange +xread +xrange +xrevrange +xlen +xinfo|stream +memory|usage"
        ),
    }
