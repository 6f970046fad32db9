"""A process that has imported other sources than the driver refuses to work, and says where both are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from replay.identity import PACKAGES, Identity, WrongCodeError

ROOT = Path(__file__).resolve().parent.parent

WORKER = """
import json, sys
from replay.identity import Identity, WrongCodeError
driver = Identity({name: tuple(pair) for name, pair in json.loads(sys.argv[1]).items()})
try:
    driver.check()
except WrongCodeError as error:
    sys.exit(str(error))
print("same")
"""


def worker(cwd: Path) -> subprocess.CompletedProcess[str]:
    """Another process, that starts in ``cwd`` and finds packages there first, checks this process's identity."""
    command = [sys.executable, "-c", WORKER, json.dumps(Identity.here().packages)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the four packages: the same sources at another place."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    return tmp_path


def test_it_knows_the_four_packages_and_where_they_are() -> None:
    packages = Identity.here().packages
    assert set(packages) == {"actors", "deploy", "learner", "replay"}
    assert {name: Path(path) for name, (path, _) in packages.items()} == {name: ROOT / name for name in PACKAGES}
    assert len({digest for _, digest in packages.values()}) == 4


def test_the_same_sources_elsewhere_are_accepted(copy: Path) -> None:
    done = worker(copy)
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


def change(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


def add(path: Path) -> None:
    path.with_name("further.py").touch()


@pytest.mark.parametrize("alter", [change, Path.unlink, add])
@pytest.mark.parametrize(
    "file",
    [
        "actors/rollout.py",
        "deploy/cli.py",
        "deploy/sessions/launch.py",
        "learner/networks/mlp.py",
        "learner/td.py",
        "replay/limiter.py",
    ],
)
def test_other_sources_are_refused_with_both_paths(copy: Path, file: str, alter: Callable[[Path], None]) -> None:
    package = file.partition("/")[0]
    alter(copy / file)
    done = worker(copy)
    assert done.returncode == 1, done.stdout
    assert f"package {package!r} is {copy / package} in this worker" in done.stderr
    assert str(ROOT / package) in done.stderr
    assert "same qherd on every node" in done.stderr


def test_a_strangers_package_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "__init__.py").write_text("")
    done = worker(tmp_path)
    assert done.returncode == 1
    assert str(tmp_path / "deploy") in done.stderr


def test_a_missing_package_is_refused() -> None:
    here = Identity.here().packages
    with pytest.raises(WrongCodeError, match=r"'nowhere_at_all' is missing"):
        Identity({**here, "nowhere_at_all": ("/opt/qherd/nowhere_at_all", "0" * 64)}).check()
