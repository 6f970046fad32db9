"""A learner in a process of its own, for test_fencing.py: it trains until it is fenced, and then exits with 75."""

from __future__ import annotations

import os
import sys

from herd import Learner

from replay.chunk_log.protocol import Fenced

FENCED = 75


def main() -> None:
    """The server's URL comes by the environment, as secrets do."""
    learner = Learner(os.environ["QHERD_TEST_URL"], os.environ["QHERD_TEST_RUN"], 1, timeout_s=0.5)
    try:
        while True:
            learner.loop.train(0.1)
    except Fenced as error:
        print(error, flush=True)
    learner.publisher.stop()
    sys.exit(FENCED)


if __name__ == "__main__":
    main()
