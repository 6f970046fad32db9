"""``qherd plan``: hand-worked numbers, what it measures, and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import main
from deploy.config.models import RunConfig
from deploy.planning.forecast import forecast_run
from deploy.planning.measure import ActorRate, measure_actor, measure_updates
from deploy.planning.memory import ACTOR_BYTES, network_bytes
from replay.chunk import HEADER_BYTES, Schema

SCHEMA = Schema((4,), "float32", 2)
WEIGHTS = 4 * (5 * 64 + 65 * 64 + 65 * 2)
"""Of 4-64-64-2 units, biases included."""


def config(mode: str = "local", env: dict[str, Any] | None = None, **actors: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "mode": mode,
            "env": env or {"id": "CartPole-v1"},
            "actors": {"count": 2, "lanes": 8, "chunk_steps": 16, **actors},
            "replay": {"capacity_rows": 50_000, "min_rows": 1000, "samples_per_insert": 16},
            "learner": {"network": {"hidden": [64, 64]}, "batch": 64, "publish_every_updates": 100},
        }
    )


def test_a_slow_learner_has_the_actors_wait() -> None:
    """2 x 1000 env steps/s against 100 updates/s x 64 / 16 = 400 env steps/s: 80 % waiting for credit. 400 rows of 33
    bytes in chunks of 8 x 16; 100 updates/s are a broadcast a second, which 2 actors fetch once a second."""
    forecast = forecast_run(config(), SCHEMA, ActorRate(1000.0), 100.0, cores=4)
    assert (forecast.bound_by, forecast.herd_env_steps_per_s, forecast.env_steps_per_s) == ("learner", 2000, 400)
    assert (forecast.expected_updates_per_s, forecast.samples_per_insert) == (100, 16)
    assert (forecast.actors_wait_share, forecast.learner_wait_share) == (0.8, 0)
    assert (forecast.first_update_s, forecast.replay_full_s) == (0.5, 125)
    assert (forecast.row_bytes, forecast.weights_bytes) == (4 * 4 + 17, WEIGHTS)
    assert forecast.chunks_per_s == pytest.approx(400 / 128)
    assert forecast.rows_bytes_per_s == pytest.approx(400 * 33 + 400 / 128 * HEADER_BYTES)
    assert (forecast.weights_published_bytes_per_s, forecast.weights_fetched_bytes_per_s) == (WEIGHTS, 2 * WEIGHTS)
    assert forecast.network_bytes_per_s == pytest.approx(2 * forecast.rows_bytes_per_s + 3 * WEIGHTS)
    assert forecast.mirror_bytes == 50_000 * (16 + 25)
    assert forecast.training_bytes == 6 * WEIGHTS
    assert forecast.actors_bytes == 2 * (ACTOR_BYTES + WEIGHTS)


def test_slow_actors_have_the_learner_wait() -> None:
    """2 x 10 env steps/s of 400: it waits 95 % of its time; a chunk has what 1 s brings, but a time step at the least:
    8 rows, though flush_s = 1 s has 10. 5 updates/s are a broadcast in 20 s."""
    forecast = forecast_run(config(flush_s=0.5), SCHEMA, ActorRate(10.0), 100.0, cores=4)
    assert (forecast.bound_by, forecast.env_steps_per_s, forecast.expected_updates_per_s) == ("actors", 20, 5)
    assert (forecast.actors_wait_share, forecast.learner_wait_share) == (0, 0.95)
    assert forecast.chunks_per_s == pytest.approx(20 / 8)
    assert forecast.weights_fetched_bytes_per_s == pytest.approx(2 * WEIGHTS / 20)


def test_cores_bound_what_computes_and_not_what_waits() -> None:
    """8 actors of 1000 env steps/s on 2 cores: 2000 where they compute, all 8000 where a fifth of it is computing. On a
    cluster each has a core."""
    for mode, cpu_share, herd in (("local", 1.0, 2000), ("local", 0.2, 8000), ("cluster", 1.0, 8000)):
        forecast = forecast_run(config(mode, count=8), SCHEMA, ActorRate(1000.0, cpu_share), 1e6, cores=2)
        assert forecast.herd_env_steps_per_s == herd


def test_weights_are_broadcast_ten_times_a_second_at_the_most() -> None:
    """And fetched as often as fetch_every_s allows: 1e6 updates/s are 10 broadcasts, 4 actors x 2 of them."""
    forecast = forecast_run(config(count=4, fetch_every_s=0.5), SCHEMA, ActorRate(1e9, 0.001), 1e6, cores=64)
    assert forecast.weights_published_bytes_per_s == pytest.approx(10 * WEIGHTS)
    assert forecast.weights_fetched_bytes_per_s == pytest.approx(4 * 2 * WEIGHTS)


def test_inline_has_no_server() -> None:
    assert forecast_run(config("inline"), SCHEMA, ActorRate(1000.0), 100.0, cores=4).server_bytes == 0


def test_a_sleeping_environment_is_measured_as_one() -> None:
    """Two lanes of 5 ms are stepped one after the other: 200 env steps/s at the most, nearly all of it in the
    environment, hardly any of it on the core."""
    env = {"id": "slow_env:Sleeps-v0", "path": "benchmarks"}
    rate = measure_actor(config(env=env, lanes=2), SCHEMA, seconds=0.5)
    assert 100 < rate.env_steps_per_s <= 201
    assert rate.env_share is not None
    assert rate.env_share > 0.8
    assert rate.cpu_share < 0.5


def test_updates_are_measured() -> None:
    assert measure_updates(config(), SCHEMA, seconds=0.05) > 1


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


GIVEN = ("CartPole-v1", "--env-steps-per-second", "1000", "--updates-per-second", "100")


def test_the_command_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """As text, each number with what it is made of, and as JSON; the preset's values are the plan's."""
    code, out, err = run(capsys, *GIVEN, "--learner.batch", "128")
    assert (code, err) == (0, "")
    assert "plan for CartPole-v1: 1 actor" in out
    assert "mlp  as auto chooses for observations of shape (4,): they are no pictures" in out
    assert "updates/s x batch 128 / 32 samples per insert" in out
    assert "the learner bounds this run" in out
    code, out, err = run(capsys, *GIVEN, "--json")
    shown = json.loads(out)
    assert (code, shown["env_steps_per_s"], shown["learner_env_steps_per_s"]) == (0, 200, 200)
    assert shown["encoder"] == "mlp"
    assert set(asdict(forecast_run(config(), SCHEMA, ActorRate(1.0), 1.0, 1))) < set(shown)


def test_what_a_network_of_ones_own_prints_is_not_in_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chatty.py").write_text("from learner.networks.mlp import MlpEncoder\nprint('chatty is imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, out, err = run(capsys, *GIVEN, "--learner.network.encoder", "chatty:MlpEncoder", "--json")
    assert (code, json.loads(out)["env"], err) == (0, "CartPole-v1", "chatty is imported\n")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--replay.capacity-rows", "1000"], r"capacity of 1000 rows is too small.*raise replay\.capacity_rows"),
        (["--actors.count", "100000", "--replay.capacity-rows", "300000000"], r"of memory.*lower --"),
        (
            ["--actors.count", "5000", "--replay.capacity-rows", "5000000"],
            r"5000 actors of 1\d\d MB each.*--actors\.count",
        ),
        (["--env.id", "Nothing-v0"], r"Nothing"),
    ],
)
def test_the_impossible_is_refused(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = GIVEN if "--env.id" not in options else GIVEN[1:]
    code, out, err = run(capsys, *given, *options)
    assert (code, out) == (2, "")
    assert re.search(told, err.replace("\n", " ")), err


def test_the_networks_bytes_are_those_of_its_weights() -> None:
    from learner.learner import Learner, choose_device, host_arrays

    settings = config()
    arrays = host_arrays(Learner(settings.learner, SCHEMA, choose_device("cpu"), 0).online)
    assert sum(array.nbytes for array in arrays.values()) == network_bytes(settings, SCHEMA) == WEIGHTS
