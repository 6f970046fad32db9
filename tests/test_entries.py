"""Observations that are a Dict or Tuple of pictures and other entries: taken apart for encoders of their own."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import signal_env
import torch
import yaml
from cli_runs import summary
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Space, Tuple
from numpy.testing import assert_allclose, assert_array_equal
from signal_env import picture_of

from actors.config import EnvConfig
from actors.envs import make_env, make_lanes, schema_of
from actors.first_look import first_look
from actors.policy import make_policy
from actors.spaces import observations_of
from deploy.cli import main
from deploy.config.models import RunConfig
from deploy.diagnosis.preflight import preflight
from deploy.run_directory.directory import RunDirectory
from deploy.sessions.driver import train
from learner.networks import NetworkConfig, NetworkSpec, build_network, choice_of, encoder_of
from learner.networks.choice import parts_of
from learner.networks.entries import of_part
from learner.networks.shapes import MINATAR_CHANNELS
from learner.weights import unpack
from replay.chunk import MAX_ENTRIES, ObsEntry, Schema

SIGNAL = EnvConfig(id="signal_env:Signal-v0", path=Path(signal_env.__file__).parent)
PICTURE, RULE = ObsEntry("picture", (4, 4, 1), "uint8"), ObsEntry("rule", (2,), "float32")
SCHEMA = Schema((18,), "float32", 2, entries=(PICTURE, RULE))


pytestmark = pytest.mark.usefixtures("torch_as_before")


# -- the schema


LEAVES: tuple[Space[Any], ...] = (Discrete(2), Dict(x=MultiBinary(3)))
BOXES: tuple[Space[Any], ...] = (Box(-1, 1, (2, 5, 4), np.float64), Box(0, 1, (), np.float32))


@pytest.mark.parametrize(
    ("space", "entries"),
    [
        (
            Dict({"b": Box(0, 255, (5, 4, 3), np.uint8), "a": Tuple(LEAVES)}),
            [("a/0", (2,), "float32", True), ("a/1/x", (3,), "int8", True), ("b", (5, 4, 3), "uint8", True)],
        ),
        (
            Tuple(BOXES),
            [("0", (2, 5, 4), "float32", False), ("1", (), "float32", True)],
        ),
        (Dict({"k" * 99: Discrete(3)}), [("k" * 64, (3,), "float32", True)]),
        (Box(0, 1, (3,)), []),
        (Discrete(3), []),
    ],
    ids=["nested", "channels first", "a long name", "Box", "Discrete"],
)
def test_entries_have_names_shapes_and_dtypes(space: Space[Any], entries: list[Any]) -> None:
    found = observations_of("E", space).entries
    assert [(each.name, each.shape, each.dtype, each.channels_last) for each in found] == entries


def test_actors_evaluator_and_first_look_find_the_same_entries() -> None:
    """Through the wrappers of a stack and of a lane, and through the pipe of the process that looks."""
    assert schema_of(make_env(SIGNAL, training=True)) == SCHEMA
    stacked = SIGNAL.model_copy(update={"frame_stack": 3})
    for env in (make_env(stacked, training=False), make_lanes(stacked, 1).envs[0]):
        assert schema_of(env) == replace(SCHEMA, stack=3)
    assert first_look(stacked, 5, 60.0, lambda _: None).schema == replace(SCHEMA, stack=3)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ((PICTURE,), r"observations of shape \(18,\) have entries of 16 numbers in all"),
        ((PICTURE, replace(RULE, dtype="float64")), "dtype='float64'.* is no entry of observations"),
        ((PICTURE, replace(RULE, shape=(2, -1))), r"shape=\(2, -1\).* is no entry of observations"),
        ((PICTURE, replace(RULE, name="r" * 65)), "is no entry of observations: a name of up to 64 letters"),
        ((RULE,) * (MAX_ENTRIES + 1), f"observations of {MAX_ENTRIES + 1} entries; {MAX_ENTRIES} are the most"),
    ],
    ids=["another size", "dtype", "shape", "name", "too many"],
)
def test_entries_that_cannot_be_are_refused(entries: tuple[ObsEntry, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(SCHEMA, entries=entries)


def test_the_digest_has_the_entries_and_without_any_it_is_as_ever() -> None:
    """Chunks of a run that began without entries are still its own."""
    plain = replace(SCHEMA, entries=())
    columns = [[column.name, column.dtype, column.shape, column.per] for column in plain.columns]
    for schema, hashed in (
        (plain, [columns, 2, 1]),
        (SCHEMA, [columns, 2, 1, [["picture", "uint8", [4, 4, 1], True], ["rule", "float32", [2], True]]]),
    ):
        assert schema.digest == int.from_bytes(hashlib.sha256(json.dumps(hashed).encode()).digest()[:8], "little")


# -- taking them apart


def test_each_part_gets_its_own_numbers() -> None:
    """Two pictures between three others: the pictures each as its own shape, the others as one vector, also where a
    stack is on top; neighbours are one slice."""
    entries = (
        ObsEntry("a", (2,), "float32"),
        ObsEntry("b", (3, 3, 1), "uint8"),
        ObsEntry("c", (1, 2), "float32"),
        ObsEntry("d", (), "float32"),
        ObsEntry("e", (3, 4), "uint8"),
        ObsEntry("f", (2, 2, 3), "uint8"),
    )
    schema = Schema((2 + 9 + 2 + 1 + 12 + 12,), "float32", 2, stack=2, entries=entries)
    parts = parts_of(schema)
    assert [(part.encoder, part.schema.input_shape, part.where) for part in parts] == [
        ("minatar", (2, 3, 3, 1), (slice(2, 11),)),
        ("minatar", (2, 3, 4), (slice(14, 26),)),
        ("mlp", (2, 17), (slice(0, 2), slice(11, 14), slice(26, 38))),
    ]
    obs = torch.arange(2 * 38, dtype=torch.float32).reshape(1, 2, 38)
    b, e, others = (of_part(obs, part)[0].numpy() for part in parts)
    assert_array_equal(b[:, :, :, 0], [np.arange(2, 11).reshape(3, 3), np.arange(40, 49).reshape(3, 3)])
    assert_array_equal(e, [np.arange(14, 26).reshape(3, 4), np.arange(52, 64).reshape(3, 4)])
    assert_array_equal(others[0], [0, 1, 11, 12, 13, *range(26, 38)])
    assert_array_equal(others[1], others[0] + 38)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_the_network_sees_a_pixel_and_a_number_where_they_are(dtype: str) -> None:
    """A kernel that looks at its middle pixel, layers that pass one place on: Q is that pixel, scaled once, plus three
    times that number, for entries that are stored as float32 and for those that stay bytes."""
    number = "uint8" if dtype == "uint8" else "float32"
    entries = (ObsEntry("number", (2,), number), ObsEntry("picture", (4, 5, 1), "uint8"))
    schema = Schema((22,), dtype, 1, obs_divisor=255 if dtype == "uint8" else 1, entries=entries)
    online = build_network(NetworkSpec(NetworkConfig(hidden=(2,))), schema)
    encoder, head = cast(Any, online.encoder), cast(Any, online.head)
    picture, vector = encoder.parts
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.zero_()
        picture.conv.weight[3, 0, 1, 1] = 1.0
        picture.layers[0].weight[0, MINATAR_CHANNELS * (1 * 3 + 2) + 3] = 1.0  # second row, third column, channel 3
        vector.layers[0].weight[1, 1] = 1.0
        encoder.layers[0].weight[0, 0] = 1.0
        encoder.layers[0].weight[1, 2 + 1] = 3.0
        head.linear.weight[0] = torch.tensor([1.0, 1.0])
        obs = np.zeros((1, 22), dtype)
        obs[0, 1] = 5
        obs[0, 2:] = np.arange(20) if dtype == "uint8" else np.arange(20) / 255
        q = online(torch.from_numpy(obs)).q.item()
    pixel = (2 * 5 + 3) / 255
    assert_allclose(q, pixel + 3 * (5 / 255 if dtype == "uint8" else 5), rtol=1e-6)


# -- which encoder, and why


TINY = replace(SCHEMA, obs_shape=(6,), entries=(replace(PICTURE, shape=(2, 2, 1)), RULE))
LARGE = Schema((36 * 36 + 3,), "uint8", 2, entries=(ObsEntry("eye", (36, 36), "uint8"), ObsEntry("v", (3,), "uint8")))


@pytest.mark.parametrize(
    ("schema", "configured", "said"),
    [
        (
            Schema((8,), "float32", 4),
            "auto",
            "mlp, as auto chooses for observations of shape (8,): they are no pictures",
        ),
        (
            Schema((10, 10, 4), "uint8", 6),
            "auto",
            "minatar, as auto chooses for observations of shape (10, 10, 4): pictures of 10 x 10, below 36 x 36",
        ),
        (
            Schema((84, 84), "uint8", 6, stack=4),
            "auto",
            "nature, as auto chooses for stacks of 4 observations of shape (84, 84): pictures of 84 x 84, from 36 x 36",
        ),
        (
            Schema((2, 9, 1), "uint8", 6),
            "auto",
            "mlp, as auto chooses for observations of shape (2, 9, 1): pictures below 3 x 3",
        ),
        (
            SCHEMA,
            "auto",
            "entries, as auto chooses for observations with the entries picture (4, 4, 1), rule (2,): minatar for "
            "picture, mlp for the rest",
        ),
        (
            LARGE,
            "auto",
            "entries, as auto chooses for observations with the entries eye (36, 36), v (3,): nature for eye, mlp for "
            "the rest",
        ),
        (
            Schema((90,), "uint8", 2, entries=tuple(ObsEntry(f"p{i}", (3, 3), "uint8") for i in range(10))),
            "auto",
            "entries, as auto chooses for observations with the entries p0 (3, 3), p1 (3, 3), p2 (3, 3), 7 more: "
            "minatar for p0, minatar for p1, minatar for p2, 7 more",
        ),
        (
            TINY,
            "auto",
            "mlp, as auto chooses for observations with the entries picture (2, 2, 1), rule (2,): no entry is a "
            "picture of at least 3 x 3",
        ),
        (
            SCHEMA,
            "mlp",
            "mlp, as configured, for observations with the entries picture (4, 4, 1), rule (2,); auto would choose "
            "entries",
        ),
    ],
)
def test_auto_says_what_it_chose_and_by_what(schema: Schema, configured: str, said: str) -> None:
    encoder, why = choice_of(NetworkConfig(encoder=configured), schema)
    assert f"{encoder}, {why}" == said
    build_network(NetworkSpec(NetworkConfig(encoder=configured, hidden=(4,))), schema)


@pytest.mark.parametrize(
    ("encoder", "schema", "why"),
    [
        (
            "entries",
            Schema((8,), "float32", 2),
            r"got observations of shape \(8,\); use mlp \(pictures have three axes,",
        ),
        ("entries", Schema((9, 9, 1), "uint8", 2, stack=4), r"got stacks of 4 .* shape \(9, 9, 1\); use minatar$"),
        (
            "entries",
            TINY,
            r"got .* picture \(2, 2, 1\), rule \(2,\); use mlp \(pictures have three axes, or two of bytes\)",
        ),
        ("nature", SCHEMA, r"at least 36 x 36 pixels, got .* picture \(4, 4, 1\), rule \(2,\); use entries$"),
        (
            "nature",
            Schema((35, 99), "uint8", 2, stack=4),
            r"36 x 36 pixels, got stacks of 4 .* \(35, 99\); use minatar$",
        ),
        ("minatar", replace(SCHEMA, stack=2), r"at least 3 x 3 pixels, got stacks of 2 .* entries .*; use entries$"),
        ("minatar", Schema((2, 9, 1), "uint8", 2, stack=3), r"3 x 3 pixels, got stacks of 3 .* \(2, 9, 1\); use mlp$"),
        ("impala", Schema((9, 2), "uint8", 2), r"3 x 3 pixels, got observations of shape \(9, 2\); use mlp$"),
        (
            "impala",
            Schema((9, 9), "float32", 2),
            r"3 x 3 pixels, got .* \(9, 9\); use mlp \(pictures have three axes, or",
        ),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_in_words(encoder: str, schema: Schema, why: str) -> None:
    with pytest.raises(ValueError, match=f"the encoder {encoder} wants .*{why}"):
        build_network(NetworkSpec(NetworkConfig(encoder=encoder)), schema)


# -- in the driver


STACK = ("--env.frame-stack", "4")


def options(*further: str) -> list[str]:
    return ["--env.path", str(SIGNAL.path), "--mode", "inline", *further]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize(
    ("env", "encoder", "further", "why"),
    [
        ("CartPole-v1", "minatar", (), "at least 3 x 3 pixels, got observations of shape (4,); use mlp"),
        ("CartPole-v1", "impala", STACK, "at least 3 x 3 pixels, got stacks of 4 observations of shape (4,); use mlp"),
        ("CartPole-v1", "entries", (), "at least 3 x 3 pixels, got observations of shape (4,); use mlp"),
        (SIGNAL.id, "nature", STACK, "at least 36 x 36 pixels, got stacks of 4 observations with the entries picture "),
        (SIGNAL.id, "entries", ("--env.kwargs", "{side: 2}"), "got observations with the entries picture (2, 2, 1), "),
    ],
)
def test_commands_refuse_an_encoder_that_does_not_fit(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    env: str,
    encoder: str,
    further: tuple[str, ...],
    why: str,
) -> None:
    """Exit code 2 and one line, before anything is made."""
    further = ("--learner.network.encoder", encoder, *further)
    code, out, err = run(capsys, command, env, *options(*further, "--runs-dir", str(tmp_path / "runs")))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"qherd: the encoder {encoder} wants " in err
    assert why in err
    assert not (tmp_path / "runs").exists()


def test_the_doctor_says_which_encoder_and_what_does_not_fit() -> None:
    """And goes on with the checks that need no network."""
    for encoder, state, told in (
        ("auto", "ok", "encoder entries, as auto chooses for observations with the entries picture"),
        ("nature", "problem", "the encoder nature wants pictures of at least 36 x 36 pixels"),
    ):
        config = RunConfig.model_validate(
            {"mode": "inline", "env": SIGNAL, "learner": {"network": {"encoder": encoder, "hidden": [8]}}}
        )
        checks = list(preflight(config))
        (found,) = (check for check in checks if check.name == "network")
        assert (found.state, told in found.found, bool(found.remedy)) == (state, True, state != "ok")
        assert any("env steps/s" in check.found for check in checks if check.name == "env") == (state == "ok")
        assert {"disk", "cores"} <= {check.name for check in checks}


# -- the whole


def test_the_picture_and_the_rule_are_both_needed() -> None:
    """Each picture means either action, and so does each rule."""
    right = {(across, at, rule): across ^ rule for across in (0, 1) for at in range(4) for rule in (0, 1)}
    assert {right[across, at, 0] + right[across, at, 1] for across in (0, 1) for at in range(4)} == {1}
    assert all({right[across, 0, rule] for across in (0, 1)} == {0, 1} for rule in (0, 1))
    pictures = {picture_of(across, at).tobytes() for across in (0, 1) for at in range(4)}
    assert len(pictures) == 8


@pytest.mark.long
def test_a_run_learns_from_both_resumes_and_is_played(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right in all sixteen states; what auto chose is in the first lines, config.yaml and summary.json, and stays."""
    config = RunConfig.model_validate(
        {
            "mode": "inline", "runs_dir": tmp_path, "run": "signal", "env": SIGNAL,
            "actors": {"count": 1, "lanes": 8, "chunk_steps": 8, "epsilon": 0.5, "epsilon_anneal_env_steps": 0},
            "replay": {"capacity_rows": 4000, "min_rows": 500, "samples_per_insert": 16},
            "learner": {"network": {"hidden": [32]}, "lr": 2e-3, "gamma": 0.0, "n_step": 1, "batch": 64},
            "eval": {"every_updates": 150, "screen_episodes": 16, "confirm_episodes": 4, "threshold": None},
            "budget": {"env_steps": 3500},
        }
    )  # fmt: skip
    assert train(config) == 0
    said = "encoder entries, as auto chooses for observations with the entries picture (4, 4, 1), rule (2,): minatar"
    assert said in capsys.readouterr().out
    folder = tmp_path / "signal"
    written = yaml.safe_load((folder / "config.yaml").read_text())["config"]
    assert written["learner"]["network"]["encoder"] == summary(folder)["encoder"] == "entries"
    directory = RunDirectory.open(folder)
    policy = make_policy(directory.config.learner.network_spec, SCHEMA)
    policy.load(unpack(directory.best.packed() or b"")[1])
    stored = observations_of("Signal", signal_env.SignalEnv().observation_space)
    for across, at, rule in np.ndindex(2, 4, 2):
        obs = stored("step", {"picture": picture_of(across, at), "rule": rule})
        q, _ = policy(obs[None], {})
        assert q.argmax() == across ^ rule, (across, at, rule, q)
    code, out, _ = run(capsys, "resume", str(folder), "--budget.env-steps", "4000")
    assert (code, "computes otherwise" in out, said in out) == (0, False, True)
    assert summary(folder)["env_steps"] >= 4000
    code, out, _ = run(capsys, "eval", str(folder), "--episodes", "5")
    assert code == 0
    assert re.search(r"\b8\.0", out)


def test_encoder_mlp_takes_the_entries_as_one_vector() -> None:
    """In numpy, as any vector."""
    spec = NetworkSpec(NetworkConfig(encoder="mlp", hidden=(8,)))
    assert encoder_of(spec.config, SCHEMA) == "mlp"
    assert type(make_policy(spec, SCHEMA)).__name__ == "NumpyMlp"
