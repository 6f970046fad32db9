"""The configuration's layers, its names, and what it never writes down."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from deploy.config.errors import ConfigError
from deploy.config.layers import PRESETS, _kind_of, check_bounds, compose, preset_for, preset_names, put_option
from deploy.config.models import RedisConfig, RunConfig, dump, option_paths
from deploy.config.numbers import parse_whole, read_yaml, write_yaml

ENV = "CartPole-v1"


def written(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def variable(path: str) -> str:
    return "QHERD_" + path.upper().replace(".", "_")


# -- layers: each wins over the one before


def test_without_any_layer_the_defaults_hold(tmp_path: Path) -> None:
    config = compose("FrozenLake-v1", None, None, {})
    assert config == RunConfig.model_validate({"env": {"id": "FrozenLake-v1"}})
    assert config.learner.lr == RunConfig().learner.lr == 5e-4


def test_the_preset_wins_over_the_defaults() -> None:
    assert compose(ENV, None, None, {}).learner.lr == 1e-3


def test_the_file_wins_over_the_preset_and_leaves_the_rest_to_it(tmp_path: Path) -> None:
    file = written(tmp_path / "c.yaml", {"learner": {"lr": 2e-3}})
    config = compose(ENV, None, file, {})
    assert config.learner.lr == 2e-3
    assert (
        config.learner.target_tau == compose(ENV, None, None, {}).learner.target_tau != RunConfig().learner.target_tau
    )


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path / "c.yaml", {"learner": {"lr": 2e-3, "batch": 32}, "redis": {"url": "redis://file"}})
    config = compose(ENV, None, file, {"QHERD_LEARNER_LR": "3e-3", "QHERD_REDIS_URL": "redis://variable"})
    assert (config.learner.lr, config.learner.batch, config.redis.url) == (3e-3, 32, "redis://variable")


def test_options_of_a_section_that_fit_only_together_may_stand_in_several_layers(tmp_path: Path) -> None:
    """Each is looked at alone, too, for the sake of the message, where a preset's sequences with another burn-in have a
    burn-in and nothing else."""
    file = written(tmp_path / "c.yaml", {"replay": {"sequences": {"burn_in": 3}}, "learner": {"c51": {"v_min": 10.5}}})
    environ = {"QHERD_REPLAY_SEQUENCES_OVERLAP": "2", "QHERD_LEARNER_C51_V_MAX": "20"}
    config = compose(ENV, "r2d2", file, environ)
    assert config.replay.sequences.model_dump() == {"trained": 16, "burn_in": 3, "overlap": 2}
    assert (config.learner.c51.v_min, config.learner.c51.v_max) == (10.5, 20)
    with pytest.raises(ConfigError, match=r"\(file .*c\.yaml\):\n.*sequences: .*burn_in is 3 .*trained is 0"):
        compose(ENV, None, file, {"QHERD_LEARNER_C51_V_MAX": "20"})
    over = {"QHERD_REPLAY_SEQUENCES_BURN_IN": "17"}
    with pytest.raises(ConfigError, match=r"(?s)\(preset r2d2 and file .*environment.*burn_in is 17, longer"):
        compose(ENV, "r2d2", file, {**environ, **over})


def test_the_env_id_is_taken_from_file_or_variable_where_the_command_line_has_none(tmp_path: Path) -> None:
    file = written(tmp_path / "c.yaml", {"env": {"id": ENV}})
    assert compose(None, None, file, {}).learner == compose(ENV, None, None, {}).learner
    config = compose(None, None, None, {"QHERD_ENV_ID": ENV})
    assert config.env.id == ENV
    assert config.learner == compose(ENV, None, None, {}).learner, "the preset goes by the env id, wherever it stands"


def test_a_named_preset_serves_another_environment() -> None:
    config = compose(ENV, "tutorial", None, {})
    assert (config.env.id, config.learner.lr) == (ENV, 1e-4)


def test_the_presets_kwargs_are_replaced_and_not_mixed(tmp_path: Path) -> None:
    file = written(tmp_path / "c.yaml", {"env": {"kwargs": {"a": 1, "b": 2}}})
    assert compose(ENV, None, file, {"QHERD_ENV_KWARGS": "{c: 3}"}).env.kwargs == {"c": 3}


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("learner.lr", "1e-3", 1e-3),  # YAML 1.1 reads this as a string
        ("learner.double", "false", False),
        ("learner.network.hidden", "[32, 16]", (32, 16)),
        ("budget.env_steps", "1000", 1000),
        ("eval.threshold", "null", None),
        ("run", "mine", "mine"),
        ("run", "12", "12"),
        ("run", "12e4", "12e4"),
        ("env.path", "/envs", Path("/envs")),
    ],
)
def test_a_variable_holds_yaml(path: str, text: str, value: object) -> None:
    config: Any = compose(ENV, None, None, {variable(path): text})
    for name in path.split("."):
        config = getattr(config, name)
    assert config == value


# -- numbers


WHOLE = [("1000000", 10**6), ("1e6", 10**6), ("1E+6", 10**6), ("1_000_000", 10**6), ("1.0e3", 1000), ("2.5e1", 25)]


@pytest.mark.parametrize(("text", "value"), WHOLE)
def test_a_whole_number_is_written_as_people_write_it(tmp_path: Path, text: str, value: int) -> None:
    (tmp_path / "c.yaml").write_text(f"budget: {{env_steps: {text}}}")
    from_file = compose(ENV, None, tmp_path / "c.yaml", {})
    from_variable = compose(ENV, None, None, {variable("budget.env_steps"): text})
    assert from_file.budget.env_steps == from_variable.budget.env_steps == parse_whole(text) == value
    assert type(from_file.budget.env_steps) is int


@pytest.mark.parametrize("text", ["1.5", "15e-1", "abc", "", "inf", "nan", "1e999999999"])
def test_what_is_no_whole_number_is_refused_in_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"whole"):
        parse_whole(text)
    (tmp_path / "c.yaml").write_text(f"budget: {{env_steps: '{text}'}}")
    with pytest.raises(ConfigError, match=r"file .*c\.yaml.*\n.*budget\.env_steps: .*valid integer"):
        compose(ENV, None, tmp_path / "c.yaml", {})
    with pytest.raises(ConfigError, match=r"budget\.env_steps: .*(valid integer|finite)"):
        compose(ENV, None, None, {variable("budget.env_steps"): text or "abc"})


@pytest.mark.parametrize("text", ["-1e2", "-100", "-1.0e+2", "-100.0"])
def test_a_negative_number_is_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(f"eval: {{threshold: {text}}}\nenv: {{kwargs: {{gravity: {text}}}}}")
    config = compose(ENV, None, tmp_path / "c.yaml", {})
    assert config.eval.threshold == config.env.kwargs["gravity"] == -100


def test_a_text_that_looks_like_a_number_is_written_so_that_it_is_read_as_one() -> None:
    for text in ("12e4", "1e6", "-1E-3", "12", "1.5"):
        assert read_yaml(write_yaml({"run": text})) == {"run": text}
    assert read_yaml(write_yaml({"lr": 1e-05}, flow=True)) == {"lr": 1e-05}


# -- names


def test_every_option_has_an_environment_variable_of_its_own() -> None:
    counted = Counter(variable(path) for path in option_paths())
    assert [name for name, count in counted.items() if count > 1] == []
    assert {"QHERD_LEARNER_LR", "QHERD_REDIS_URL", "QHERD_LEARNER_NETWORK_HIDDEN"} <= set(counted)


@pytest.mark.parametrize(
    ("values", "wrong", "nearest"),
    [
        ({"learner": {"lrr": 1}}, "learner.lrr", "learner.lr"),
        ({"sed": 1}, "sed", "seed"),
        ({"replay": {"capacity": 10}}, "replay.capacity", "replay.capacity_rows"),
        ({"learner": {"network": {"hiden": [3]}}}, "learner.network.hiden", "learner.network.hidden"),
    ],
)
def test_an_unknown_option_names_the_nearest(tmp_path: Path, values: dict[str, Any], wrong: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"{wrong}: .*did you mean {nearest}\?"):
        compose(ENV, None, written(tmp_path / "c.yaml", values), {})


KINDS = {path: {_kind_of(path), *get_args(_kind_of(path))} for path in option_paths()}
NO_NUMBERS = [(path, True) for path, kinds in KINDS.items() if kinds & {int, float}]
NO_LISTS_OF_NUMBERS = [("learner.network.hidden", value) for value in ([True], [64, False])]
TOO_BIG = [(path, value) for path, kinds in KINDS.items() if int in kinds for value in (2**63, 1e300, -(2**63))]


@pytest.mark.parametrize(("path", "value"), [*NO_NUMBERS, *NO_LISTS_OF_NUMBERS, *TOO_BIG])
def test_a_number_is_neither_true_nor_beyond_63_bits(path: str, value: Any, tmp_path: Path) -> None:
    """Pydantic takes ``true`` for 1."""
    values: dict[str, Any] = {}
    put_option(values, path, value)
    with pytest.raises(ConfigError, match=rf"\n  {re.escape(path)}: "):
        compose(None, None, written(tmp_path / "run.yaml", values), {})


PATHS = [path for path, kinds in KINDS.items() if Path in kinds]


@pytest.mark.parametrize(
    ("path", "value"),
    [(path, text) for path in (*PATHS, "env.id", "redis.url") for text in ("a\0b", "a\ud800b")]
    + [("redis.urls", ["redis://a", "redis://\0"])],
)
def test_a_text_that_no_path_can_have_is_refused(path: str, value: Any) -> None:
    """YAML and Python can write such a text; the system takes it for no path, which a run met in its midst."""
    with pytest.raises(ConfigError, match=rf"\n  {re.escape(path)}: (it has a character that no|.* valid string)"):
        compose(None, None, None, {}, overrides={path: value})


@pytest.mark.parametrize("option", ["alpha", "beta", "beta_updates"])
def test_an_option_by_its_former_name_is_refused_with_the_name_of_now(tmp_path: Path, option: str) -> None:
    (tmp_path / "c.yaml").write_text(f"replay: {{{option}: 1}}")
    dashed, upper = option.replace("_", "-"), option.upper()
    with pytest.raises(ConfigError, match=rf"replay\.{option}: the option is called replay\.prioritised\.{option} now"):
        compose(ENV, None, tmp_path / "c.yaml", {})
    with pytest.raises(ConfigError, match=rf"QHERD_REPLAY_{upper}: it is called QHERD_REPLAY_PRIORITISED_{upper} now"):
        compose(ENV, None, None, {f"QHERD_REPLAY_{upper}": "1"})
    for arguments in ([f"--replay.{option}", "1"], [f"--replay.{dashed}=1"]):
        with pytest.raises(ConfigError, match=rf"^--replay\.\S+: .* called --replay\.prioritised\.{dashed} now$"):
            check_bounds(arguments)
    check_bounds(["--run", f"replay.{option}", f"--replay.prioritised.{dashed}", "1"])


@pytest.mark.parametrize("option", ["learner.double", "learner.munchausen.enabled"])
def test_a_value_after_a_switch_is_refused_with_what_to_write(option: str) -> None:
    *section, leaf = option.split(".")
    off = ".".join([*section, f"no-{leaf}"])
    for text, right in (("true", option), ("True", option), ("false", off)):
        for arguments in ([f"--{option}", text], [f"--{option}={text}"]):
            with pytest.raises(ConfigError, match=rf"^--{option} {text}: a switch takes no value; write --{right}$"):
                check_bounds(arguments)
    check_bounds([f"--{option}", f"--{off}", "--run", "true"])


def test_a_variable_that_is_no_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"QHERD_LEARNER_LRR.*QHERD_LEARNER_LR\b"):
        compose(ENV, None, None, {"QHERD_LEARNER_LRR": "1"})


@pytest.mark.parametrize("text", ["[", "{a: ", "fast", "-1"])
def test_a_variable_that_cannot_be_used_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"learner\.lr|QHERD_LEARNER_LR"):
        compose(ENV, None, None, {"QHERD_LEARNER_LR": text})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learner: [", "no YAML"),
        ("- 1\n- 2\n", "list"),
        ("learner: 5", "learner"),
        ("learner: {lr: fast}", r"learner\.lr.*'fast'"),
        ("learner: {lr: -1}", r"learner\.lr.*greater than 0.*-1"),
        ("run: ../../etc", "run"),
        ("mode: remote", "'inline', 'local' or 'cluster'"),
    ],
)
def test_a_file_that_cannot_be_used_says_where(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        compose(ENV, None, file, {})


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing yet\n")
    assert compose(ENV, None, tmp_path / "c.yaml", {}) == compose(ENV, None, None, {})


def test_a_preset_that_does_not_exist_shows_those_that_do() -> None:
    with pytest.raises(ConfigError, match=", ".join(preset_names())):
        compose(ENV, "doom", None, {})


# -- passwords

PASSWORD = "s3cr3t"
URLS = [
    f"redis://:{PASSWORD}@host:6379/0",
    f"redis://user:{PASSWORD}@host",
    f"rediss://user:{PASSWORD}@host:6379",
    f"unix://user:{PASSWORD}@/run/redis.sock",
    f"redis://host:6379/0?password={PASSWORD}",
    f"redis://host:6379?db=0&password={PASSWORD}&health_check_interval=5",
    f"unix:///run/redis.sock?username=u&password={PASSWORD}",
    f"redis://:{PASSWORD}/more@host",
    f"redis://:{PASSWORD}@more@host",
    f"redis://:more:{PASSWORD}@host",
    f"redis://user:a@b{PASSWORD}?x=1#y@host:1/0",
]


@pytest.mark.parametrize("url", URLS)
def test_the_dump_has_no_password(url: str) -> None:
    shown = yaml.safe_dump(dump(RunConfig(redis=RedisConfig(url=url))))
    assert PASSWORD not in shown
    assert "url:" in shown
    assert "host" in shown or "redis.sock" in shown


def test_the_dump_of_several_servers_has_no_password() -> None:
    actors = (f"redis://actor:{PASSWORD}@host:6379/0", f"redis://actor:{PASSWORD}@other")
    shown = dump(RunConfig(redis=RedisConfig(urls=(URLS[0], f"redis://user:{PASSWORD}@other"), actor_urls=actors)))
    assert shown["redis"] == {
        "url": None,
        "urls": ["redis://:***@host:6379/0", "redis://user:***@other"],
        "actor_url": None,
        "actor_urls": ["redis://actor:***@host:6379/0", "redis://actor:***@other"],
    }


@pytest.mark.parametrize("variable", ["QHERD_REDIS_URL", "QHERD_REDIS_URLS"])
def test_a_variable_that_is_no_yaml_has_no_password(variable: str) -> None:
    with pytest.raises(ConfigError, match=variable) as raised:
        compose(ENV, None, None, {variable: f"[redis://:]{PASSWORD}@host]"})
    assert PASSWORD not in str(raised.value)


def test_a_file_that_is_no_yaml_is_named_with_the_line_and_without_a_password(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"seed: 1\nredis:\n  url: [redis://:{PASSWORD}@host\n")
    with pytest.raises(ConfigError, match=r"c\.yaml, line \d is no YAML: \w+") as raised:
        compose(ENV, None, file, {})
    assert PASSWORD not in str(raised.value)


# -- servers


def test_the_servers_are_the_one_or_the_several_in_their_order() -> None:
    assert RedisConfig().servers == ()
    assert RedisConfig(url="redis://b").servers == ("redis://b",)
    assert RedisConfig(urls=("redis://b", "redis://a")).servers == ("redis://b", "redis://a")


def test_several_servers_come_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    file = written(tmp_path / "c.yaml", {"redis": {"urls": ["redis://a", "redis://b"]}})
    assert compose(ENV, None, file, {}).redis.servers == ("redis://a", "redis://b")
    environ = {"QHERD_REDIS_URLS": "[redis://c, 'redis://:p,w@d:1']"}
    assert compose(ENV, None, file, environ).redis.servers == ("redis://c", "redis://:p,w@d:1")


def test_one_server_and_several_exclude_each_other_also_over_layers(tmp_path: Path) -> None:
    file = written(tmp_path / "c.yaml", {"redis": {"url": URLS[0]}})
    with pytest.raises(ConfigError, match=r"redis\.url and redis\.urls") as raised:
        compose(ENV, None, file, {"QHERD_REDIS_URLS": f"[{URLS[1]}]"})
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    "urls",
    [
        (f"redis://:{PASSWORD}@host", f"redis://:{PASSWORD}@host"),
        (f"redis://:{PASSWORD}@host", "redis://other", "rediss://user@HOST:6379/0"),
        (f"redis://:{PASSWORD}@host:6379/0", f"redis://host/1?password={PASSWORD}"),
        (f"unix://u:{PASSWORD}@/run/a.sock", "unix:///run/a.sock"),
    ],
)
def test_a_server_that_is_given_twice_is_refused(urls: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"(host|a\.sock).* more than once") as raised:
        RedisConfig(urls=urls)
    assert PASSWORD not in str(raised.value)


def test_servers_that_differ_in_place_are_several() -> None:
    urls = ("redis://host", "redis://host:6380", "redis://other", "unix:///a", "unix:///b", "redis://host:port")
    assert RedisConfig(urls=urls).servers == urls


@pytest.mark.parametrize("values", [{"redis": URLS[0]}, {"redis": {"urll": URLS[0]}}, {"redis": {"urls": URLS[0]}}])
def test_an_error_about_a_url_in_the_wrong_place_has_no_password(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        compose(ENV, None, written(tmp_path / "c.yaml", values), {})
    assert PASSWORD not in str(raised.value)


def test_the_dump_loads_back_to_the_same_config(tmp_path: Path) -> None:
    for name in preset_names():
        config = compose(None, name, None, {"QHERD_SEED": "3", "QHERD_ENV_KWARGS": "{a: [1, 2]}"})
        file = written(tmp_path / "c.yaml", dump(config))
        assert compose(None, None, file, {}) == config


# -- presets


@pytest.mark.parametrize("name", preset_names())
def test_each_preset_is_valid_and_names_only_options(name: str) -> None:
    compose(None, name, None, {})
    values = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    assert set(values) - {"default_for"} <= {path.partition(".")[0] for path in option_paths()}


def test_the_default_presets() -> None:
    assert preset_names() == [
        "acrobot",
        "atari",
        "cartpole",
        "lunarlander",
        "minatar",
        "mountaincar",
        "r2d2",
        "tutorial",
    ]
    assert preset_for("LunarLander-v3") == "lunarlander"
    assert preset_for("CartPole-v1") == "cartpole"
    assert preset_for("ALE/Breakout-v5") == "atari"
    assert preset_for("MinAtar/Asterix-v1") == "minatar"
    assert preset_for("Acrobot-v1") == "acrobot"
    assert preset_for("MountainCar-v0") == "mountaincar"
    assert preset_for("Taxi-v3") is None
    assert compose(None, None, None, {}) == compose("LunarLander-v3", "lunarlander", None, {})


def test_the_tutorial_is_the_textbook() -> None:
    """In network, learning rate, target and sampling; how often the target follows, and what is averaged, is not."""
    config = compose(None, "tutorial", None, {})
    learner = config.learner
    assert (learner.network.hidden, learner.network.dueling) == ((64, 64), False)
    assert (learner.lr, learner.n_step, learner.double) == (1e-4, 1, False)
    assert config.replay.sampler == "uniform"
    assert config.env.id == "LunarLander-v3"


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 1  # type: ignore[misc]


# -- files of secrets


def test_a_variable_may_name_a_file_with_its_value(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://learner:secret@valkey:6379\n")
    (tmp_path / "urls").write_text("[redis://a:p@one, redis://a:p@two]")
    assert compose(ENV, None, None, {"QHERD_REDIS_URL_FILE": str(tmp_path / "url")}).redis.servers == (
        "redis://learner:secret@valkey:6379",
    )
    assert len(compose(ENV, None, None, {"QHERD_REDIS_URLS_FILE": str(tmp_path / "urls")}).redis.servers) == 2


def test_a_secrets_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"QHERD_REDIS_URL_FILE: .*gone: No such file"):
        compose(ENV, None, None, {"QHERD_REDIS_URL_FILE": str(tmp_path / "gone")})
    (tmp_path / "url").write_text("redis://:secret@valkey")
    both = {"QHERD_REDIS_URL": "redis://x", "QHERD_REDIS_URL_FILE": str(tmp_path / "url")}
    with pytest.raises(ConfigError, match="both set"):
        compose(ENV, None, None, both)
    with pytest.raises(ConfigError, match="QHERD_REDIS_ULR: there is no such option; did you mean QHERD_REDIS_URL"):
        compose(ENV, None, None, {"QHERD_REDIS_ULR_FILE": str(tmp_path / "url")})


@pytest.mark.parametrize(
    "values",
    [
        {"url": "redis://l:p@one", "actor_url": "redis://a:p@two"},
        {"actor_url": "redis://a:p@one"},
        {"urls": ("redis://l:p@one", "redis://l:p@two"), "actor_urls": ("redis://a:p@two", "redis://a:p@one")},
        {"urls": ("redis://l:p@one", "redis://l:p@two"), "actor_url": "redis://a:p@one"},
    ],
)
def test_actors_have_the_servers_of_the_learner(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="in their order"):
        RedisConfig(**values)


def test_actors_have_a_user_of_their_own_that_no_dump_has() -> None:
    redis = RedisConfig(url="redis://learner:one@valkey", actor_url="redis://actor:two@valkey:6379")
    assert redis.actor_servers == ("redis://actor:two@valkey:6379",)
    assert dump(RunConfig(redis=redis))["redis"] == {
        "url": "redis://learner:***@valkey",
        "urls": [],
        "actor_url": "redis://actor:***@valkey:6379",
        "actor_urls": [],
    }
