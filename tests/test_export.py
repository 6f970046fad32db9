"""A policy for other programs: what their own runtimes make of it is what the learner's network does."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cli_runs import qherd
from policies import a_run
from test_networks import ENTRIES, PICTURES, observations, spec

from deploy.cli import main
from deploy.config.errors import ConfigError
from deploy.config.models import RunConfig
from deploy.export import numpy_format, onnx_format, torch_format
from deploy.export.exported import Exported, inputs_of
from deploy.export.folder import written_whole
from deploy.export.formats import FORMATS, TOLERANCE, compare
from deploy.export.observed import Observed
from learner import load_policy
from learner.learner import host_arrays
from learner.networks import NetworkSpec, build_network
from learner.networks.portable import load
from learner.policy import Description
from replay.chunk import Schema

MASKED, SIGNAL, ARM, FRAMES = (
    "masked_env:MaskedGrid-v0",
    "signal_env:Signal-v0",
    "arm_env:Arm-v0",
    "frames_env:Frames-v0",
)
SMALL: dict[str, Any] = {"network": {"hidden": (8,)}}
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="session")
def onnx() -> Any:
    """The packages of the extra ``onnx``, which development has."""
    try:
        return [importlib.import_module(package) for package in onnx_format.PACKAGES]
    except ModuleNotFoundError as error:
        reason = f"no {error.name}: pip install -c constraints.txt -e '.[onnx]'"
        pytest.fail(reason, pytrace=False)


def export(run: Path, to: Path, *options: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run), "--to", str(to), *options])
    assert ended.value.code == code


# -- numpy


@pytest.mark.parametrize(
    ("env_id", "options", "obs"),
    [
        pytest.param("CartPole-v1", {}, "np.array([0.1, 0.2, 0.3, 0.4])", id="mlp"),
        pytest.param(SIGNAL, {"env": {"frame_stack": 2}, **SMALL}, "{'picture': picture, 'rule': 1}", id="stacked"),
        pytest.param(ARM, {"algorithm": "c51", **SMALL}, "{'camera': camera, 'joints': ([0.5, 1], -1)}", id="nested"),
    ],
)
def test_numpy_alone_acts_as_load_policy_does(
    tmp_path: Path, env_id: str, options: dict[str, Any], obs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process that finds nothing of qherd's."""
    run, to = a_run(tmp_path, env_id, **options), tmp_path / "out"
    export(run, to)
    shown = capsys.readouterr()
    assert "policy.npz, policy.py; loaded again and compared with the learner's network on 1,000 obs" in shown.out
    assert sorted(path.name for path in to.iterdir()) == ["policy.npz", "policy.py"]
    program = f"""
import json, sys
import numpy as np
import policy
picture, camera = np.full((4, 4, 1), 7, np.uint8), np.full((3, 4, 1), 9, np.uint8)
action, q = policy.load().act({obs})
print(json.dumps([np.asarray(action).tolist(), q.tolist()]))
print(sorted({{"learner", "replay", "actors", "deploy", "torch"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=to, capture_output=True, text=True, check=True)
    found, imported = done.stdout.splitlines()
    assert imported == "[]"
    values = {"picture": np.full((4, 4, 1), 7, np.uint8), "camera": np.full((3, 4, 1), 9, np.uint8), "np": np}
    action, q = load_policy(run).act(eval(obs, values))
    assert json.loads(found)[0] == np.asarray(action).tolist()
    np.testing.assert_allclose(json.loads(found)[1], q, rtol=1e-5, atol=1e-6)


def _spoilt(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif how == "changed":
        at = data.index(b"head.linear.weight.npy") + 300
        path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    elif how == "foreign":
        np.savez(path, weights=np.zeros(3))
    elif how == "of another format":
        np.savez(path, about=np.frombuffer(json.dumps({"format": 99}).encode(), np.uint8))
    elif how == "an object":
        np.savez(path, about=np.array([{}], dtype=object))
    else:
        path.write_text("no archive")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("missing", "has no policy.npz: give the folder of qherd export"),
        ("torn", "is damaged"),
        ("changed", "is damaged"),
        ("foreign", "is no policy that qherd has exported"),
        ("of another format", "it has format 99, and this reads 1"),
        ("an object", "is no policy that qherd has exported"),
        ("text", "is no policy that qherd has exported"),
    ],
)
def test_a_broken_or_foreign_export_is_refused(tmp_path: Path, how: str, why: str) -> None:
    run, to = a_run(tmp_path, MASKED), tmp_path / "out"
    export(run, to)
    assert load(to).act(3, [0, 1, 1, 1]).action == load_policy(run).act(3, [0, 1, 1, 1]).action
    _spoilt(to / "policy.npz", how)
    with pytest.raises(ValueError, match=why):
        load(to)


# -- torch and ONNX


def test_torch_loads_it_with_masks_and_what_it_is_about(tmp_path: Path) -> None:
    run, to = a_run(tmp_path, MASKED, algorithm="qr_dqn"), tmp_path / "out"
    export(run, to, "--format", "torch")
    assert [path.name for path in to.iterdir()] == ["policy.pt2"]
    with zipfile.ZipFile(to / "policy.pt2") as file:
        assert [name for name in file.namelist() if file.read(name).startswith((b"PK", b"\x80"))] == []  # no pickles
    texts = {"about.json": ""}
    graph = torch.export.load(to / "policy.pt2", extra_files=texts).module()
    about = json.loads(texts["about.json"])
    assert (about["masked"], about["network_input"]["shape"], about["actions"]["n"]) == (True, [9], 4)
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.uint8)
    q, action = graph(torch.eye(9)[[3, 3]], mask)
    expected = load_policy(run).act(3, [0, 1, 1, 1])
    np.testing.assert_allclose(q[0].numpy(), expected.q, rtol=1e-5, atol=1e-6)
    assert action.tolist() == [int(expected.action), 3]


def test_onnx_has_names_metadata_and_a_free_batch(tmp_path: Path, onnx: Any) -> None:
    run, to = a_run(tmp_path, MASKED, algorithm="iqn", network={"hidden": (8,), "dueling": True}), tmp_path / "out"
    export(run, to, "--format", "onnx")
    assert [path.name for path in to.iterdir()] == ["policy.onnx"]
    model = onnx[0].load(to / "policy.onnx")
    onnx[0].checker.check_model(model, full_check=True)
    assert {each.version for each in model.opset_import if not each.domain} == {onnx_format.OPSET}
    session = onnx[2].InferenceSession(to / "policy.onnx", providers=["CPUExecutionProvider"])
    about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert about["env"] == {"id": MASKED, "kwargs": {}}, "no folder of this machine"
    assert about["network_input"] == {"dtype": "float32", "shape": [9], "divisor": 1, "channels_last": False}
    assert (about["stack"], about["masked"], about["actions"]["n"]) == (1, True, 4)
    mask = np.array([[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]], np.uint8)
    q, action = session.run(["q", "action"], {"obs": np.eye(9, dtype=np.float32)[[3, 3, 3]], "mask": mask})
    expected = load_policy(run).act(3, [0, 1, 1, 1])
    np.testing.assert_allclose(q, [expected.q] * 3, rtol=1e-5, atol=1e-6)
    assert action.tolist() == [int(expected.action), 3, int(expected.q.argmax())]


def made(schema: Schema, wanted: NetworkSpec) -> tuple[Exported, Observed]:
    """A policy with random weights, and random observations that it is given."""
    torch.manual_seed(3)
    about = {"actions": {"n": schema.num_actions, "start": 0, "space": ""}, "masked": False}
    description = Description({"id": "E", "kwargs": {}, "path": None}, about, schema.stack, schema, wanted)
    given = observations(schema, 5)
    exported = Exported.of(description, host_arrays(build_network(wanted, schema)), 7)
    return exported, Observed([None] * 5, given, None, [True] * 5)


BIG = Schema((36, 41), "uint8", 4, stack=2, obs_divisor=255)
IMPALA = spec((8,), True, "impala", layer_norm=True, impala={"pool": "max6", "spectral_norm": True})
LONG = pytest.mark.long
MADE = [
    pytest.param("torch", Schema((3, 2), "int16", 4), spec((8,)), id="torch-mlp"),
    pytest.param("torch", PICTURES[0], spec((8,), True, "minatar", "atoms", layer_norm=True), id="torch-minatar"),
    pytest.param("onnx", BIG, spec((8,), False, "nature", "quantiles"), id="nature", marks=LONG),
    pytest.param("onnx", BIG, IMPALA, id="impala", marks=LONG),
    pytest.param("onnx", ENTRIES[0], spec((8,), True, "entries", "atoms"), id="entries", marks=LONG),
]


@pytest.mark.parametrize(("kind", "schema", "wanted"), MADE)
def test_every_encoder_is_exported(
    tmp_path: Path, kind: str, schema: Schema, wanted: NetworkSpec, request: pytest.FixtureRequest
) -> None:
    """ONNX by way of torch.export; numpy's own operations are held to the network in test_networks.py."""
    if kind == "onnx":
        request.getfixturevalue("onnx")
    exported, observed = made(schema, wanted)
    FORMATS[kind].write(tmp_path, exported, observed)
    q, actions = FORMATS[kind].values(tmp_path, exported, observed)
    assert compare(exported, observed, q, actions) <= TOLERANCE * max(1, float(np.abs(q).max()))


RECURRENT: dict[str, Any] = {"network": {"hidden": (8,), "core": "lstm", "core_size": 6, "core_previous": True}}


def test_numpy_alone_remembers_as_the_run_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The comparison plays whole episodes through what was written; each graph has the state as inputs and outputs."""
    run = a_run(tmp_path, "CartPole-v1", **RECURRENT)
    export(run, tmp_path / "out", "--card")
    assert "on 1,000 observations: greatest difference" in capsys.readouterr().out
    own, written = load_policy(run), load(tmp_path / "out")
    for t, obs in enumerate(np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)):
        reward = None if t == 0 else float(t)
        np.testing.assert_allclose(written.act(obs, reward=reward).q, own.act(obs, reward=reward).q, atol=1e-6)
    with pytest.raises(ValueError, match="the previous reward"):
        written.act(np.zeros(4, np.float32))
    assert "trained.reset()" in (tmp_path / "out" / "README.md").read_text()


def recurrent(core: str, previous: bool, masked: bool) -> tuple[Exported, Observed]:
    """A recurrent policy with random weights, and random observations and states."""
    schema, rng = Schema((3,), "float32", 2), np.random.default_rng(4)
    exported, observed = made(schema, spec((8,), core=core, core_size=6, core_previous=previous))
    assert exported.network.core is not None
    widths = exported.network.core.memory.widths
    state = {name: rng.normal(size=(5, width)).astype(np.float32) for name, width in widths.items()}
    if previous:
        state["previous_action"] = np.array([[0], [1], [2], [1], [0]], np.float32)
    masks = np.array([[1, 1], [0, 1], [1, 0], [0, 0], [1, 1]], np.uint8) if masked else None
    return exported, observed._replace(state=state, masks=masks)


@pytest.mark.parametrize(
    ("kind", "core", "previous", "masked"),
    [
        ("torch", "gru", False, False),
        pytest.param("torch", "lstm", True, True, marks=LONG),
        pytest.param("onnx", "lstm", True, False, marks=LONG),
        pytest.param("onnx", "gru", False, True, marks=LONG),
    ],
)
def test_a_graph_has_the_recurrent_state_in_and_out(
    tmp_path: Path, kind: str, core: str, previous: bool, masked: bool, request: pytest.FixtureRequest
) -> None:
    if kind == "onnx":
        request.getfixturevalue("onnx")
    exported, observed = recurrent(core, previous, masked)
    FORMATS[kind].write(tmp_path, exported, observed)
    assert compare(exported, observed, *FORMATS[kind].values(tmp_path, exported, observed)) <= TOLERANCE
    inputs = inputs_of(observed, slice(0, 5))
    _, expected = exported.network.step(inputs["obs"], inputs["state"])
    cells = [name for name in ("c", "h") if name in expected]
    if kind == "torch":
        found = torch.export.load(tmp_path / "policy.pt2").module()(*inputs.values())[2]
        after = [found[name].numpy() for name in cells]
    else:
        session = importlib.import_module("onnxruntime").InferenceSession(str(tmp_path / "policy.onnx"))
        given = {
            "obs": observed.given,
            **observed.state,
            **({} if observed.masks is None else {"mask": observed.masks}),
        }
        after = session.run([f"next_{name}" for name in cells], given)
    for name, array in zip(cells, after, strict=True):
        np.testing.assert_allclose(array, expected[name], atol=TOLERANCE)


# -- what is refused, and that nothing is left


@pytest.mark.parametrize("factor", [1 + 1e-3, float("nan")])
def test_a_difference_is_an_error_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], factor: float
) -> None:
    run, write = a_run(tmp_path, "CartPole-v1", **SMALL), numpy_format.write

    def spoilt(folder: Path, exported: Exported, observed: Observed) -> None:
        arrays = {name: array * np.float32(factor) for name, array in exported.arrays.items()}
        write(folder, exported._replace(arrays=arrays), observed)

    monkeypatch.setattr(numpy_format, "write", spoilt)
    export(run, tmp_path / "out", code=1)
    assert re.search(
        r"differs from the learner's network by \S+ in a Q value, and at most 0\.0001", capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_actions_that_are_not_the_best_are_an_error() -> None:
    exported, observed = made(PICTURES[0], spec((8,), encoder="minatar"))
    q = exported.q(observed.given)
    assert compare(exported, observed, q, q.argmax(1)) == 0
    with pytest.raises(Exception, match="actions are not those of its greatest values"):
        compare(exported, observed, q, (q.argmax(1) + 1) % 6)


def _unevaluated(run: Path) -> None:
    (run / "checkpoints" / "best.json").unlink()


def _torn(run: Path) -> None:
    (path,) = (run / "checkpoints").glob("*.weights")
    path.write_bytes(path.read_bytes()[:-1])


def _damaged(run: Path) -> None:
    path = run / "checkpoints" / "best.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"updates": "x"}))


def _foreign(run: Path) -> None:
    other = a_run(run.parent / "other", SIGNAL, **SMALL)
    shutil.rmtree(run / "checkpoints")
    (other / "checkpoints").rename(run / "checkpoints")


@pytest.mark.parametrize(
    ("spoil", "options", "why"),
    [
        pytest.param(lambda run: (run.parent / "out").mkdir(), [], "out exists already, and is not over", id="there"),
        pytest.param(lambda _: None, ["--to", "/no-such/out"], "there is no folder /no-such", id="nowhere"),
        pytest.param(_unevaluated, [], "has no best policy", id="unevaluated"),
        pytest.param(_torn, [], "does not match the sha256", id="torn"),
        pytest.param(_damaged, [], "best.json is damaged: updates is 'x'", id="damaged"),
        pytest.param(_foreign, [], "the weights are of another network than the run's", id="foreign"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, options: list[str], why: str
) -> None:
    run = a_run(tmp_path, "CartPole-v1", **SMALL)
    spoil(run)
    before = sorted(path.name for path in tmp_path.iterdir())
    export(run, tmp_path / "out", *options, code=2)
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert why in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_writes_at_the_same_time_writes_elsewhere(tmp_path: Path) -> None:
    """One of the two gets the name, whole, and the other is told; what lies there under such a name stays."""
    (mine := tmp_path / ".out.writing").mkdir()
    first, second = written_whole(tmp_path / "out"), written_whole(tmp_path / "out")
    one, other = first.__enter__(), second.__enter__()
    (one / "a").touch()
    (other / "b").touch()
    first.__exit__(None, None, None)
    with pytest.raises(ConfigError, match="out exists already"):
        second.__exit__(None, None, None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert sorted(tmp_path.iterdir()) == [mine, tmp_path / "out"]


def test_a_network_of_ones_own_is_for_other_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path, SIGNAL, network={"encoder": "arm_env:Sines", "hidden": (8,)})
    export(run, tmp_path / "out", code=2)
    assert "is your own, and --format numpy computes only qherd's: choose --format onnx or" in capsys.readouterr().err
    export(run, tmp_path / "out", "--format", "torch")


def test_a_part_that_torch_does_not_export_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path, SIGNAL, network={"encoder": "arm_env:Branching", "hidden": (8,)})
    export(run, tmp_path / "out", "--format", "torch", code=2)
    assert "qherd: torch does not export this network: " in (shown := capsys.readouterr().err)
    assert "a part of your own has to take batches of any size" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    export(a_run(tmp_path, "CartPole-v1", **SMALL), tmp_path / "out", "--format", "onnx", code=2)
    assert "--format onnx needs the package onnx: pip install 'qherd[onnx]'" in capsys.readouterr().err


def test_a_signal_leaves_nothing(tmp_path: Path) -> None:
    run = a_run(tmp_path, FRAMES, env={"kwargs": {"kind": "signalled"}}, **SMALL)
    done = qherd("export", run, "--to", tmp_path / "out", cwd=tmp_path)
    assert done.code == -signal.SIGTERM, done
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_an_environment_that_raises_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path, FRAMES, env={"kwargs": {"kind": "exits"}}, **SMALL)
    export(run, tmp_path / "out", code=2)
    assert "Frames-v0: step() called sys.exit(0)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


# -- the card


def test_the_card_is_a_hubs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, to = a_run(tmp_path, FRAMES, **SMALL), tmp_path / "out"
    export(run, to, "--card")
    assert sorted(path.name for path in to.iterdir()) == [
        "README.md",
        "config.yaml",
        "episode.gif",
        "policy.npz",
        "policy.py",
    ]
    _, front, text = (to / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front)
    (model,) = metadata["model-index"]
    (result,) = model["results"]
    assert (metadata["library_name"], model["name"]) == ("qherd", "dqn")
    assert result["task"]["type"] == "reinforcement-learning"
    assert result["dataset"] == {"type": FRAMES, "name": FRAMES}
    assert result["metrics"][0]["value"] == "2.00 +/- 1.00"
    assert "over 5 episodes; the evaluation that it was selected by, which favours it" in text
    assert "qherd train --config config.yaml --env.path FOLDER" in text
    assert "![An episode](episode.gif)" in text
    assert (to / "episode.gif").read_bytes().startswith(b"GIF8")
    assert str(tmp_path) not in (to / "config.yaml").read_text() + text
    assert RunConfig.model_validate(yaml.safe_load((to / "config.yaml").read_text())).learner.network.hidden == (8,)
    assert capsys.readouterr().err == ""


def test_a_card_without_pictures_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And shows the hold-out where there is one."""
    run = a_run(tmp_path, "frames_env:NoRender-v0", **SMALL)
    best = run / "checkpoints" / "best.json"
    held = {"holdout_mean": 7.5, "holdout_std": 0.25, "holdout_episodes": 50}
    best.write_text(json.dumps(json.loads(best.read_text()) | held))
    export(run, tmp_path / "out", "--card", "--format", "torch")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Greedy: 7.50 ± 0.25 (mean and standard deviation) over 50 episodes; a hold-out" in text
    assert "policy(obs)" in text
    assert ".gif" not in text
    assert "the card has no GIF" in capsys.readouterr().err


def test_each_format_shows_how_it_is_used() -> None:
    assert 'session.run(["q", "action"], {"obs": obs, "mask": mask})' in onnx_format.use(True)
    assert 'session.run(["q", "action"], {"obs": obs})' in onnx_format.use(False)
    assert "policy(obs, mask)" in torch_format.use(True)
    assert '(about := {"about.json": ""})' in torch_format.use(False)
    assert 'trained.act(obs, info["action_mask"])' in numpy_format.use(True)
    state = ("c", "h", "previous_action", "previous_reward")
    assert 'q, action, c, h = session.run(["q", "action", "next_c", "next_h"], {"obs": obs, "c": c,' in onnx_format.use(
        False, state
    )
    assert "q, action, after = policy(obs, state, mask)" in torch_format.use(True, state)
    assert "trained.act(obs, reward=reward)" in numpy_format.use(False, state)
    assert "trained.reset()" in numpy_format.use(False, ("h",))


def test_every_format_is_offered() -> None:
    assert FORMATS.keys() == {"onnx", "torch", "numpy"}
    assert {each.FILES for each in FORMATS.values()} == {onnx_format.FILES, torch_format.FILES, numpy_format.FILES}
