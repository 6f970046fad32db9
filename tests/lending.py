"""Credit for tests in which no learner lends."""

from __future__ import annotations

from replay.credit import Credit, pack_credit

PLENTY = Credit(1, 0, 1 << 40)


def plenty(incarnation: int = 1, slots: int = 8) -> bytes:
    """Credit that nobody uses up, for these slots' actors of this incarnation."""
    return pack_credit(dict.fromkeys(range(slots), PLENTY._replace(incarnation=incarnation)))


NONE = b""
"""Nobody may send."""
