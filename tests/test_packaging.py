"""The distribution: the four generic import names are ours, import one way, and never unpickle."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import deploy

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("replay", "learner", "actors", "deploy")
"""Each may import itself and those before it."""

ROOMS = (
    "process",
    "config",
    "server",
    "run_directory",
    "cluster",
    "planning",
    "playback",
    "export",
    "datasets",
    "monitoring",
    "diagnosis",
    "tracking",
    "sessions",
    "studies",
    "reporting",
    "commands",
    "cli",
    "training",
)
"""Those of deploy; each may import itself and those before it."""

ACTORS_MAY_USE = ("learner.networks", "learner.weights", "learner.cpu_time")
"""Of the learner: the function that it learns and its parameters' format, and how to measure a thread."""

UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def sources() -> list[Path]:
    """The packages' code; deploy/ray has programs for nodes, which are run by path."""
    paths = [path for package in LAYERS for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in paths if path.parent != ROOT / "deploy" / "ray"]


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules that the source imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would escape this check: write the package's name"
            yield node.module or ""


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Full names of all that the source imports, wherever it does: of ``from a import b``, a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text(), filename=str(path))


@pytest.mark.parametrize("name", LAYERS)
def test_the_package_is_ours(name: str) -> None:
    """Asked of a process that starts elsewhere, as a user's does: the installed package, not the checkout's folder."""
    program = f"import {name}; print({name}.__file__)"
    shown = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, check=True).stdout
    installed = importlib.metadata.distribution("qherd").locate_file("")
    assert Path(shown.strip()).parent in (ROOT / name, Path(str(installed)) / name)
    assert importlib.import_module(name).__file__ == shown.strip()


def test_the_installed_version_is_the_sources_version() -> None:
    assert importlib.metadata.version("qherd") == deploy.__version__, "installed from another version: make setup"


def test_the_changelog_knows_the_version() -> None:
    assert f"## [{deploy.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_metadata_keeps_it_off_public_indexes_and_names_the_licence() -> None:
    metadata = importlib.metadata.metadata("qherd")
    assert "Private :: Do Not Upload" in (metadata.get_all("Classifier") or [])
    assert metadata["License-Expression"] == "Apache-2.0"


def test_every_folder_with_code_is_declared_and_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in sources()}
    assert folders == set(project["packages"])
    assert [name for name in LAYERS if not (ROOT / name / "py.typed").exists()] == []
    assert [name for name in LAYERS if "py.typed" not in project["package-data"][name]] == []


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pinned[canonicalize_name(name)] = version
    for text in [*project["dependencies"], *extras["dev"], *extras["atari"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in sources()])
def test_imports_point_one_way(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    above = set(LAYERS[layer + 1 :])
    assert [name for name in imported_modules(parsed(path)) if name.partition(".")[0] in above] == []


def room_of(module: str) -> str:
    """The room of deploy that a module lies in; "" where it is deploy itself or lies elsewhere."""
    return [*module.split("."), ""][1] if module.partition(".")[0] == "deploy" else ""


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=str(path.relative_to(ROOT))) for path in sources() if ROOT / "deploy" in path.parents],
)
def test_rooms_of_deploy_are_imported_one_way(path: Path) -> None:
    own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own == "__init__":  # deploy itself, which any of its rooms may import
        assert set(imported_modules(parsed(path))) <= {"__future__", "typing", "deploy.training"}  # when asked for
        return
    assert own in ROOMS, "a new room: say in ROOMS where it belongs"
    above = set(ROOMS[ROOMS.index(own) + 1 :])
    imported = [(name, room_of(name)) for name in imported_names(parsed(path))]
    assert [name for name, room in imported if room in above] == []
    assert {room for _, room in imported} <= {*ROOMS, "", "__version__"}


def test_the_rooms_are_listed_for_contributors_from_top_to_bottom() -> None:
    _, _, table = (ROOT / "CONTRIBUTING.md").read_text().partition("| room of `deploy` |")
    listed = re.findall(r"^\| `(\w+)(?:\.py)?` \|", table.partition("##")[0], re.M)
    assert listed == list(reversed(ROOMS))


def test_rooms_are_packages_without_code() -> None:
    """What is imported is imported where it is defined."""
    for room in ROOMS[:-2]:
        module = ast.parse((ROOT / "deploy" / room / "__init__.py").read_text())
        assert [type(node) for node in module.body] == [ast.Expr], room
        assert ast.get_docstring(module), room


def test_actors_use_little_of_the_learner() -> None:
    used = {
        name
        for path in sources()
        if path.relative_to(ROOT).parts[0] == "actors"
        for name in imported_modules(parsed(path))
        if name.partition(".")[0] == "learner"
    }
    assert {name for name in used if not name.startswith(ACTORS_MAY_USE)} == set()


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in sources()])
def test_nothing_can_unpickle(path: Path) -> None:
    tree = parsed(path)
    imported = [name for name in imported_modules(tree) if name.partition(".")[0] in UNPICKLERS]
    called = re.findall(r"\btorch\.(?:load|save)\b|\ballow_pickle\s*=\s*True", ast.unparse(tree))
    assert imported + called == []


@pytest.mark.long
def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    copy = tmp_path / "source"  # setuptools builds inside the source folder
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", str(tmp_path), str(copy)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    metadata = f"qherd-{deploy.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {*LAYERS, metadata}
    expected = {str(path.relative_to(ROOT)) for path in sources()} | {f"{name}/py.typed" for name in LAYERS}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "deploy" / "presets").glob("*.yaml")}
    assert expected <= set(names)
    assert f"{metadata}/licenses/LICENSE" in names
