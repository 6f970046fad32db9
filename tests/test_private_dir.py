"""The folder for sockets and temporary files: where it is made, who can enter it, and what goes with its process."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.server import private_dir
from deploy.server.private_dir import LONGEST_SOCKET, NoFolderError, PrivateDir, remove_stale_dirs, temporary_folder


@pytest.fixture
def tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder, which is TMPDIR and the only one."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(private_dir, "_ELSEWHERE", ())
        yield Path(folder)


@pytest.fixture
def elsewhere(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is made when TMPDIR cannot be used."""
    other = tmp / "o"
    other.mkdir()
    monkeypatch.setattr(private_dir, "_ELSEWHERE", (other,))
    return other


def test_it_is_private_and_goes(tmp: Path) -> None:
    before = os.umask(0)
    try:
        home = PrivateDir()
    finally:
        os.umask(before)
    assert home.path.parent == tmp
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    home.check()
    home.remove()
    assert list(tmp.iterdir()) == []


def test_one_that_was_opened_to_others_is_refused(tmp: Path) -> None:
    home = PrivateDir()
    home.path.chmod(0o777)
    with pytest.raises(NoFolderError, match=rf"{home.path} has mode 0777 .* has to be 0700"):
        home.check()
    home.remove()


def test_rays_sockets_fit_into_the_longest_folder_that_is_taken(tmp: Path, elsewhere: Path) -> None:
    for length in range(len(str(tmp)) + 1, 110):
        folder = tmp / ("d" * (length - len(str(tmp)) - 1))
        folder.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = str(folder)
        home = PrivateDir()
        socket = len(os.fsencode(home.path / LONGEST_SOCKET))
        home.remove()
        if home.path.parent == elsewhere:
            break
        assert socket <= 107
    else:
        pytest.fail("no folder was ever too long")
    assert socket - len(str(elsewhere)) + length > 107, "one byte less would have fitted"
    assert "too long" in temporary_folder()[1]


def test_a_folder_that_cannot_be_used_is_told_and_another_one_taken(
    tmp: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp / "file").touch()
    for wrong, why in ((tmp / "missing", "is no folder"), (tmp / "file", "is no folder")):
        monkeypatch.setenv("TMPDIR", str(wrong))
        assert temporary_folder() == (elsewhere, f"TMPDIR {wrong} {why}; {elsewhere} is used instead")
    monkeypatch.setenv("TMPDIR", "/proc")  # nobody can write there, root neither
    monkeypatch.setattr(os, "access", lambda folder, _: folder != Path("/proc"))
    assert temporary_folder() == (elsewhere, f"TMPDIR /proc cannot be written; {elsewhere} is used instead")


def test_without_any_folder_each_is_named_with_its_reason(
    tmp: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.rmdir()
    monkeypatch.setenv("TMPDIR", str(tmp / ("d" * 100)))
    (tmp / ("d" * 100)).mkdir()
    with pytest.raises(NoFolderError, match=rf"too long.*{elsewhere} is no folder: set TMPDIR to a short one"):
        PrivateDir()


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_in_which_others_may_rename_is_left_for_another(tmp: Path, elsewhere: Path, mode: int) -> None:
    below = tmp / "p" / "q"
    below.mkdir(parents=True)
    os.environ["TMPDIR"] = str(below)
    assert temporary_folder() == (below, "")
    (tmp / "p").chmod(mode)
    folder, told = temporary_folder()
    assert folder == elsewhere
    assert told.startswith(f"TMPDIR {below} is one in which others may rename")
    (tmp / "p").chmod(mode | stat.S_ISVTX)
    assert temporary_folder() == (below, "")


def test_where_others_may_rename_everywhere_it_is_told(tmp: Path) -> None:
    tmp.chmod(0o777)
    assert temporary_folder() == (tmp, f"TMPDIR {tmp} is one in which others may rename what is yours: chmod +t {tmp}")


def test_folders_that_are_not_ours_are_never_swept(tmp: Path) -> None:
    for name in ("qherd-notes", "other"):
        (tmp / name).mkdir()
    (tmp / "other" / "owner.lock").touch()
    (tmp / "elsewhere").mkdir()
    (tmp / "elsewhere" / "owner.lock").touch()
    (tmp / "qherd-link").symlink_to(tmp / "elsewhere")
    assert remove_stale_dirs() == []
    assert sorted(path.name for path in tmp.iterdir()) == ["elsewhere", "other", "qherd-link", "qherd-notes"]


def test_what_a_process_that_is_gone_has_left_is_swept_and_a_live_ones_is_not(tmp: Path) -> None:
    home = PrivateDir()
    gone = tmp / "qherd-gone"
    gone.mkdir()
    (gone / "owner.lock").touch()
    trap = tmp / "qherd-trap"
    trap.mkdir()
    os.mkfifo(trap / "owner.lock")  # opened without waiting for its other end
    assert set(remove_stale_dirs()) == {gone, trap}
    assert home.path.exists()
    home.remove()
