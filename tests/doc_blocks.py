"""The fenced blocks of README, CONTRIBUTING, SECURITY and docs/*.md, and what their fences say of them.

``sh`` and ``python`` are run as printed, unless the fence has ``needs=WHAT``, which is then only read by linters.
``while=NAME``: a run of that name is at work meanwhile. ``file=NAME``: the block is that file, for the blocks after it.
Everything that is no command is ``text`` or ``yaml``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from cli_runs import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted((ROOT / "docs").glob("*.md"))
LANGUAGES = ("sh", "python", "yaml", "text")
NEEDS = {
    "network": "installs from PyPI, and trains or tests for minutes",
    "docker": "an engine, and the images' build",
    "kubernetes": "a cluster with KubeRay",
    "machines": "several machines that know each other by name (tests/test_nodes.py has them as namespaces)",
    "slurm": "Slurm (tests/test_slurm_run.py plays it)",
    "tracker": "an account at W&B, or a server of MLflow (tests/test_tracking.py, tests/test_mlflow.py)",
    "terminals": "several terminals: its commands serve until they are interrupted (tests/test_prometheus_run.py)",
}
"""What the test has not, and why such a block is not run."""


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    attributes: dict[str, str]
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether it is a script that is to be run."""
        return self.language in ("sh", "python") and not {"needs", "file"} & self.attributes.keys()

    def commands(self) -> Iterator[list[str]]:
        """The words of each command of a shell block, without redirections."""
        text = re.sub(r"(?m)(^|\s)#.*$", "", self.text.replace("\\\n", " "))
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>\n")
        lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
        words: list[str] = []
        for word in (*lexer, "\n"):
            if set(word) & set(";&|\n") and set(word) <= set(";&|\n"):
                yield words[: words.index(">")] if ">" in words else words
                words = []
            else:
                words.append(word)


def blocks() -> list[Block]:
    """All of them, in the pages' order."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```([^\n`]*)\n(.*?)^```$", text, re.M | re.S):
            language, *attributes = match[1].split() or [""]
            pairs = dict(each.partition("=")[::2] for each in attributes)
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(str(page.relative_to(ROOT)), line, language, pairs, match[2]))
    return found
