"""A study's file: what runs come of it, and what of it is refused, with the key and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import blocks

from deploy.config.changes import Difference, differences
from deploy.config.errors import ConfigError
from deploy.config.layers import compose
from deploy.config.models import RunConfig
from deploy.config.numbers import write_yaml
from deploy.studies.study_file import Study, read_study

CARTPOLE: dict[str, Any] = {"environments": ["CartPole-v1"], "budget": {"env_steps": 1000}}


def study(folder: Path, values: Any, environ: Mapping[str, str] | None = None) -> Study:
    file = folder / "classic.yaml"
    file.write_text(values if isinstance(values, str) else write_yaml(values))
    return read_study(file, folder / "studies", environ or {})


def only(found: Study) -> RunConfig:
    (run,) = found.runs
    return run.config


def test_every_environment_has_every_variant_with_every_seed(tmp_path: Path) -> None:
    """Seed by seed, so that half of the time brings half of every comparison."""
    found = study(
        tmp_path,
        """
        environments:
          CartPole-v1:
          MinAtar/Breakout-v1: {budget.env_steps: 2e6, actors: {count: 1}}
        variants:
          default:
          slow: {learner.lr: 1e-5, learner: {network.hidden: [8]}}
        seeds: [0, 7-8]
        budget: {env_steps: 1e5}
        options: {mode: inline, actors.lanes: 4}
        episodes: 20
        """,
    )
    assert (found.name, found.episodes, len(found.runs)) == ("classic", 20, 12)
    assert [run.name for run in found.runs[:5]] == [
        "CartPole-v1--default--s0",
        "CartPole-v1--slow--s0",
        "MinAtar_Breakout-v1--default--s0",
        "MinAtar_Breakout-v1--slow--s0",
        "CartPole-v1--default--s7",
    ]
    for run in found.runs:
        config = run.config
        assert (run.env, run.seed) == (config.env.id, config.seed)
        assert (config.mode, config.actors.lanes) == ("inline", 4), "of all"
        assert config.runs_dir == tmp_path / "studies" / "classic" / "runs"
        games = run.env.startswith("MinAtar")
        assert config.budget.env_steps == (2_000_000 if games else 100_000), "of the environment, over that of all"
        assert config.actors.count == 1
        assert config.learner.network.encoder == ("minatar" if games else "auto"), "the environment's own preset"
        slow = run.variant == "slow"
        assert (config.learner.lr == 1e-5, config.learner.network.hidden == (8,)) == (slow, slow)


def test_a_run_ends_by_its_budget_and_not_where_it_is_solved(tmp_path: Path) -> None:
    """Scores compare at equal env steps only. The preset's own budget does not hold; its options do."""
    config, preset = only(study(tmp_path, CARTPOLE)), compose("CartPole-v1", None, None, {})
    assert (preset.eval.threshold, config.eval.threshold) == (475, None)
    timed = only(study(tmp_path, {**CARTPOLE, "budget": {"seconds": 60}, "options": {"eval.threshold": 200}}))
    assert (timed.budget.env_steps, timed.budget.seconds, timed.eval.threshold) == (None, 60, 200)
    assert {found.path for found in differences(preset, config)} == {"eval.threshold", "budget.env_steps"}


@pytest.mark.parametrize(
    ("where", "expected"), [("options", 1e-4), ("environments", 1e-4), ("variants", 1e-4), ("none", 1e-3)]
)
def test_a_preset_may_stand_among_the_options(tmp_path: Path, where: str, expected: float) -> None:
    """Of a variant, or else of an environment, or else of all; else it goes by the environment."""
    tutorial = {"preset": "tutorial"}
    values = {
        **CARTPOLE,
        "environments": {"CartPole-v1": tutorial if where == "environments" else None},
        "variants": {"v": tutorial if where == "variants" else None},
        "options": tutorial if where == "options" else None,
    }
    config = only(study(tmp_path, values))
    assert (config.learner.lr, config.env.id) == (expected, "CartPole-v1")
    both = {**values, "variants": {"v": {"preset": "mountaincar"}}, "options": tutorial}
    assert only(study(tmp_path, both)).learner.n_step == 5


@pytest.mark.parametrize(
    ("given", "seeds"), [(3, [0, 1, 2]), ("4-6", [4, 5, 6]), ([5], [5]), (["1-2", 9, 1], [1, 2, 9]), ("8", [8])]
)
def test_seeds_are_counted_listed_or_a_range(tmp_path: Path, given: Any, seeds: list[int]) -> None:
    assert [run.seed for run in study(tmp_path, {**CARTPOLE, "seeds": given}).runs] == seeds


BROKEN: dict[str, tuple[Any, str]] = {
    "no YAML": ("environments: [", r"study .*classic.yaml, line 1 is no YAML"),
    "no mapping": ("- CartPole-v1", "holds list, not options"),
    "an unknown key": ({**CARTPOLE, "variant": {}}, r"variant: a study has no such key; did you mean variants\?"),
    "a key like nothing": ({**CARTPOLE, "xyz": 1}, "xyz: a study has no such key; there are study, environments, "),
    "an unknown option": (
        {**CARTPOLE, "variants": {"fast": {"learner.lrr": 1}}},
        r"variants, fast\):\n  learner.lrr: there is no such option; did you mean learner.lr\?",
    ),
    "an unknown budget": ({**CARTPOLE, "budget": {"steps": 9}}, r"budget.steps: .*did you mean budget.env_steps\?"),
    "an option out of bounds": (
        {**CARTPOLE, "options": {"learner.gamma": 2}},
        r"options\):\n  learner.gamma: Input should be less than or equal to 1, got 2",
    ),
    "an unknown preset": ({**CARTPOLE, "options": {"preset": "x"}}, r"classic.yaml: preset 'x' does not exist; one of"),
    "a name that YAML reads as a truth": (
        {"environments": ["CartPole-v1"], "budget": {"env_steps": 9}, "variants": {True: None}},
        "variants: True is no text: put the name into quotes",
    ),
    "a name that YAML reads as a number": (
        {"environments": ["CartPole-v1"], "budget": {"env_steps": 9}, "variants": [1.1]},
        "variants: 1.1 is no text: put the name into quotes",
    ),
    "a number as a name, written in two ways": (
        "environments: [CartPole-v1]\nbudget: {env_steps: 9}\nvariants: {1: , 0x1: }\n",
        "line 3 is no YAML: it has the key '0x1' in line 3 already",
    ),
    "a name as number and as text": (
        {"environments": ["CartPole-v1"], "budget": {"env_steps": 9}, "variants": {1: None, "1": None}},
        "variants: two are called 1",
    ),
    "a variant twice": (
        {"environments": ["CartPole-v1"], "budget": {"env_steps": 9}, "variants": ["a", "b", "a"]},
        "variants: two are called a",
    ),
    "a budget without an end": (
        {"environments": ["CartPole-v1"], "budget": {"seconds": float("inf")}},
        "budget.seconds",
    ),
    "no environment": ({"budget": {"env_steps": 9}}, "environments: give a list of names, or names with options"),
    "no budget": ({"environments": ["CartPole-v1"]}, "budget: CartPole-v1 has none: give budget"),
    "options that are none": ({**CARTPOLE, "variants": {"a": 3}}, "variants, a: options are wanted, .*got 3"),
    "its own seed": ({**CARTPOLE, "options": {"seed": 3}}, "options, seed: a study gives it itself, by its key seeds"),
    "its own environment": (
        {**CARTPOLE, "variants": {"a": {"env": {"id": "x"}}}},
        "a, env.id: .*environments",
    ),
    "a variant's name": ({**CARTPOLE, "variants": ["a--b"]}, "variants: 'a--b': names have"),
    "a study's name": ({**CARTPOLE, "study": "../x"}, "study: '../x' cannot be a folder's name"),
    "a study's name that is none": ({**CARTPOLE, "study": True}, "study: True is no text: put the name into quotes"),
    "a name that is too long": (
        {**CARTPOLE, "variants": ["v" * 60]},
        "cannot be a run's name: it has 77 characters, and at most 64 are possible: choose shorter variants",
    ),
    "a name that begins with a dot": (
        {**CARTPOLE, "environments": [".envs:Env-v0"]},
        "environments: '.envs_Env-v0--default--s0' cannot be a run's name: it has to begin with a letter or digit",
    ),
    "an option by its name and in its section": (
        {**CARTPOLE, "options": {"learner.lr": 1, "learner": {"lr": 2}}},
        "options, learner.lr: it is set twice, by its dotted name or in its section: leave one",
    ),
    "a section that is a value": (
        {**CARTPOLE, "variants": {"a": {"learner": 3, "learner.lr": 1}}},
        "variants, a, learner: it is set twice",
    ),
    "arguments of an environment twice": (
        {**CARTPOLE, "options": {"env": {"kwargs": {"a": 1}}, "env.kwargs.b": 2}},
        "options, env.kwargs: it is set twice",
    ),
    "two of one name": (
        {**CARTPOLE, "environments": ["my_envs:Env-v0", "my:envs:Env-v0"]},
        "two of them would have runs called my_envs_Env-v0--default--s0",
    ),
    "a password": (
        {**CARTPOLE, "options": {"redis.urls": ["redis://:secret@host:1/0"]}},
        "redis.urls: its password would be kept in the study's folder: set QHERD_REDIS_URLS",
    ),
    "seeds that are none": ({**CARTPOLE, "seeds": [0, "a"]}, "seeds: 'a' is none: give how many, a range like 0-9"),
    "a range backwards": ({**CARTPOLE, "seeds": "9-0"}, "seeds: '9-0' is none"),
    "no seeds": ({**CARTPOLE, "seeds": []}, "seeds: 1 x 0 runs, and a study has 1 to 10,000"),
    "too many seeds": ({**CARTPOLE, "seeds": "0-99999999"}, "seeds: '0-99999999' is none"),
    "too many runs": ({**CARTPOLE, "seeds": 9_999, "variants": ["a", "b"]}, "2 x 9999 runs, and a study has"),
    "no episodes": ({**CARTPOLE, "episodes": 0}, "episodes: 0 is no whole number of 1 to 100,000"),
    "episodes that are true": ({**CARTPOLE, "episodes": True}, "episodes: True is no whole number"),
}


@pytest.mark.parametrize(("values", "told"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_is_told_with_its_key(tmp_path: Path, values: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        study(tmp_path, values)
    assert "classic.yaml" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_study_is_called_by_its_file_unless_it_has_a_name(tmp_path: Path) -> None:
    """And the file that a study has kept in its folder is that study's."""
    assert study(tmp_path, CARTPOLE).name == study(tmp_path, {**CARTPOLE, "study": None}).name == "classic"
    assert study(tmp_path, {**CARTPOLE, "study": 7}).name == "7"
    (tmp_path / "studies" / "mine" / "runs").mkdir(parents=True)
    for folder, name in ((tmp_path, "study"), (tmp_path / "studies" / "mine", "mine")):
        (folder / "study.yaml").write_text(write_yaml(CARTPOLE))
        assert read_study(folder / "study.yaml", tmp_path / "studies", {}).name == name


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"study .*none.yaml: No such file or directory"):
        read_study(tmp_path / "none.yaml", tmp_path, {})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("QHERD_LEARNER_LR", "1"),
        ("QHERD_SEED", "1"),
        ("QHERD_ACTORS_LANES", "3"),
        ("QHERD_MODE", "inline"),
        ("QHERD_EVAL_THRESHOLD", "12"),
        ("QHERD_BUDGET_SECONDS", "9"),
        ("QHERD_BUDGET_ENV_STEPS", "9"),
        ("QHERD_BUDGET_ENV_STEPS", ""),
        ("QHERD_RUNS_DIR", "elsewhere"),
        ("QHERD_METRICS_PORT", "0"),
    ],
)
def test_a_variable_does_not_change_what_the_file_says(variable: str, value: str, tmp_path: Path) -> None:
    """It would make two variants one, end runs before their budget, or leave a file that does not repeat them."""
    values = {**CARTPOLE, "variants": {"default": None, "slow": {"learner.lr": 1e-5}}, "options": {"metrics.port": 1}}
    with pytest.raises(ConfigError, match=rf": {variable} is set, and would change the study, .*: unset it"):
        study(tmp_path, values, {variable: value})


def test_a_variable_that_names_a_file_is_told_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "lr").write_text("1")
    with pytest.raises(ConfigError, match=r"learner.lr: QHERD_LEARNER_LR_FILE is set"):
        study(tmp_path, CARTPOLE, {"QHERD_LEARNER_LR_FILE": str(tmp_path / "lr")})


def test_a_variable_says_where_a_studys_runs_are(tmp_path: Path) -> None:
    found = study(tmp_path, CARTPOLE, {"QHERD_LOG_LEVEL": "debug", "QHERD_TRACK_PROJECT": "mine"})
    assert {(run.config.log_level, run.config.track.project) for run in found.runs} == {("debug", "mine")}


def test_where_a_run_is_and_what_auto_chose_is_no_difference() -> None:
    before = RunConfig.model_validate({"learner": {"network": {"encoder": "mlp"}}, "run": "a"})
    after = RunConfig.model_validate({"metrics": {"port": 0}, "runs_dir": "elsewhere", "checkpoint": {"keep": 1}})
    assert list(differences(before, after)) == []
    changed = RunConfig.model_validate({"learner": {"lr": 0.1, "network": {"encoder": "nature"}}})
    assert list(differences(before, changed)) == [
        Difference("learner.network.encoder", "mlp", "nature"),
        Difference("learner.lr", 5e-4, 0.1),
    ]


def test_the_documents_file_is_one(tmp_path: Path) -> None:
    (block,) = (block for block in blocks() if block.attributes.get("file") == "classic.yaml")
    assert len(study(tmp_path, block.text).runs) == 40
