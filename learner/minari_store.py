"""Minari's datasets by their ids: https://minari.farama.org, installed by the extra ``minari``."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from replay.errors import QherdError

PACKAGES = ("minari", "h5py", "pyarrow")
"""h5py and pyarrow read its formats."""
ID = re.compile(r"(?:(?P<namespace>[-\w][-\w/]*[-\w])/)?[-\w]+?-v\d+", re.ASCII)


class DatasetError(QherdError, ValueError):
    """A dataset that is missing, damaged, changed or of another environment; the text has the remedy."""


class BadColumn(ValueError):
    """A column of an episode that is not as a dataset has it. The text begins with its path in the file."""


def check_installed() -> None:
    """Raises DatasetError where a package is missing."""
    for package in PACKAGES:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise DatasetError(
                f"Minari's datasets need the package {error.name}: pip install 'qherd[minari]', or in a clone "
                ".venv/bin/python -m pip install -c constraints.txt -e '.[minari]'"
            ) from None


def namespace_of(dataset_id: str) -> str | None:
    """Returns the part of an id before its last slash; None where there is none. Raises DatasetError for what is no
    id."""
    match = ID.fullmatch(dataset_id)
    if match is None or "//" in dataset_id:
        raise DatasetError(
            f"{dataset_id!r:.80} is no id of a dataset: NAME-v0 or GROUP/NAME-v0, of letters, digits, '_' and '-'; "
            "Minari's GROUP has two characters or more"
        )
    return match["namespace"]


def folder_of(dataset_id: str) -> Path:
    """Returns where Minari has a dataset of this id: below MINARI_DATASETS_PATH, or else below the home's .minari."""
    from minari.storage.datasets_root_dir import get_dataset_path

    return Path(get_dataset_path(dataset_id)).absolute()


def open_dataset(dataset_id: str) -> Any:
    """Returns a dataset that is here, a ``minari.MinariDataset``.

    Raises:
        DatasetError: a package is missing, or there is no such dataset, or it is damaged.
    """
    check_installed()
    namespace_of(dataset_id)
    folder = folder_of(dataset_id)
    if not (folder / "data").is_dir():
        raise DatasetError(
            f"there is no dataset {dataset_id} in {folder.parent}: minari download {dataset_id} fetches a public one, "
            "qherd dataset RUN --out ID writes one; MINARI_DATASETS_PATH names another folder of datasets"
        )
    return load(dataset_id, folder)


def load(dataset_id: str, folder: Path) -> Any:
    """Returns the dataset that is in a folder. Raises DatasetError where it is damaged."""
    check_installed()
    import minari

    try:
        found = minari.MinariDataset(folder / "data")
        metadata = found.storage.metadata
    except Exception as error:  # of any kind, where a file is damaged
        raise DatasetError(
            f"dataset {dataset_id} in {folder} cannot be loaded: {type(error).__name__}: {error!s:.300}"
        ) from error
    for name in ("total_episodes", "total_steps"):
        if not _counts(given := metadata.get(name)):
            raise DatasetError(
                f"dataset {dataset_id} in {folder} says {name} {given!r:.80} in its metadata.json; a whole number of 0 "
                "or more is needed: fetch or write it again"
            )
    return found


def _counts(given: Any) -> bool:
    """Returns whether a value of JSON is a whole number of 0 or more; neither true nor Infinity is."""
    return isinstance(given, int | float) and not isinstance(given, bool) and given >= 0 and given % 1 == 0
