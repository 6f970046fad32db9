"""A lane's share of the replay against what a transition spans."""

from __future__ import annotations

import pytest

from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.planning.memory import check_windows
from replay.chunk import Schema


@pytest.mark.parametrize(("n_step", "stack", "chunk_steps"), [(30, 1, 8), (3, 28, 8), (3, 1, 35)])
def test_windows_beyond_a_lanes_share_are_refused_with_the_numbers(n_step: int, stack: int, chunk_steps: int) -> None:
    """2 x 4 lanes share 304 rows: 38 time steps each, which n_step + stack - 1 + chunk_steps just need."""
    values = {
        "actors": {"count": 2, "lanes": 4, "chunk_steps": chunk_steps},
        "learner": {"n_step": n_step},
        "replay": {"capacity_rows": 304, "min_rows": 10},
    }
    schema = Schema((3,), "float32", 2, stack)
    check_windows(RunConfig.model_validate(values), schema)
    values["replay"]["capacity_rows"] = 303
    with pytest.raises(ConfigError, match=r"303 rows holds 37 time steps of each of 2 x 4 .*need 38.*at least 304"):
        check_windows(RunConfig.model_validate(values), schema)
