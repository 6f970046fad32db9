"""torch.export: one file, policy.pt2, for torch without qherd."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from deploy.export.exported import Array, Exported, batches, exporting, free_batch, graph_of, inputs_of
from deploy.export.observed import Observed
from learner.networks.portable import actions_of

FILES: tuple[str, ...] = ("policy.pt2",)
ABOUT = "about.json"


def check(exported: Exported | None = None) -> None:
    """Lets every policy pass: torch is there."""
    del exported


def write(folder: Path, exported: Exported, observed: Observed) -> None:
    """Writes the graph, with a batch of any size, and what it is about beside it in the same file."""
    graph, inputs = graph_of(exported, observed)
    whole = io.BytesIO()
    with exporting():
        program = torch.export.export(graph, tuple(inputs.values()), dynamic_shapes=free_batch(inputs))
        program.example_inputs = None  # they would be saved as a pickle
        torch.export.save(program, whole, extra_files={ABOUT: json.dumps(exported.about)})
    (folder / FILES[0]).write_bytes(whole.getvalue())


def values(folder: Path, exported: Exported, observed: Observed) -> tuple[Array, Array]:
    """Returns what the loaded graph makes of the observations: Q values <float32>[N, A] and the environment's
    actions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.export.load(folder / FILES[0]).module()
    found = []
    with torch.no_grad():
        for rows in batches(len(observed.given)):
            found.append([output.numpy() for output in graph(*inputs_of(observed, rows).values())[:2]])
    q, numbers = (np.concatenate(each) for each in zip(*found, strict=True))
    return q, actions_of(exported.about["actions"])(numbers)


def use(masked: bool, state: Sequence[str] = ()) -> str:
    """Returns how a program uses it, as Markdown."""
    inputs = "obs, mask" if masked else "obs"
    call = f"q, action = policy({inputs})"
    if state:
        arrays = ", ".join(f'"{name}": {name}' for name in state)
        call = f"""state = {{{arrays}}}  # <float32>[B, ...], zero where an episode begins
q, action, after = policy({inputs.replace("obs", "obs, state")})
state |= after"""
    return f"""```python
import torch

policy = torch.export.load("policy.pt2").module()
{call}
```

`torch.export.load("policy.pt2", extra_files=(about := {{"about.json": ""}}))` sets in `about`, as JSON, what `obs` and
`action` are."""
