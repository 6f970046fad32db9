"""What a resumed run has to keep is marked on the options themselves: refused by name; all others may change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from deploy.config.changes import check_changes, with_choices_of
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig, kept_options, option_paths

SURVIVE = Path(__file__).resolve().parent.parent / "docs" / "survive.md"
KEPT: dict[str, Any] = {
    "mode": "cluster",
    "seed": 7,
    "env.id": "CartPole-v1",
    "env.kwargs": {"gravity": -9.0},
    "env.frame_stack": 4,
    "env.action_mask": "obey",
    "env.max_episode_steps": 9,
    "replay.capacity_rows": 1_234,
    "replay.sampler": "prioritised",
    "replay.prioritised.alpha": 0.123,
    "replay.sequences": {"trained": 7},
    "replay.dataset": "group/other-v0",
    "learner.network": {"hidden": (7,)},
    "learner.algorithm": "qr_dqn",
    "learner.qr_dqn.quantiles": 7,
    "learner.iqn.cosines": 7,
    "learner.c51.atoms": 7,
    "learner.c51.v_min": -7.0,
    "learner.c51.v_max": 7.0,
    "learner.value_rescale": True,
    "learner.gamma": 0.123,
    "learner.n_step": 7,
    "learner.anneal.updates": 7,
    "learner.anneal.n_step": 7,
    "learner.anneal.gamma": 0.123,
    "learner.reward_scale": 0.123,
    "learner.reward_clip": True,
}
"""Another value than the default of each."""
KEPT_INLINE = {"actors.count": 7, "actors.lanes": 7}
FREE = {
    "budget.env_steps": 7,
    "learner.lr": 0.123,
    "learner.qr_dqn.kappa": 0.123,
    "replay.prioritised.beta": 0.123,
    "replay.samples_per_insert": 7.0,
    "eval.threshold": 7.0,
    "env.path": Path("elsewhere"),
    "checkpoint.keep": 7,
    "redis.url": "redis://elsewhere",
}


def with_option(mode: str, path: str, value: Any) -> RunConfig:
    values: dict[str, Any] = {"mode": mode}
    inner, (*parents, leaf) = values, path.split(".")
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[leaf] = value
    return RunConfig.model_validate(values)


@pytest.mark.parametrize("path", KEPT)
@pytest.mark.parametrize("mode", ["local", "inline"])
def test_what_shapes_a_checkpoint_is_refused_by_name(mode: str, path: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)} is .* in this run, and .* was asked for: .*new run$"):
        check_changes(RunConfig.model_validate({"mode": mode}), with_option(mode, path, KEPT[path]))


@pytest.mark.parametrize("path", KEPT_INLINE)
def test_actors_stay_where_the_checkpoint_has_their_lanes(path: str) -> None:
    inline = RunConfig.model_validate({"mode": "inline"})
    with pytest.raises(ConfigError, match=rf"^{re.escape(path)} is "):
        check_changes(inline, with_option("inline", path, KEPT_INLINE[path]))
    check_changes(RunConfig(), with_option("local", path, KEPT_INLINE[path]))


@pytest.mark.parametrize("path", FREE)
def test_all_else_may_change(path: str) -> None:
    check_changes(RunConfig(), with_option("local", path, FREE[path]))


def test_auto_asks_for_what_was_chosen_as_the_run_began() -> None:
    """And nothing else is taken from before."""
    began = RunConfig.model_validate({"env": {"action_mask": "obey"}, "learner": {"network": {"encoder": "mlp"}}})
    asked = RunConfig.model_validate({"learner": {"lr": 0.125}})
    found = with_choices_of(began, asked)
    assert (found.env, found.learner.network, found.learner.lr) == (began.env, began.learner.network, 0.125)
    check_changes(began, found)
    other = RunConfig.model_validate({"env": {"action_mask": "ignore"}, "learner": {"network": {"encoder": "minatar"}}})
    assert with_choices_of(began, other) == other


def test_the_marks_are_those() -> None:
    assert set(kept_options("local")) == set(kept_options("cluster")) == set(KEPT)
    assert set(kept_options("inline")) == {*KEPT, *KEPT_INLINE}
    assert {*KEPT, *FREE, *KEPT_INLINE} <= {*option_paths(), "learner.network", "replay.sequences"}


def test_the_documentation_lists_them() -> None:
    text = " ".join(SURVIVE.read_text().split())
    _, _, after = text.partition("What shapes the contents of a checkpoint stays")
    listed, _, _ = after.partition("Another `samples_per_insert`")
    assert set(re.findall(r"`([a-z0-9_.]+)`", listed)) - {"inline"} == set(kept_options("inline"))
