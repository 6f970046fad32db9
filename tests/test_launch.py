"""What is checked before a run, and the memory that is planned for its server."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest
from lending import plenty

from actors.rows import Rows
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.planning.memory import backstop_chunks, check_limiter, check_windows, chunk_rows, server_bytes
from deploy.planning.preconditions import check, probe_env
from deploy.server.embedded import EmbeddedServer
from learner.log_upkeep import TRIM_SHARE
from replay.chunk import Chunk, Counters, Schema, encode
from replay.chunk_log.protocol import ChunkId
from replay.chunk_log.redis_log import RedisLog
from replay.limiter import CHUNKS_EACH

SCHEMA = Schema((4,), "float32", 2)


def config(**values: Any) -> RunConfig:
    return RunConfig.model_validate({"env": {"id": "CartPole-v1"}, **values})


# -- checks


def test_a_usable_config_passes() -> None:
    for mode in ("inline", "local"):
        check(config(mode=mode))


@pytest.mark.parametrize(
    "replay",
    [{"capacity_rows": 100, "min_rows": 1000}, {"capacity_rows": 1100, "min_rows": 1000}],
)
def test_a_capacity_that_the_actors_would_overrun_is_refused_with_numbers(replay: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"{replay['capacity_rows']} rows is too small.*at least \d+.*capacity_rows"):
        check(config(replay=replay))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replay": {"prioritised": {"beta": 0.5}}}, "replay.prioritised.beta is 0.5, and replay.sampler is uniform"),
        ({"learner": {"qr_dqn": {"quantiles": 7}}}, "learner.qr_dqn.quantiles is 7, and learner.algorithm is dqn"),
        (
            {"learner": {"network": {"impala": {"width": 2}}}},
            "learner.network.impala.width is 2, and learner.network.encoder is auto",
        ),
    ],
)
def test_an_option_of_what_is_not_chosen_is_refused_with_a_remedy(values: dict[str, Any], said: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{said}, which has no such option: choose --\S+ (prioritised|qr_dqn|impala), or"
    ):
        check(config(**values))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"munchausen": {"alpha": 0.5}}, "learner.munchausen.alpha is 0.5, and learner.munchausen.enabled is False"),
        ({"anneal": {"n_step": 5}}, "learner.anneal.n_step is 5, and learner.anneal.updates is 0"),
    ],
)
def test_an_option_of_what_is_switched_off_is_refused_with_a_remedy(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{said}, so that it does nothing: give --learner\.\w+\.\w+, or leave"):
        check(config(learner=section))


def test_options_of_what_is_chosen_or_ones_own_are_taken() -> None:
    check(config(learner={"munchausen": {"enabled": True, "alpha": 0.5}}))
    check(config(learner={"anneal": {"updates": 100, "n_step": 5}}))
    check(config(replay={"sampler": "prioritised", "prioritised": {"beta": 0.5}}))
    check(config(learner={"algorithm": "qr_dqn", "qr_dqn": {"quantiles": 7}}))
    check(config(learner={"network": {"encoder": "impala", "impala": {"width": 2}}}))
    check(config(replay={"sampler": "mine:Mine", "prioritised": {"beta": 0.5}}))


def test_more_actors_need_more_capacity() -> None:
    """Credit bounds what is on its way, however many they are; each lane's share of the ring has to hold a window."""
    replay = {"capacity_rows": 4000, "min_rows": 1000}
    check_windows(config(replay=replay), SCHEMA)
    more = config(replay=replay, actors={"count": 64})
    check(more)
    with pytest.raises(ConfigError, match=r"4,000 rows holds .* of each of 64 x .*actors\.count"):
        check_windows(more, SCHEMA)


@pytest.mark.parametrize(
    ("more", "option"),
    [({}, "redis.url"), ({"ray": {"address": "auto"}}, "redis.url"), ({"redis": {"url": "redis://h"}}, "ray.address")],
)
def test_the_cluster_mode_says_what_it_needs(more: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError, match=f"--{option}"):
        check(config(mode="cluster", **more))


def test_a_busy_port_is_refused_and_a_free_one_is_left_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*--metrics\.port"):
            check(config(metrics={"port": port}))
    check(config(metrics={"port": port}))
    socket.create_server(("127.0.0.1", port)).close()


def test_a_metrics_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:9100"):
        check(config(metrics={"port": 9100, "host": "192.0.2.1"}))


@pytest.mark.parametrize("host", ["::1", "::"])
def test_metrics_may_be_served_on_ipv6(host: str) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"\[{host}\]:{port}.*--metrics\.port"):
            check(config(metrics={"port": port, "host": host}))
    check(config(metrics={"port": port, "host": host}))


def test_a_ray_address_may_be_ipv6() -> None:
    """It is reached: what is missed then is the server."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as ray:
        address, redis = f"[::1]:{ray.getsockname()[1]}", {"url": "redis://127.0.0.1:1"}
        with pytest.raises(ConfigError, match=r"no answer within .* redis://127\.0\.0\.1:1"):
            check(config(mode="cluster", ray={"address": address}, redis=redis))
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at \[::1\]:\d+: .*refused"):
        check(config(mode="cluster", ray={"address": address}, redis=redis))


@pytest.mark.parametrize("host", ["not a host", "nowhere.invalid", "a" * 80 + ".example"])
def test_a_metrics_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="metrics"):
        check(config(metrics={"port": 9100, "host": host}))


def test_the_probe_says_what_is_stored() -> None:
    assert probe_env(config()) == SCHEMA
    assert probe_env(config(env={"id": "FrozenLake-v1"})) == Schema((16,), "float32", 4)
    slippery = {"id": "FrozenLake-v1", "kwargs": {"map_name": "8x8"}}
    assert probe_env(config(env=slippery)).obs_shape == (64,)


# -- memory


@pytest.mark.parametrize(("steps", "lanes"), [(16, 16), (1, 16), (1, 1)])
def test_the_planned_memory_holds_all_that_the_mirror_may_reach(steps: int, lanes: int) -> None:
    """Also where flush_s closes each chunk after one step. Uncompressible rows; the backstop cuts nothing before."""
    settings = config(
        actors={"count": 2, "lanes": lanes, "chunk_steps": 16}, replay={"capacity_rows": 12_000, "min_rows": 1000}
    )
    assert chunk_rows(settings) == 16 * lanes
    rng = np.random.default_rng(0)
    planned = server_bytes(settings, SCHEMA)
    with EmbeddedServer("r", planned) as server:
        log = RedisLog(server.url("learner"), "r", max_chunks=backstop_chunks(settings))
        log.publish(1, plenty(), b"\0" * (2 << 20))
        rows = 0
        while rows < settings.replay.capacity_rows + 4 * 2 * chunk_rows(settings):
            rows += steps * lanes
            slot, seq = 0, rows // (steps * lanes)
            log.append(slot, ChunkId(1, seq), some_chunk(slot, seq, steps, lanes, rng))
        used = int(log.redis.info("memory")["used_memory"])
        assert log.redis.xlen(log.chunks_key(0)) == seq, "the backstop has cut what the mirror may need"
        log.close()
    assert used < planned


@pytest.mark.parametrize(("capacity", "count", "lanes"), [(100_000, 16, 16), (20_000, 8, 16), (100_000, 8, 4)])
def test_the_planned_memory_is_not_nearly_full_with_what_credit_lets_be_on_its_way(
    capacity: int, count: int, lanes: int
) -> None:
    """Else the learner would trim the log below what the mirror holds, all the time."""
    settings = config(actors={"count": count, "lanes": lanes}, replay={"capacity_rows": capacity})
    pictures = Schema((84, 84), "uint8", 4)
    window = check_limiter(settings).window_rows
    bound = server_bytes(settings, pictures) // pictures.row_bytes
    between_trims = max(capacity // TRIM_SHARE, window // CHUNKS_EACH)
    assert capacity + between_trims + window < bound - max(bound // 10, 2 * window)


def some_chunk(slot: int, seq: int, steps: int, lanes: int, rng: np.random.Generator) -> bytes:
    rows = Rows(steps, lanes, SCHEMA, "an env")
    rows.obs[:] = rng.normal(size=rows.obs.shape)
    columns, counters = rows.finish_chunk(steps, Counters())
    return encode(Chunk(slot, 1, seq, 1, counters, *columns), SCHEMA, "r")
