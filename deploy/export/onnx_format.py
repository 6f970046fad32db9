"""ONNX: one file, policy.onnx, for every runtime that reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploy.config.errors import ConfigError
from deploy.export.exported import CELLS, Array, Exported, Inputs, batches, exporting, free_batch, graph_of, inputs_of
from deploy.export.observed import Observed
from learner.networks.portable import actions_of

FILES: tuple[str, ...] = ("policy.onnx",)
OPSET = 23
"""ONNX 1.18, of 2025."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check(exported: Exported | None = None) -> None:
    """Raises ConfigError where a package is missing."""
    del exported
    for package in PACKAGES:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--format onnx needs the package {error.name}: pip install 'qherd[onnx]', or in a clone "
                ".venv/bin/python -m pip install -c constraints.txt -e '.[onnx]'"
            ) from None


def write(folder: Path, exported: Exported, observed: Observed) -> None:
    """Writes the graph, with a batch of any size, and what it is about as the model's metadata."""
    graph, inputs = graph_of(exported, observed)
    with exporting("; or choose --format torch"):
        # by torch.export itself first: the exporter of ONNX has other ways, which fix the batch's size where that fails
        program = torch.export.export(graph, tuple(inputs.values()), dynamic_shapes=free_batch(inputs))
        program = program.run_decompositions({torch.ops.aten.adaptive_max_pool2d.default: max_fields})
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(_named(inputs)),
            output_names=["q", "action", *(f"next_{name}" for name in inputs.get("state", {}) if name in CELLS)],
            verbose=False,
        )
    assert onnx_program is not None
    onnx_program.model.metadata_props.update({name: json.dumps(value) for name, value in exported.about.items()})
    onnx_program.save(str(folder / FILES[0]))


def _named(inputs: Inputs) -> dict[str, Tensor]:
    """Returns the inputs of a graph of ONNX, which has no dicts: a recurrent state's arrays each by its own name."""
    named: dict[str, Tensor] = {}
    for name, each in inputs.items():
        named |= each if isinstance(each, dict) else {name: each}
    return named


def max_fields(x: Tensor, sides: list[int]) -> tuple[Tensor, Tensor]:
    """Returns what ``adaptive_max_pool2d`` does, which ONNX has not: maxima over parts of each picture [B, C, H, W],
    which overlap where its sides do not divide. The second result, where they were, nobody asks for."""
    for axis, count in zip((2, 3), sides, strict=True):
        size = x.shape[axis]
        bounds = [(part * size // count, -(-(part + 1) * size // count)) for part in range(count)]
        x = torch.stack([x.narrow(axis, begin, end - begin).amax(axis) for begin, end in bounds], axis)
    return x, x


def values(folder: Path, exported: Exported, observed: Observed) -> tuple[Array, Array]:
    """Returns what onnxruntime makes of the observations: Q values <float32>[N, A] and the environment's actions."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / FILES[0]), providers=["CPUExecutionProvider"])
    found = []
    for rows in batches(len(observed.given)):
        inputs = {name: each.numpy() for name, each in _named(inputs_of(observed, rows)).items()}
        found.append(session.run(["q", "action"], inputs))
    q, numbers = (np.concatenate(each) for each in zip(*found, strict=True))
    return q, actions_of(exported.about["actions"])(numbers)


def use(masked: bool, state: Sequence[str] = ()) -> str:
    """Returns how a program uses it, as Markdown."""
    inputs = '{"obs": obs, "mask": mask}' if masked else '{"obs": obs}'
    call = f'q, action = session.run(["q", "action"], {inputs})'
    if state:
        cells = [name for name in CELLS if name in state]
        outputs = json.dumps(["q", "action", *(f"next_{name}" for name in cells)])
        given = ", ".join(f'"{name}": {name}' for name in state)
        call = f"""# {", ".join(state)}: <float32>[B, ...], zero where an episode begins
q, action, {", ".join(cells)} = session.run({outputs}, {inputs[:-1]}, {given}}})"""
    return f"""```python
import onnxruntime

session = onnxruntime.InferenceSession("policy.onnx")
{call}
```

`session.get_modelmeta().custom_metadata_map` has, as JSON, what `obs` and `action` are."""
