"""``qherd dataset``: what Minari itself loads is what the environment plays again by the seed and the actions."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import numpy.typing as npt
import pytest
from chunk_makers import CODEC, RUN, SCHEMA, FakeActor, append, spoilt
from cli_runs import qherd
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from policies import a_run
from scripted_env import SpacesEnv
from test_attach import about

from actors.contract import Checked
from actors.envs import make_env
from deploy.cli import main
from deploy.config.errors import ConfigError
from deploy.config.models import env_of
from deploy.datasets.episode import RawEpisodes
from deploy.datasets.logged import Held, logged_episodes
from deploy.run_directory.directory import RunDirectory
from learner.minari_hdf5 import write_episodes
from learner.minari_store import folder_of
from replay.chunk import BOUNDARY, FIRST, TERMINATED, TRUNCATED, Chunk, Schema
from replay.chunk_log.memory_log import MemoryLog

Array = npt.NDArray[Any]
SMALL: dict[str, Any] = {"network": {"hidden": (8,)}}
FRAMES = "frames_env:Frames-v0"
FLAG: Any = bool


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that Minari has its datasets in."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def dataset(run: Path, *options: str, out: str = "group/played-v0", code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dataset", str(run), "--out", out, *options])
    assert ended.value.code == code


def columns(space: gym.Space[Any], column: Any) -> list[Array]:
    """The arrays of a column of observations, in the space's order."""
    if isinstance(space, Dict):
        return [array for name, each in space.spaces.items() for array in columns(each, column[name])]
    if isinstance(space, Tuple):
        return [array for number, each in enumerate(space.spaces) for array in columns(each, column[number])]
    return [np.asarray(column)]


def assert_plays_again(run: Path, found: Any, index: int) -> None:
    """The episode is what the environment's own class plays by its seed and actions, to float32's precision."""
    config = RunDirectory.open(run).config
    checked = make_env(env_of(config), training=False)
    while not isinstance(checked, Checked):
        checked = checked.env  # type: ignore[attr-defined]
    env, episode = checked.env, found[index]
    (metadata,) = found.storage.get_episode_metadata([index])
    obs, infos = env.reset(seed=metadata["seed"])
    seen, rewards, ends, masks = [obs], [], [], [infos.get("action_mask")]
    for action in episode.actions:
        assert found.action_space.contains(action)
        obs, reward, terminated, truncated, infos = env.step(action)
        seen.append(obs)
        rewards.append(reward)
        ends.append([terminated, truncated])
        masks.append(infos.get("action_mask"))
    stored = columns(found.observation_space, episode.observations)
    for number, single in enumerate(seen):
        for given, kept in zip(columns(env.observation_space, single), stored, strict=True):
            np.testing.assert_array_equal(given.astype(np.float32), kept[number].astype(np.float32))
    np.testing.assert_array_equal(rewards, episode.rewards)
    np.testing.assert_array_equal(ends, np.stack([episode.terminations, episode.truncations], 1))
    assert episode.terminations[-1] or episode.truncations[-1]
    if masks[0] is not None:
        np.testing.assert_array_equal(np.stack(list(map(np.asarray, masks))), episode.infos["action_mask"])


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        pytest.param("CartPole-v1", {}, id="numbers"),
        pytest.param("masked_env:MaskedGrid-v0", {}, id="one-hot, masked, truncated"),
        pytest.param("signal_env:Signal-v0", {"env": {"frame_stack": 2}}, id="dict, stacked"),
        pytest.param("arm_env:Arm-v0", {}, id="nested, narrowed, actions that are combinations"),
    ],
)
def test_minari_loads_what_the_environment_plays(tmp_path: Path, env_id: str, options: dict[str, Any]) -> None:
    run = a_run(tmp_path, env_id, **options, **SMALL)
    dataset(run, "--episodes", "6", "--epsilon", "0.3", "--seed", "50")
    found = minari.load_dataset("group/played-v0")
    own = make_env(env_of(RunDirectory.open(run).config), training=False).unwrapped
    assert (found.observation_space, found.action_space) == (own.observation_space, own.action_space)
    assert found.total_episodes == 6
    assert sorted(each["seed"] for each in found.storage.get_episode_metadata(range(6))) == list(range(50, 56))
    assert found.total_steps == sum(len(episode) for episode in found)
    for index in range(6):
        assert_plays_again(run, found, index)


def test_its_metadata_tell_where_it_is_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(run := a_run(tmp_path, "CartPole-v1", **SMALL), "--episodes", "2", "--epsilon", "0.25")
    assert "2 episodes of" in (shown := capsys.readouterr().out)
    assert "ε = 0.25" in shown
    found = minari.load_dataset("group/played-v0")
    about = found.storage.metadata["qherd"]
    assert about["run"] == "r"
    assert (about["from"], about["policy"], about["updates"], about["epsilon"]) == ("policy", "best", 7, 0.25)
    assert about["command"] == f"qherd dataset {run} --out group/played-v0 --episodes 2 --epsilon 0.25"
    assert about["versions"].keys() == {"qherd", "minari", "gymnasium", "numpy", "revision"}
    assert about["env"] == {"id": "CartPole-v1", "kwargs": {}}
    assert found.recover_environment().spec.id == "CartPole-v1"
    assert list(minari.list_local_datasets()) == ["group/played-v0"]


def test_an_episode_without_an_end_is_truncated(tmp_path: Path) -> None:
    env = {"kwargs": {"kind": "endless"}}
    dataset(a_run(tmp_path, FRAMES, env=env, **SMALL), "--episodes", "1")
    (episode,) = minari.load_dataset("group/played-v0")
    assert len(episode) == 27_000
    assert np.flatnonzero(episode.truncations).tolist() == [26_999]
    assert not episode.terminations.any()


def test_an_episode_whose_environment_raised_is_written_once(tmp_path: Path) -> None:
    (book := tmp_path / "book").touch()
    env = {"kwargs": {"kind": "raises once", "book": str(book)}}
    dataset(a_run(tmp_path, FRAMES, env=env, **SMALL), "--episodes", "2")
    assert [len(episode) for episode in minari.load_dataset("group/played-v0")] == [20, 20]
    assert "raised" in book.read_text()


@pytest.mark.parametrize(
    "space",
    [
        Discrete(5, start=-2),
        MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 0], [0, -7]])),
        MultiBinary((2, 3)),
        Box(0, 1, (3,), FLAG),
        Box(-1000, 1000, (2, 2), np.int64),
        Box(0, 255, (40, 36, 3), np.uint8),
        Box(-np.inf, np.inf, (), np.float64),
        Dict(picture=Box(0, 255, (2, 2), np.uint8), rest=Tuple([Box(0, 9, (3,), np.uint8), Discrete(3)])),
        Dict(a=Box(-1, 1, (2,), np.float32), b=Dict(c=Box(-1, 1, (1, 2), np.float32), d=Box(-1, 1, (), np.float32))),
        Tuple([MultiBinary(2), Box(-3, 3, (2,), np.int8)]),
    ],
    ids=lambda space: " ".join(str(space).split())[:40],
)
def test_observations_are_had_back_from_what_is_stored(space: gym.Space[Any]) -> None:
    env = Checked(SpacesEnv(space))
    space.seed(3)
    given = [space.sample() for _ in range(50)]
    stored = np.stack([env._stored("reset", each) for each in given])
    raw = columns(space, RawEpisodes(env).observations(stored))
    for number, single in enumerate(given):
        for wanted, found in zip(columns(space, single), raw, strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found[number].astype(np.float32), wanted.astype(np.float32))


def test_observations_beyond_float32_are_refused() -> None:
    limit = np.iinfo(np.int64).max
    env = Checked(SpacesEnv(Box(-limit, limit, (1,), np.int64)))
    stored = env._stored("reset", np.array([limit]))[None]
    with pytest.raises(ConfigError, match="cannot be had back from what is stored"):
        RawEpisodes(env).observations(stored)


def test_names_that_a_file_takes_for_paths_are_refused() -> None:
    space = Dict({"a": Dict({"b/c": Discrete(2)})})
    with pytest.raises(ConfigError, match="have an entry 'b/c'"):
        RawEpisodes(Checked(SpacesEnv(space)))


# -- below Minari's layer


def inside(file: Path) -> dict[str, Any]:
    """The groups of a file with their attributes; its arrays."""
    found = dict[str, Any]()

    def keep(name: str, node: Any) -> None:
        found[name] = node[()] if isinstance(node, h5py.Dataset) else dict(node.attrs)

    with h5py.File(file) as opened:
        opened.visititems(keep)
    return found


def some_episodes(count: int) -> list[EpisodeBuffer]:
    """With nested observations, a name beyond ASCII, masks, empty infos, columns that are not contiguous, with and
    without a seed."""
    rng = np.random.default_rng(0)
    return [
        EpisodeBuffer(
            seed=None if steps % 2 else 70 + steps,
            observations={
                "größe": rng.normal(size=(3, steps + 1)).astype(np.float32).T,
                "b": (np.arange(steps + 1), {"c": rng.random((steps + 1, 2, 2)) < 0.5}),
            },
            actions=rng.integers(0, 3, steps),
            rewards=rng.normal(size=2 * steps)[::2],
            terminations=np.arange(steps) == steps - 1,
            truncations=np.zeros(steps, np.bool_),
            infos={"action_mask": np.ones((steps + 1, 3), np.int8)} if steps % 3 else {},
        )
        for steps in range(1, count + 1)
    ]


SOME = Dict({"größe": Box(-9, 9, (3,), np.float32), "b": Tuple([Discrete(9), Dict(c=MultiBinary((2, 2)))])})


def storage_of(folder: Path) -> MinariStorage:
    storage = MinariStorage.new(folder, SOME, Discrete(3), jpeg_encoding=False)
    storage.update_metadata({"dataset_id": "group/any-v0", "minari_version": minari.__version__})
    return storage


def test_a_file_has_in_it_what_minari_writes(tmp_path: Path) -> None:
    """The same groups, attributes, names, types and values; it stores arrays in one piece."""
    episodes, (ours, theirs) = some_episodes(6), (storage_of(tmp_path / name) for name in ("ours", "theirs"))
    theirs.update_episodes(episodes)
    for first, until in ((0, 4), (4, 6)):
        write_episodes(ours.data_path, first, episodes[first:until])
    one, other = (inside(storage.data_path / "main_data.hdf5") for storage in (ours, theirs))
    assert one.keys() == other.keys()
    assert {"episode_5/observations/b/_index_1/c", "episode_5/infos", "episode_4/infos/action_mask"} < one.keys()
    for name, node in one.items():
        if isinstance(node, dict):
            assert node == other[name]
            assert {type(each) for each in node.values()} <= {np.int64}
        else:
            assert node.dtype == other[name].dtype
            np.testing.assert_array_equal(node, other[name])
    with h5py.File(ours.data_path / "main_data.hdf5") as file:
        group = file["episode_0/observations"]
        assert group.id.links.get_info("größe".encode()).cset == h5py.h5t.CSET_UTF8


def test_minari_filters_and_adds_to_a_dataset(tmp_path: Path) -> None:
    run = a_run(tmp_path, "masked_env:MaskedGrid-v0", **SMALL)
    dataset(run, "--episodes", "6", "--epsilon", "0.3", "--seed", "50")
    found = minari.load_dataset("group/played-v0")
    lengths = [len(episode) for episode in found]
    long = found.filter_episodes(lambda episode: len(episode) == max(lengths))
    assert long.total_steps == max(lengths) * lengths.count(max(lengths))
    first = found[0]
    found.update_dataset_from_buffer(
        [
            EpisodeBuffer(
                observations=first.observations,
                actions=first.actions,
                rewards=first.rewards,
                terminations=first.terminations,
                truncations=first.truncations,
                infos=first.infos,
            )
        ]
    )
    again = minari.load_dataset("group/played-v0")
    assert (again.total_episodes, again.total_steps) == (7, sum(lengths) + lengths[0])
    np.testing.assert_array_equal(again[6].observations, first.observations)
    np.testing.assert_array_equal(again[6].infos["action_mask"], first.infos["action_mask"])


# -- what the log holds


def naive_episodes(chunks: list[Chunk]) -> list[tuple[list[float], list[float], bool, bool]]:
    """Observations, rewards and ends of the whole episodes of one slot, row by row."""
    found = []
    for lane in range(chunks[0].lanes):
        obs: list[float] = []
        rewards: list[float] = []
        end, before, begun = 0, (chunks[0].incarnation, chunks[0].seq - 1), False
        for chunk in chunks:
            if (chunk.incarnation, chunk.seq) != (before[0], before[1] + 1):
                begun = False
            before = chunk.incarnation, chunk.seq
            for t in range(len(chunk.flags)):
                flags = int(chunk.flags[t, lane])
                if flags & FIRST:
                    begun, obs, rewards, end = True, [], [], 0
                obs.append(float(chunk.obs[t, lane, 0]))
                if flags & BOUNDARY:
                    if begun and end:
                        found.append((obs, rewards, bool(end & TERMINATED), bool(end & TRUNCATED)))
                    begun = False
                    continue
                rewards.append(float(chunk.reward[t, lane]))
                end = flags & (TERMINATED | TRUNCATED)
    return found


def test_whole_episodes_are_read_from_the_log() -> None:
    """Across chunks; those without beginning or end, across a gap, a bad chunk or a restart are left out and counted.
    What a run at work adds meanwhile is not read."""
    log = MemoryLog(1000)
    log.take_lease(1)
    log.describe(1, about(2).pack())
    numbers = iter(range(100_000))
    sent: dict[int, list[Chunk]] = {}
    for slot in range(2):
        actor = FakeActor(slot, lanes=3, numbers=numbers)
        for count in range(40):
            chunk = actor.chunk(time_steps=5)
            if slot == 1 and count in (7, 20):
                append(log, chunk, spoilt(chunk)) if count == 7 else None
                continue
            append(log, chunk)
            sent.setdefault(slot, []).append(chunk)
            if slot == 0 and count == 13:
                actor.restart()
    held = Held()
    found: Any = list(logged_episodes([log], RUN, SCHEMA, held))  # type: ignore[list-item]
    wanted = [episode for chunks in sent.values() for episode in naive_episodes(chunks)]
    shown = [
        (each.obs[:, 0].tolist(), each.reward.tolist(), each.terminated, each.truncated) for each in found
    ]  # of a chunk, lanes take turns
    assert sorted(shown) == sorted(wanted)
    assert len(wanted) > 60
    assert {(each[2], each[3]) for each in wanted} == {(True, False), (False, True), (True, True)}
    assert held.rows == sum(chunk.rows for chunks in sent.values() for chunk in chunks)
    assert held.left_rows == held.rows - sum(len(obs) for obs, *_ in wanted)
    assert held.refused == 1


def test_rows_of_another_environment_are_refused() -> None:
    log = MemoryLog(10)
    log.take_lease(1)
    log.describe(1, about(1).pack())
    other: Schema = CODEC.schema.__class__((2,), "float32", 4)
    with pytest.raises(ConfigError, match="the environment has changed since"):
        list(logged_episodes([log], RUN, other, Held()))  # type: ignore[list-item]


# -- what is refused, and leaves nothing


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("played", "'played' is no id of a dataset: NAME-v0 or GROUP/NAME-v0"),
        ("../x-v0", "'../x-v0' is no id of a dataset"),
        ("/tmp/group/x-v0", "is no id of a dataset"),
        ("group//x-v0", "is no id of a dataset"),
        ("x/aaa-v0", "Minari's GROUP has two characters or more"),
        ("data/x-v0", "a group named data makes Minari take the folder around it for a dataset"),
        ("group/data/x-v0", "--out group/data/x-v0: a group named data"),
    ],
)
def test_what_is_no_id_is_refused(
    tmp_path: Path, root: Path, out: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(a_run(tmp_path, "CartPole-v1", **SMALL), out=out, code=2)
    assert why in capsys.readouterr().err
    assert not root.exists() or list(root.iterdir()) == []


def test_one_that_exists_is_refused_and_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path, "CartPole-v1", **SMALL)
    dataset(run, "--episodes", "1")
    before = (folder_of("group/played-v0") / "data" / "metadata.json").read_bytes()
    dataset(run, "--episodes", "2", code=2)
    assert "exists already, and is not overwritten: choose another name, or raise the version" in (
        capsys.readouterr().err
    )
    assert (folder_of("group/played-v0") / "data" / "metadata.json").read_bytes() == before


@pytest.mark.parametrize("inner", ["group/played-v0/data-v0", "group/played-v0/more/inner-v0"])
def test_one_inside_another_is_refused(tmp_path: Path, inner: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Minari would not list it. The other way round the group is a folder that exists."""
    run = a_run(tmp_path, "CartPole-v1", **SMALL)
    dataset(run, "--episodes", "1")
    dataset(run, "--episodes", "1", out=inner, code=2)
    assert f"--out {inner}: group/played-v0 is a dataset, and Minari lists none inside" in capsys.readouterr().err
    dataset(run, "--episodes", "1", out="group/outer-v0/inner-v0")
    dataset(run, "--episodes", "1", out="group/outer-v0", code=2)
    assert "exists already, and is not overwritten" in capsys.readouterr().err
    assert list(minari.list_local_datasets()) == ["group/played-v0", "group/outer-v0/inner-v0"]


@pytest.mark.parametrize("package", ["minari", "h5py", "pyarrow"])
def test_a_missing_extra_is_named(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path, "CartPole-v1", **SMALL)
    monkeypatch.setitem(sys.modules, package, None)
    dataset(run, code=2)
    assert f"need the package {package}: pip install 'qherd[minari]'" in capsys.readouterr().err


def test_options_of_played_episodes_do_not_go_with_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path, "CartPole-v1", **SMALL)
    dataset(run, "--from", "replay", "--epsilon", "0.1", code=2)
    assert "--epsilon is for episodes that are played" in capsys.readouterr().err
    dataset(run, "--from", "replay", code=2)
    assert "has no replay server: that of a run of mode local starts and ends with the run" in capsys.readouterr().err


def test_a_run_without_a_policy_is_one_line(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path, "CartPole-v1", **SMALL)
    for path in (run / "checkpoints").glob("best*"):
        path.unlink()
    dataset(run, code=2)
    assert "no best policy" in capsys.readouterr().err
    assert list(root.iterdir()) == []


def test_a_signal_leaves_nothing(tmp_path: Path, root: Path) -> None:
    run = a_run(tmp_path, FRAMES, env={"kwargs": {"kind": "signalled"}}, **SMALL)
    env = {"MINARI_DATASETS_PATH": str(root)}
    done = qherd("dataset", run, "--out", "group/played-v0", cwd=tmp_path, env=env)
    assert done.code == -signal.SIGTERM, done
    assert list(root.iterdir()) == []


def test_an_environment_that_raises_leaves_nothing(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset(a_run(tmp_path, FRAMES, env={"kwargs": {"kind": "exits"}}, **SMALL), code=2)
    assert "Frames-v0: step() called sys.exit(0)" in capsys.readouterr().err
    assert list(root.iterdir()) == []


def test_passwords_are_not_in_the_metadata(tmp_path: Path) -> None:
    run = a_run(tmp_path, "CartPole-v1", **SMALL)
    dataset(run, "--episodes", "1", "--redis.url", "redis://:secret@host:6379")
    text = (folder_of("group/played-v0") / "data" / "metadata.json").read_text()
    assert "secret" not in text
    assert "--redis.url" in json.loads(text)["qherd"]["command"]
